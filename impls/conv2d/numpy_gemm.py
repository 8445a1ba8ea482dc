"""Lower a convolution to matrix products, with NumPy alone.

Five ways, chosen per problem and direction by ``choose``:

``Windows`` unrolls the image along its width only: for every output column j, the pixels under the kernel's width are
laid out as a run of *units*, one per image row, KW * C numbers each. The window of output row i is then KH units in a
row, and windows overlap in memory instead of being copied KH times (Cho and Brand, "MEC: memory-efficient convolution",
2017). A matrix whose rows overlap is no BLAS matrix, but every KH-th window is: KH products, one per phase, in one
call of ``matmul``. Memory: KW copies of a block of the image.

``Rows`` takes the same units, but one product per output row: what lies under that row's kernel, for all samples and
columns of a block, is a matrix with a long distance between its rows. Nothing is multiplied with padding above or
below the image; it pays where that outweighs the calls, on small images under large kernels.

``Taps`` lowers by tap of the kernel (im2col, with the taps as rows): the copies run along whole image rows where a
kernel row of one or a few channels is but a few numbers long, and the products lie as y does.

``Dense`` writes the whole layer as one matrix from all input to all output pixels. On a tiny image under a large
kernel that matrix holds fewer products than the windows do, most of which lie on padding. A 1x1 kernel is the same
thing for an image of one pixel, with the weights themselves as the matrix.

``Scatter`` (input gradient with a stride) multiplies first and adds the products back, tap by tap (col2im). Without a
stride the input gradient is a forward convolution of dy with the turned kernel, by the way that suits that one.

Blocks of samples bound the scratch, whatever the batch, and keep it in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from impls.contract import ALIGNMENT, GEMM, Implementation, Plan
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ITEMSIZE, ConvSpec, Shape

BLOCK_BYTES = 1 << 20
"""What a block is cut to: one core's level 2 cache on current processors."""

BLOCK_ROWS = 256
"""Rows that a matrix product should have, to repay the packing of its other factor, even if the block gets larger."""

LIMIT_BYTES = 16 << 20
"""The largest part of the scratch; only a single column, or image row, that needs more gets more."""

ROW_PRODUCTS = 512
"""Rows of each product of ``Rows``, where LIMIT_BYTES allows: its weights are packed anew in every call."""

CALL = 1_000_000
"""Multiply-adds that a product of ``Rows`` has to save, beside ``Windows``. Found by trying: with a quarter of it
``Rows`` lost, with half of it the two were about even."""

SHORT_RUN = {FORWARD: 8, GRAD_WEIGHTS: 32}
"""Numbers (channels times kernel columns) up to which a unit is too short to be copied fast: ``Taps`` instead."""

DENSE_BUILD = 16
"""Products that take as long as writing one number of ``Dense``'s matrix (measured: 4 to 16 on one core)."""


Views: TypeAlias = tuple[np.ndarray, ...]


