"""Lower a convolution to matrix products, with NumPy alone.

Three ways, chosen per problem and direction by ``choose``:

``Windows`` unrolls the image along its width only: for every output column j, the pixels under the kernel's width are
laid out as a run of *units*, one per image row, KW * C numbers each. The window of output row i is then KH units in a
row, and windows overlap in memory instead of being copied KH times (Cho and Brand, "MEC: memory-efficient convolution",
2017). A matrix whose rows overlap is no BLAS matrix, but every KH-th window is: KH products, one per phase, in one
call of ``matmul``. Memory: KW copies of a block of the image.

``Dense`` writes the whole layer as one matrix from all input to all output pixels. On a tiny image under a large
kernel that matrix holds fewer products than the windows do, most of which lie on padding. A 1x1 kernel is the same
thing for an image of one pixel, with the weights themselves as the matrix.

``Scatter`` (input gradient with a stride) multiplies first and adds the products back, tap by tap (col2im). Without a
stride the input gradient is a forward convolution of dy with the turned kernel, through ``Windows``.

Blocks of samples bound the scratch, whatever the batch, and keep it in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from impls.contract import ALIGNMENT, GEMM, Implementation, Plan
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ITEMSIZE, ConvSpec, Shape

BLOCK_BYTES = 1 << 20
"""What a block is cut to: one core's level 2 cache on current processors."""

BLOCK_ROWS = 256
"""Rows that a matrix product should have, to repay the packing of its other factor, even if the block gets larger."""

LIMIT_BYTES = 16 << 20
"""The largest part of the scratch; only a single column, or image row, that needs more gets more."""

DENSE_BUILD = 16
"""Products that take as long as writing one number of ``Dense``'s matrix (measured: 4 to 16 on one core)."""


class Lowering:
    """One way of computing: ``parts`` names the scratch arrays it needs, ``place`` gives it their memory."""

    spec: ConvSpec
    parts: dict[str, Shape]

    def place(self, arrays: dict[str, np.ndarray]) -> None:
        """Take the scratch arrays and make every view that does not depend on a call's arguments."""
        self.scratch = arrays