class Lowering:
    """One way of computing: ``parts`` names the scratch arrays it needs, ``place`` gives it their memory."""

    spec: ConvSpec
    parts: dict[str, Shape]

    def place(self, arrays: dict[str, np.ndarray]) -> None:
        """Take the scratch arrays and make every view that does not depend on a call's arguments."""
        self.scratch = arrays

    def sums(self, number: int, dw: np.ndarray, db: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Where block ``number`` writes its part of the gradients: the first in place, the others in the scratch."""
        return (dw, db) if number == 0 else (self.scratch["dw"], self.scratch["db"])

    def add_sums(self, number: int, dw: np.ndarray, db: np.ndarray | None) -> None:
        """Add what block ``number`` wrote to what the blocks before it gave."""
        if number:
            np.add(dw, self.scratch["dw"], out=dw)
            if db is not None:
                np.add(db, self.scratch["db"], out=db)


def pieces(total: int, largest: int) -> Iterator[slice]:
    """Cut ``range(total)`` into the fewest slices of at most ``largest``, as even as possible."""
    count = -(-total // max(1, min(largest, total)))
    size = -(-total // count)
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def by_size(batch: int, largest: int, views: Callable[[int], Views]) -> dict[int, Views]:
    """The views for each number of samples that a block may have."""
    return {size: views(size) for size in {block.stop - block.start for block in pieces(batch, largest)}}


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


def finish(rows: np.ndarray, bias: np.ndarray | None, spec: ConvSpec, results: np.ndarray, out: np.ndarray) -> None:
    """Add the tiled bias in place, then write ``results``, a view of the rows, activated to ``out``; it may be both."""
    if bias is not None:
        np.add(rows, bias, out=rows)
    if spec.activation == "relu":
        np.maximum(results, 0, out=out)
    elif results is not out:
        np.copyto(out, results)


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
            finish(block.rows, bias, self.spec, block.valid, out[block.samples, :, block.columns])

    def grad_weights(self, x, dy, dw, db):
        """For every kernel row, the units under it times dy, with zeros where no output is."""
        spec = self.spec
        ones, filters = self.scratch["ones"], spec.filters
        ones.fill(1)
        for number, block in enumerate(self._lowered(x)):
            np.copyto(block.valid, dy[block.samples, :, block.columns])
            block.gaps.fill(0)
            rows = block.rows.reshape(-1, spec.groups, filters // spec.groups).transpose(1, 0, 2)
            sum_w, sum_b = self.sums(number, dw, db)
            shape = (self.kernel_units, self.unit, spec.groups, filters // spec.groups)
            np.matmul(block.kernel_rows, rows[:, np.newaxis], out=sum_w.reshape(shape).transpose(2, 0, 1, 3))
            if db is not None:
                sum_rows(ones, block.rows.reshape(-1, filters), sum_b)
            self.add_sums(number, dw, db)


# -- rows -------------------------------------------------------------------------------------------------------------


class Rows(Lowering):
    """Forward: the units of ``Windows`` without padding above and below, and a product per output row; see the module.

    With dilated rows a window is no run of units: not for those. A block is at least one sample, units and products.
    """

    def __init__(self, spec: ConvSpec):
        self.spec = spec
        left, right = spec.pads[1]
        _, out_h, out_w, filters = spec.y_shape
        self.unit = spec.kernel[1] * spec.channels // spec.groups
        largest = max(1, min(-(-ROW_PRODUCTS // out_w), LIMIT_BYTES // self.sample_bytes(spec)))
        self.samples = next(pieces(spec.batch, largest)).stop
        self.parts = {
            "image": (self.samples, spec.height, spec.width + left + right, spec.channels),
            "units": (spec.groups * self.samples * out_w * spec.height * self.unit,),
            "rows": (out_h * self.samples * out_w * filters,),
            "bias": (out_w, filters),
        }

    @staticmethod
    def sample_bytes(spec: ConvSpec) -> int:
        """Scratch for one sample: its units, or its products, whichever is more."""
        _, out_h, out_w, filters = spec.y_shape
        return max(spec.height * spec.kernel[1] * spec.channels, out_h * filters) * out_w * ITEMSIZE[spec.dtype]

    def place(self, arrays):
        super().place(arrays)
        self.views = by_size(self.spec.batch, self.samples, self._views)

    def _views(self, samples: int) -> tuple[np.ndarray, ...]:
        """(where samples go in the image, the image in the order of units, units, products, products by row of y)."""
        spec = self.spec
        groups, c, f = spec.groups, spec.channels // spec.groups, spec.filters // spec.groups
        left, _ = spec.pads[1]
        (_, kw), (_, sw), (_, dw) = spec.kernel, spec.stride, spec.dilation
        _, out_h, out_w, filters = spec.y_shape
        image = self.scratch["image"][:samples]
        line = image.shape[2] * spec.channels
        source = view(
            image,
            (groups, samples, out_w, spec.height, kw, c),
            (c, spec.height * line, sw * spec.channels, line, dw * spec.channels, 1),
        )
        units = self.scratch["units"][: source.size].reshape(source.shape)
        rows = self.scratch["rows"][: out_h * samples * out_w * filters]
        products = rows.reshape(out_h, samples * out_w, groups, f).transpose(0, 2, 1, 3)
        return image[:, :, left : left + spec.width], source, units, rows, products

    def forward(self, x, w, b, out):
        """For every output row: the units under it times the kernel rows that meet the image."""
        spec = self.spec
        _, out_h, out_w, filters = spec.y_shape
        matrices = by_group(spec, w)
        bias = None if b is None else tile(b, self.scratch["bias"])
        self.scratch["image"].fill(0)
        for samples in pieces(spec.batch, self.samples):
            interior, source, units, rows, products = self.views[samples.stop - samples.start]
            np.copyto(interior, x[samples])
            np.copyto(units, source)
            windows = units.reshape(spec.groups, -1, spec.height * self.unit)
            for i, product in enumerate(products):
                first, start, stop = met(spec, i)
                under = windows[:, :, first * self.unit : (first + stop - start) * self.unit]
                np.matmul(under, matrices[:, start * self.unit : stop * self.unit], out=product)
            results = rows.reshape(out_h, -1, out_w, filters).transpose(1, 0, 2, 3)
            finish(rows.reshape(-1, out_w * filters), bias, spec, results, out[samples])


def met(spec: ConvSpec, i: int) -> tuple[int, int, int]:
    """(first image row, first kernel row, end of the kernel rows) where output row i meets the image; no dilation."""
    row = i * spec.stride[0] - spec.pads[0][0]
    start = min(max(0, -row), spec.kernel[0])
    return row + start, start, max(start, min(spec.kernel[0], spec.height - row))


# -- taps -------------------------------------------------------------------------------------------------------------


class Taps(Lowering):
    """Forward and gradient of the weights: a matrix with a row for each tap of the kernel and a column for each pixel.

    Image and matrix lie by channel, so that copies run along the width. Products are pixels in the order of y.
    """

    def __init__(self, spec: ConvSpec, direction: str):
        self.spec = spec
        (top, bottom), (left, right) = spec.pads
        _, out_h, out_w, filters = spec.y_shape
        self.samples = next(pieces(spec.batch, max(1, BLOCK_BYTES // self.sample_bytes(spec)))).stop
        self.parts = {
            "image": (spec.channels, self.samples, spec.height + top + bottom, spec.width + left + right),
            "taps": (self.samples * self.sample_bytes(spec) // ITEMSIZE[spec.dtype],),
        }
        if direction == GRAD_WEIGHTS:
            self.parts |= {"ones": (1, self.samples * out_h * out_w), "dw": spec.w_shape, "db": (filters,)}
        else:
            self.parts |= {"bias": (out_w, filters)}

    @classmethod
    def pays(cls, spec: ConvSpec, direction: str) -> bool:
        """Whether runs of units are too short, and one sample fits."""
        run = spec.kernel[1] * spec.channels // spec.groups
        return run <= SHORT_RUN[direction] and cls.sample_bytes(spec) <= LIMIT_BYTES

    @staticmethod
    def sample_bytes(spec: ConvSpec) -> int:
        """Scratch for the taps of one sample."""
        _, out_h, out_w, _ = spec.y_shape
        return math.prod(spec.kernel) * spec.channels * out_h * out_w * ITEMSIZE[spec.dtype]

    def place(self, arrays):
        super().place(arrays)
        self.views = by_size(self.spec.batch, self.samples, self._views)

    def _views(self, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(where samples go in the image, the image in the order of taps, taps)."""
        spec = self.spec
        (top, _), (left, _) = spec.pads
        (kh, kw), (sh, sw), (dh, dw) = spec.kernel, spec.stride, spec.dilation
        _, out_h, out_w, _ = spec.y_shape
        image = self.scratch["image"]
        _, most, rows, line = image.shape
        plane, c = most * rows * line, spec.channels // spec.groups
        source = view(
            image,
            (spec.groups, kh, kw, c, samples, out_h, out_w),
            (c * plane, dh * line, dw, plane, rows * line, sh * line, sw),
        )
        taps = self.scratch["taps"][: source.size].reshape(source.shape)
        return image[:, :samples, top : top + spec.height, left : left + spec.width], source, taps

    def _lowered(self, x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Every block of samples with its matrix (G, KH * KW * C / G, pixels)."""
        self.scratch["image"].fill(0)
        for samples in pieces(self.spec.batch, self.samples):
            interior, source, taps = self.views[samples.stop - samples.start]
            np.copyto(interior, x[samples].transpose(3, 0, 1, 2))
            np.copyto(taps, source)
            yield samples, taps.reshape(self.spec.groups, self.spec.terms, -1)

    def _by_group(self, y: np.ndarray) -> np.ndarray:
        """Rows of pixels of some samples of y or dy, a view (G, pixels, F / G)."""
        groups = self.spec.groups
        return y.reshape(-1, groups, self.spec.filters // groups).transpose(1, 0, 2)

    def forward(self, x, w, b, out):
        """The transposed matrix times the kernel, right into ``out``."""
        matrices, row = by_group(self.spec, w), self.spec.y_shape[2] * self.spec.filters
        bias = None if b is None else tile(b, self.scratch["bias"])
        for samples, taps in self._lowered(x):
            np.matmul(taps.transpose(0, 2, 1), matrices, out=self._by_group(out[samples]))
            rows = out[samples].reshape(-1, row)
            finish(rows, bias, self.spec, rows, rows)

    def grad_weights(self, x, dy, dw, db):
        """The matrix times dy, summed over blocks."""
        ones = self.scratch["ones"]
        ones.fill(1)
        for number, (samples, taps) in enumerate(self._lowered(x)):
            sum_w, sum_b = self.sums(number, dw, db)
            np.matmul(taps, self._by_group(dy[samples]), out=by_group(self.spec, sum_w))
            if db is not None:
                sum_rows(ones, dy[samples].reshape(-1, self.spec.filters), sum_b)
            self.add_sums(number, dw, db)


# -- turned -----------------------------------------------------------------------------------------------------------


class Turned(Lowering):
    """Input gradient without a stride: a forward convolution of dy with the kernel turned by half a turn."""

    def __init__(self, spec: ConvSpec):
        self.spec = spec
        self.inner = choose(turned(spec), FORWARD)
        kh, kw = spec.kernel
        self.parts = self.inner.parts | {"turned": (kh, kw, spec.filters // spec.groups, spec.channels)}

    def place(self, arrays):
        super().place(arrays)
        self.inner.place(arrays)

    def grad_input(self, dy, w, dx):
        """Turn the weights, exchange channels and filters, convolve."""
        (kh, kw, c, _), groups, w_turned = w.shape, self.spec.groups, self.scratch["turned"]
        half_turn = w.reshape(kh, kw, c, groups, -1)[::-1, ::-1]
        np.copyto(w_turned.reshape(kh, kw, -1, groups, c), half_turn.transpose(0, 1, 4, 3, 2))
        self.inner.forward(dy, w_turned, None, dx)


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
            rows = y.reshape(-1, y.shape[2] * y.shape[3])
            finish(rows, bias, self.spec, rows, rows)

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


def dense_cost(spec: ConvSpec) -> float:
    """Multiply-adds of ``Dense``, and the time its matrix takes in multiply-adds; infinite where it is not offered."""
    if is_pointwise(spec) and spec.groups == 1:
        return 0
    _, out_h, out_w, filters = spec.y_shape
    size = spec.height * spec.width * spec.channels * out_h * out_w * filters
    offered = spec.groups == 1 and size * ITEMSIZE[spec.dtype] <= LIMIT_BYTES
    return size * (spec.batch + DENSE_BUILD) if offered else math.inf


def cost_per_row(spec: ConvSpec) -> int:
    """Multiply-adds for one row of the kernel under one row of every output image."""
    return spec.batch * spec.y_shape[2] * spec.kernel[1] * spec.channels * spec.filters // spec.groups


def windows_cost(spec: ConvSpec) -> float:
    """Multiply-adds of ``Windows`` (forward), with those of padding and of windows that are dropped."""
    return cost_per_row(spec) * spec.kernel[0] * (spec.y_shape[1] + max(spec.pads[0]))


def rows_cost(spec: ConvSpec) -> float:
    """Multiply-adds of ``Rows``, and the time of its calls in multiply-adds; infinite where it is not offered."""
    if (spec.kernel[0] > 1 and spec.dilation[0] > 1) or Rows.sample_bytes(spec) > LIMIT_BYTES:
        return math.inf
    out_h = spec.y_shape[1]
    taps = sum(stop - start for _, start, stop in (met(spec, i) for i in range(out_h)))
    return cost_per_row(spec) * taps + out_h * -(-spec.batch // Rows(spec).samples) * CALL


def choose(spec: ConvSpec, direction: str) -> Lowering:
    """The way of computing a problem in a direction."""
    windows, rows = windows_cost(spec), math.inf if direction == GRAD_WEIGHTS else rows_cost(spec)
    if dense_cost(spec) <= min(windows, rows):
        return Dense(spec)
    if direction == GRAD_INPUT:
        covered = all(pad < extent for pads, extent in zip(spec.pads, spec.extent, strict=True) for pad in pads)
        return Turned(spec) if spec.stride == (1, 1) and covered else Scatter(spec)
    if Taps.pays(spec, direction):
        return Taps(spec, direction)
    return Rows(spec) if rows < windows else Windows(spec, direction)


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