def pieces(total: int, largest: int) -> Iterator[slice]:
    """Cut ``range(total)`` into the fewest slices of at most ``largest``, as even as possible."""
    count = -(-total // max(1, min(largest, total)))
    size = -(-total // count)
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def view(base: np.ndarray, shape: Shape, strides: Shape, start: int = 0) -> np.ndarray:
    """Elements of a contiguous array under another shape; ``strides`` and ``start`` count elements.

    Unlike as_strided it costs a microsecond, and it refuses to leave the array.
    """
    size = base.itemsize
    return np.ndarray(shape, base.dtype, base, start * size, tuple(s * size for s in strides))


def by_group(spec: ConvSpec, w: np.ndarray) -> np.ndarray:
    """Weights as a stack of matrices (G, KH * KW * C / G, F / G), a view."""
    return w.reshape(spec.terms, spec.groups, -1).transpose(1, 0, 2)


def tile(b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Repeat b over the leading axis of ``out``: adding long rows is several times faster than adding short ones."""
    np.copyto(out, b)
    return out.reshape(-1)


def finish(rows: np.ndarray, bias: np.ndarray | None, spec: ConvSpec) -> None:
    """Add the tiled bias and apply the activation, in place."""
    if bias is not None:
        np.add(rows, bias, out=rows)
    if spec.activation == "relu":
        np.maximum(rows, 0, out=rows)


def sum_rows(ones: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """Column sums by BLAS, which uses all cores and adds in several partial sums."""
    np.matmul(ones[:, : len(rows)], rows, out=out[np.newaxis])


# -- windows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Some samples and output columns, and the views of the scratch that belong to them."""

    samples: slice
    columns: slice
    interior: np.ndarray
    """Where the samples go in the padded image."""
    source: np.ndarray
    """The padded image, seen in the order of ``units``."""
    units: np.ndarray
    slack: np.ndarray
    """Behind the units, what the last windows of no output read."""
    phases: np.ndarray
    """(G, phases, rows, KH * KW * C / G): disjoint windows."""
    phase_rows: np.ndarray
    """(G, phases, rows, F / G): where their products go."""
    kernel_rows: np.ndarray
    """(G, KH, KW * C / G, rows): the units under each kernel row, for the gradient of the weights."""
    rows: np.ndarray
    """(samples * columns, rows of a column * F)."""
    valid: np.ndarray
    """(samples, OH, columns, F): the rows that are outputs, in the order of y."""
    gaps: np.ndarray
    """The others."""


class Windows(Lowering):
    """Forward and gradient of the weights; see the module.

    The padding between two columns of units is shared, the bottom of one and the top of the next; windows across it
    are computed and dropped. With dilated rows a window is no run of units, so a unit holds all kernel rows (im2col).
    """

    def __init__(self, spec: ConvSpec, direction: str):
        self.spec = spec
        (top, bottom), (left, right) = spec.pads
        _, out_h, out_w, _ = spec.y_shape
        kh, kw = spec.kernel
        sh = spec.stride[0]
        self.image_width = spec.width + left + right
        if kh == 1 or spec.dilation[0] == 1:
            self.kernel_units, self.unit_rows, self.step = kh, 1, sh
            self.height = -(-max(spec.height + max(top, bottom), out_h * sh) // sh) * sh
            self.image_height = self.height
        else:
            self.kernel_units, self.unit_rows, self.step = 1, kh, 1
            self.height, self.image_height = out_h, spec.height + top + bottom
        self.unit = self.unit_rows * kw * spec.channels // spec.groups
        self.phases = -(-self.kernel_units // self.step)

        column = self.height * self.unit * spec.groups * ITEMSIZE[spec.dtype]
        least = -(-BLOCK_ROWS * self.phases * self.step // self.height)
        fitting = max(1, min(max(BLOCK_BYTES // column, least), LIMIT_BYTES // column))
        samples = next(pieces(spec.batch, fitting // out_w)).stop
        columns = next(pieces(out_w, fitting)).stop
        self.samples, self.columns = (samples, out_w) if fitting >= out_w else (1, columns)

        units, rows = self._sizes(self.samples * self.columns)
        self.parts = {
            "image": (self.samples * self.image_height * self.image_width * spec.channels,),
            "units": (spec.groups, units, self.unit),
            "rows": (rows * spec.filters,),
        }
        if direction == GRAD_WEIGHTS:
            self.parts |= {"ones": (1, rows), "dw": spec.w_shape, "db": (spec.filters,)}
        else:
            self.parts |= {"bias": (self.height // self.step, spec.filters)}

    def _sizes(self, count: int) -> tuple[int, int]:
        """Units and rows of ``count`` columns, with those that fill the last window of every phase."""
        rows = -(-count * self.height // self.step // self.phases) * self.phases
        return max(count * self.height, (rows - 1) * self.step + self.kernel_units), rows

    def place(self, arrays):
        super().place(arrays)
        _, _, out_w, _ = self.spec.y_shape
        made: dict[Shape, dict[str, np.ndarray]] = {}
        self.blocks = []
        for samples in pieces(self.spec.batch, self.samples):
            for columns in pieces(out_w, self.columns):
                key = (samples.stop - samples.start, columns.start, columns.stop)
                if key not in made:
                    made[key] = self._views(*key)
                self.blocks.append(Block(samples, columns, **made[key]))

    def _views(self, samples: int, first: int, last: int) -> dict[str, np.ndarray]:
        spec, unit, step, phases = self.spec, self.unit, self.step, self.phases
        (top, _), (left, _) = spec.pads
        (_, kw), (sh, sw), (dh, dw) = spec.kernel, spec.stride, spec.dilation
        groups, c, f = spec.groups, spec.channels // spec.groups, spec.filters // spec.groups
        pixel, line = spec.channels, self.image_width * spec.channels
        image = self.scratch["image"]
        whole = view(
            image,
            (samples, self.image_height, self.image_width, pixel),
            (self.image_height * line, line, pixel, 1),
        )
        columns = last - first
        source = view(
            image,
            (groups, samples, columns, self.height, self.unit_rows, kw, c),
            (
                c,
                self.image_height * line,
                sw * pixel,
                line if self.unit_rows == 1 else sh * line,
                dh * line,
                dw * pixel,
                1,
            ),
            first * sw * pixel,
        )
        count = samples * columns
        used, total_rows = self._sizes(count)
        units, rows = self.scratch["units"], self.scratch["rows"]
        slab = units.shape[1] * unit
        per_phase, column_rows = total_rows // phases, self.height // step
        shape = (samples, columns, column_rows, spec.filters)
        ordered = rows[: math.prod(shape)].reshape(shape).transpose(0, 2, 1, 3)
        return {
            "interior": whole[:, top : top + spec.height, left : left + spec.width],
            "source": source,
            "units": units[:, : count * self.height].reshape(source.shape),
            "slack": units[:, count * self.height : used],
            "phases": view(
                units,
                (groups, phases, per_phase, self.kernel_units * unit),
                (slab, step * unit, phases * step * unit, 1),
            ),
            "phase_rows": view(rows, (groups, phases, per_phase, f), (f, spec.filters, phases * spec.filters, 1)),
            "kernel_rows": view(
                units,
                (groups, self.kernel_units, unit, count * column_rows),
                (slab, unit, 1, step * unit),
            ),
            "rows": rows[: math.prod(shape)].reshape(count, -1),
            "valid": ordered[:, : spec.y_shape[1]],
            "gaps": ordered[:, spec.y_shape[1] :],
        }

    def _lowered(self, x: np.ndarray) -> Iterator[Block]:
        """Every block, its units filled. The border of the image is cleared once: no block writes there."""
        self.scratch["image"].fill(0)
        for block in self.blocks:
            if block.columns.start == 0:
                np.copyto(block.interior, x[block.samples])
            np.copyto(block.units, block.source)
            block.slack.fill(0)
            yield block

    def forward(self, x, w, b, out):
        """Multiply every window with the kernel; drop those across a border; bias and activation on the way out."""
        matrices = by_group(self.spec, w)[:, np.newaxis]
        bias = None if b is None else tile(b, self.scratch["bias"])
        for block in self._lowered(x):
            np.matmul(block.phases, matrices, out=block.phase_rows)
            finish(block.rows, bias, self.spec)
            np.copyto(out[block.samples, :, block.columns], block.valid)

    def grad_weights(self, x, dy, dw, db):
        """For every kernel row, the units under it times dy, with zeros where no output is."""
        spec = self.spec
        ones, filters = self.scratch["ones"], spec.filters
        ones.fill(1)
        for number, block in enumerate(self._lowered(x)):
            np.copyto(block.valid, dy[block.samples, :, block.columns])
            block.gaps.fill(0)
            rows = block.rows.reshape(-1, spec.groups, filters // spec.groups).transpose(1, 0, 2)
            sum_w, sum_b = (dw, db) if number == 0 else (self.scratch["dw"], self.scratch["db"])
            shape = (self.kernel_units, self.unit, spec.groups, filters // spec.groups)
            np.matmul(block.kernel_rows, rows[:, np.newaxis], out=sum_w.reshape(shape).transpose(2, 0, 1, 3))
            if db is not None:
                sum_rows(ones, block.rows.reshape(-1, filters), sum_b)
            if number:
                np.add(dw, sum_w, out=dw)
                if db is not None:
                    np.add(db, sum_b, out=db)


class Turned(Lowering):
    """Input gradient without a stride: a forward convolution of dy with the kernel turned by half a turn."""

    def __init__(self, spec: ConvSpec):
        self.spec = spec
        self.windows = Windows(turned(spec), FORWARD)
        kh, kw = spec.kernel
        self.parts = self.windows.parts | {"turned": (kh, kw, spec.filters // spec.groups, spec.channels)}

    def place(self, arrays):
        super().place(arrays)
        self.windows.place(arrays)

    def grad_input(self, dy, w, dx):
        """Turn the weights, exchange channels and filters, convolve."""
        (kh, kw, c, _), groups, w_turned = w.shape, self.spec.groups, self.scratch["turned"]
        half_turn = w.reshape(kh, kw, c, groups, -1)[::-1, ::-1]
        np.copyto(w_turned.reshape(kh, kw, -1, groups, c), half_turn.transpose(0, 1, 4, 3, 2))
        self.windows.forward(dy, w_turned, None, dx)


def turned(spec: ConvSpec) -> ConvSpec:
    """The forward convolution that is the input gradient of ``spec``, whose stride must be 1."""
    _, out_h, out_w, filters = spec.y_shape
    pads = tuple(
        (extent - 1 - before, extent - 1 - after)
        for extent, (before, after) in zip(spec.extent, spec.pads, strict=True)
    )
    return replace(
        spec,
        height=out_h,
        width=out_w,
        channels=filters,
        filters=spec.channels,
        padding=pads,
        bias=False,
        activation=None,
    )


# -- scatter ----------------------------------------------------------------------------------------------------------


class Scatter(Lowering):
    """Input gradient for any stride and padding: products of dy and the kernel, added where they came from (col2im)."""

    def __init__(self, spec: ConvSpec):
        self.spec = spec
        (top, bottom), (left, right) = spec.pads
        _, out_h, out_w, _ = spec.y_shape
        row = out_w * spec.terms * spec.groups * ITEMSIZE[spec.dtype]
        fitting = max(1, BLOCK_BYTES // row)
        self.samples = next(pieces(spec.batch, fitting // out_h)).stop if fitting >= out_h else 1
        self.rows = next(pieces(out_h, fitting)).stop
        padded = (spec.height + top + bottom, spec.width + left + right)
        self.parts = {
            "products": (spec.groups, self.samples * self.rows * out_w, spec.terms),
            "image": (self.samples, *padded, spec.groups, spec.channels // spec.groups),
        }

    def grad_input(self, dy, w, dx):
        """Block by block of rows: multiply, then add tap by tap into the padded image."""
        spec = self.spec
        (top, _), (left, _) = spec.pads
        w_transposed = by_group(spec, w).transpose(0, 2, 1)
        for samples in pieces(spec.batch, self.samples):
            image = self.scratch["image"][: samples.stop - samples.start]
            image.fill(0)
            for rows in pieces(spec.y_shape[1], self.rows):
                self._add(dy[samples, rows], w_transposed, image[:, rows.start * spec.stride[0] :])
            inside = image[:, top : top + spec.height, left : left + spec.width]
            np.copyto(dx[samples].reshape(inside.shape), inside)

    def _add(self, dy: np.ndarray, w_transposed: np.ndarray, image: np.ndarray) -> None:
        """Add what the output rows ``dy`` (n, rows, OW, F) give to the part of the padded image from their first on."""
        spec = self.spec
        (kh, kw), (sh, sw), (dh, dw) = spec.kernel, spec.stride, spec.dilation
        n, out_h, out_w, _ = dy.shape
        products = self.scratch["products"][:, : n * out_h * out_w]
        by_pixel = dy.reshape(n * out_h * out_w, spec.groups, -1).transpose(1, 0, 2)
        np.matmul(by_pixel, w_transposed, out=products)
        by_tap = products.reshape(spec.groups, n, out_h, out_w, kh, kw, -1).transpose(4, 5, 1, 2, 3, 0, 6)
        for a in range(kh):
            for b in range(kw):
                rows = slice(a * dh, a * dh + (out_h - 1) * sh + 1, sh)
                columns = slice(b * dw, b * dw + (out_w - 1) * sw + 1, sw)
                target = image[:, rows, columns]
                np.add(target, by_tap[a, b], out=target)


# -- dense ------------------------------------------------------------------------------------------------------------


def is_pointwise(spec: ConvSpec) -> bool:
    """Whether every output pixel reads the one input pixel at its place."""
    return (spec.kernel, spec.stride, spec.pads) == ((1, 1), (1, 1), ((0, 0), (0, 0)))


def reach(side: int, out: int, step: int, offset: int) -> tuple[int, int]:
    """The first output, and how many from there on, whose pixel ``output * step + offset`` lies in ``range(side)``."""
    first = max(0, -(offset // step))
    last = min(out - 1, (side - 1 - offset) // step)
    return first, max(0, last - first + 1)


class Dense(Lowering):
    """All three directions by one matrix between the pixels of an image and those of its output; one group only."""

    def __init__(self, spec: ConvSpec):
        self.spec = spec
        self.pointwise = is_pointwise(spec)
        _, out_h, out_w, filters = spec.y_shape
        inputs, outputs = spec.height * spec.width * spec.channels, out_h * out_w * filters
        largest = max(BLOCK_BYTES // (inputs + outputs) // ITEMSIZE[spec.dtype], BLOCK_ROWS // (out_h * out_w), 1)
        self.samples = next(pieces(spec.batch, largest)).stop
        self.parts = {
            "matrix": (spec.channels, 0) if self.pointwise else (inputs, outputs),
            "bias": (out_w, filters),
            "ones": (1, min(BLOCK_BYTES // filters // 4 + 1, spec.batch * out_h * out_w)),
            "db": (filters,),
        }

    def place(self, arrays):
        super().place(arrays)
        self.taps = [] if self.pointwise else list(self._taps(arrays["matrix"]))

    def _taps(self, matrix: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """(a, b, where the matrix holds w[a, b]: output rows, output columns, channels, filters)."""
        spec = self.spec
        (top, _), (left, _) = spec.pads
        _, out_h, out_w, f = spec.y_shape
        (kh, kw), (sh, sw), (dh, dw), c = spec.kernel, spec.stride, spec.dilation, spec.channels
        in_column = c * out_h * out_w * f
        in_row = spec.width * in_column
        for a in range(kh):
            i, rows = reach(spec.height, out_h, sh, a * dh - top)
            for b in range(kw):
                j, columns = reach(spec.width, out_w, sw, b * dw - left)
                start = (i * sh + a * dh - top) * in_row + (j * sw + b * dw - left) * in_column + (i * out_w + j) * f
                strides = (sh * in_row + out_w * f, sw * in_column + f, out_h * out_w * f, 1)
                shape = (rows, columns, c, f)
                yield a, b, view(matrix, shape, strides, start if rows and columns else 0)

    def _filled(self, w: np.ndarray) -> np.ndarray:
        """The matrix that holds w at every tap and zero elsewhere."""
        if self.pointwise:
            return w.reshape(self.spec.channels, self.spec.filters)
        matrix = self.scratch["matrix"]
        matrix.fill(0)
        for a, b, place in self.taps:
            place[...] = w[a, b]
        return matrix

    def forward(self, x, w, b, out):
        """x @ matrix, some samples at a time, so that bias and activation find them in the cache."""
        matrix = self._filled(w)
        inputs, outputs = matrix.shape
        bias = None if b is None else tile(b, self.scratch["bias"])
        for samples in pieces(self.spec.batch, self.samples):
            y = out[samples]
            np.matmul(x[samples].reshape(-1, inputs), matrix, out=y.reshape(-1, outputs))
            finish(y.reshape(-1, y.shape[2] * y.shape[3]), bias, self.spec)

    def grad_weights(self, x, dy, dw, db):
        """x^T @ dy holds the gradient once per output pixel; add those of each tap."""
        if self.pointwise:
            c, f = self.spec.channels, self.spec.filters
            np.matmul(x.reshape(-1, c).T, dy.reshape(-1, f), out=dw.reshape(c, f))
        else:
            batch = self.spec.batch
            np.matmul(x.reshape(batch, -1).T, dy.reshape(batch, -1), out=self.scratch["matrix"])
            for a, b, place in self.taps:
                np.add.reduce(place, axis=(0, 1), out=dw[a, b])
        if db is not None:
            self._sum_pixels(dy.reshape(-1, self.spec.filters), db)

    def _sum_pixels(self, rows: np.ndarray, db: np.ndarray) -> None:
        ones, partial = self.scratch["ones"], self.scratch["db"]
        ones.fill(1)
        db.fill(0)
        for piece in pieces(len(rows), ones.size):
            sum_rows(ones, rows[piece], partial)
            np.add(db, partial, out=db)

    def grad_input(self, dy, w, dx):
        """dy @ matrix^T."""
        matrix = self._filled(w)
        inputs, outputs = matrix.shape
        np.matmul(dy.reshape(-1, outputs), matrix.T, out=dx.reshape(-1, inputs))


# -- choice -----------------------------------------------------------------------------------------------------------


def dense_pays(spec: ConvSpec) -> bool:
    """Whether one matrix for the whole image costs fewer products, with its making, than windows and their padding."""
    if spec.groups > 1:
        return False
    if is_pointwise(spec):
        return True
    _, out_h, out_w, filters = spec.y_shape
    pixels = spec.height * spec.width
    size = pixels * spec.channels * out_h * out_w * filters * ITEMSIZE[spec.dtype]
    dense = pixels * out_h * out_w * (spec.batch + DENSE_BUILD)
    windows = math.prod(spec.kernel) * (out_h + max(spec.pads[0])) * out_w * spec.batch
    return size <= LIMIT_BYTES and dense <= windows


def choose(spec: ConvSpec, direction: str) -> Lowering:
    """The way of computing a problem in a direction."""
    if dense_pays(spec):
        return Dense(spec)
    if direction != GRAD_INPUT:
        return Windows(spec, direction)
    covered = all(pad < extent for pads, extent in zip(spec.pads, spec.extent, strict=True) for pad in pads)
    return Turned(spec) if spec.stride == (1, 1) and covered else Scatter(spec)


def byte_count(shape: Shape, dtype: str) -> int:
    """Bytes of a scratch array, rounded up so that the next one is aligned."""
    return -(-math.prod(shape) * ITEMSIZE[dtype] // ALIGNMENT) * ALIGNMENT


class NumpyGemm(Plan):
    """One ``Lowering`` per direction; they take turns in the same scratch."""

    spec: ConvSpec

    @classmethod
    def scratch_bytes(cls, spec, directions):
        parts = (choose(spec, direction).parts.values() for direction in directions)
        return max((sum(byte_count(shape, spec.dtype) for shape in shapes) for shapes in parts), default=0)

    def prepare(self):
        self.lowerings = {direction: choose(self.spec, direction) for direction in self.directions}
        for lowering in self.lowerings.values():
            arrays, offset = {}, 0
            for name, shape in lowering.parts.items():
                arrays[name] = self.scratch(shape, self.spec.dtype, offset)
                offset += byte_count(shape, self.spec.dtype)
            lowering.place(arrays)

    def forward(self, x, w, b, out):
        self.lowerings[FORWARD].forward(x, w, b, out)

    def grad_weights(self, x, dy, dw, db):
        self.lowerings[GRAD_WEIGHTS].grad_weights(x, dy, dw, db)

    def grad_input(self, dy, w, dx):
        self.lowerings[GRAD_INPUT].grad_input(dy, w, dx)


IMPL = Implementation(
    NumpyGemm,
    algorithm=GEMM,
    arithmetic=lambda spec, direction: spec.dtype,
    note="NumPy: windows lowered along the width, BLAS products, blocks of samples that fit the cache",
)
