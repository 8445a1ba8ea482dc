"""Convolution through Fourier transforms of overlapping tiles on a CUDA device: a product per frequency.

Images are cut into tiles of T x T pixels that overlap by what the dilated kernel spans less one, and so give
advance = T + 1 - extent results a side (overlap-save). With X, W and D the spectra of tiles of x, of w and of dy:

    forward        Y[m, f]  = sum over c of X[m, c] * conj W[c, f]      m: tile, at every frequency and in every group
    grad_input     DX[m, c] = sum over f of D[m, f] * W[c, f]
    grad_weights   DW[c, f] = sum over m of X[m, c] * conj D[m, f]      and db[f] = sum over m of D[m, f] at frequency 0

A product with a conjugate is a correlation, one without is a convolution. Strides are honest waste: forward computes
every pixel and keeps every s-th, and the gradients read dy with zeros between its pixels. One T serves the three
directions, so the same transformed weights do. Source: A. Oppenheim and R. Schafer, Discrete-Time Signal Processing,
3rd ed., Pearson 2010, section 8.7.3.

T minimises, over the three directions, the time of a device that does BALANCE operations while it moves a byte: 8 per
complex product, 2.5 n log2 n for the transform of n = T * T real values, and tiles and spectra each moved once a way.

Memory: the spectra of as many tiles as fit SCRATCH_BYTES, and those of all weights. The sums of grad_weights are cut
into parts where there are too few results to fill a device; parts, and tiles of one chunk after the other, are added
in their order. No atomics: the same input gives the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import float32

from impls.contract import ALIGNMENT, FFT
from impls.conv2d._cuda_fft import FROM_SPECTRUM, SIDES, TO_SPECTRUM, frequencies, over_planes
from impls.cuda_setup import ARRAY4, FLAG, VECTOR, ZERO, CudaPlan, Kernel, Launch, cuda, implementation, kernel
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ConvSpec, Pair, Shape

SCRATCH_BYTES = 256 << 20
"""What the spectra of a call take at most."""

MOST_CHUNKS = 1024
"""Of a call, which launches three or four kernels for each."""

BALANCE = 16
"""Float32 operations in the time of a byte: 12 on an A100, 20 on an H100, by their data sheets."""

ENOUGH_BLOCKS = 1024
"""Blocks that fill a large device: sums are not cut into more parts than that takes."""

SHORTEST_PART = 64
"""Tiles: shorter sums would gain less than adding the parts costs."""

COMPLEX_BYTES = 8
STEP = 8
"""Terms of the sums that a block holds in shared memory at a time."""

TRIPLE = "UniTuple(int64, 3)"


@dataclass(frozen=True)
class Product:
    """A block's part of a matrix product: its threads, (down, across), each compute (rows, columns) results."""

    threads: Pair
    each: Pair

    @property
    def sides(self) -> Pair:
        """Rows and columns that a block computes."""
        return self.threads[0] * self.each[0], self.threads[1] * self.each[1]

    def blocks(self, rows: int, columns: int) -> int:
        """How many blocks a product takes."""
        return -(-rows // self.sides[0]) * -(-columns // self.sides[1])

    def cost(self, rows: int, columns: int) -> float:
        """Grows with the time of a product: operations on what is padded, and shared memory read for them."""
        values = self.blocks(rows, columns) * math.prod(self.sides)
        return values * (1 + 2 * sum(self.each) / math.prod(self.each))


def _product_kernel(product: Product) -> Kernel:
    """The kernel that multiplies by blocks of this shape; see ``multiply`` for the arguments."""
    height, width = product.sides
    down, across = product.threads
    threads = down * across
    tall, wide = product.each
    results = tall * wide
    a_pitch, b_pitch = height + 4, width + 4
    a_size, b_size = STEP * a_pitch, STEP * b_pitch

    @kernel(
        *(ARRAY4, ARRAY4, ARRAY4, TRIPLE, TRIPLE, TRIPLE, TRIPLE, "int64", FLAG, FLAG),
        threads=threads,
        shared_bytes=8 * (a_size + b_size),
        variant=f"{height}x{width}",
    )
    def multiply(a, b, out, sizes, a_steps, b_steps, out_steps, groups, conjugate, add):
        """out[part, e, :, row, column] = sum over the part's k of a[0, e, :, row, k] * b[0, e, :, k, column].

        ``sizes``: rows, terms and columns. Rows, terms and columns are not axes of the arrays: a row, a term and a
        group are ``a_steps`` apart in a, a term, a column and a group ``b_steps`` in b, and a row, a column and a
        group ``out_steps`` in out. ``conjugate``: use conj b. ``add``: add to what out holds.
        """
        a_re = cuda.shared.array(a_size, float32)
        a_im = cuda.shared.array(a_size, float32)
        b_re = cuda.shared.array(b_size, float32)
        b_im = cuda.shared.array(b_size, float32)
        sum_re = cuda.local.array(results, float32)
        sum_im = cuda.local.array(results, float32)
        rows, terms, columns = sizes
        e = cuda.blockIdx.y
        group = cuda.blockIdx.z % groups
        part = cuda.blockIdx.z // groups
        if e >= out.shape[1] or part >= out.shape[0]:
            return
        blocks_across = (columns + width - 1) // width
        top = cuda.blockIdx.x // blocks_across * height
        left = cuda.blockIdx.x % blocks_across * width
        thread = cuda.threadIdx.x
        i, j = thread // across, thread % across
        sign = np.float32(-1) if conjugate else np.float32(1)
        from_a_re, from_a_im = a[0, e, 0], a[0, e, 1]
        from_b_re, from_b_im = b[0, e, 0], b[0, e, 1]
        to_re, to_im = out[part, e, 0], out[part, e, 1]
        for r in range(results):
            sum_re[r] = ZERO
            sum_im[r] = ZERO

        end = (part + 1) * terms // out.shape[0]
        for first in range(part * terms // out.shape[0], end, STEP):
            for item in range(thread, STEP * height, cuda.blockDim.x):
                if a_steps[1] == 1:
                    k, row = item % STEP, item // STEP
                else:
                    k, row = item // height, item % height
                at = k * a_pitch + row
                a_re[at] = ZERO
                a_im[at] = ZERO
                if top + row < rows and first + k < end:
                    plane = (top + row) * a_steps[0] + (first + k) * a_steps[1] + group * a_steps[2]
                    a_re[at] = from_a_re[plane]
                    a_im[at] = from_a_im[plane]
            for item in range(thread, STEP * width, cuda.blockDim.x):
                if b_steps[0] == 1:
                    k, column = item % STEP, item // STEP
                else:
                    k, column = item // width, item % width
                at = k * b_pitch + column
                b_re[at] = ZERO
                b_im[at] = ZERO
                if left + column < columns and first + k < end:
                    plane = (first + k) * b_steps[0] + (left + column) * b_steps[1] + group * b_steps[2]
                    b_re[at] = from_b_re[plane]
                    b_im[at] = from_b_im[plane] * sign
            cuda.syncthreads()
            for k in range(min(STEP, end - first)):
                for r in range(tall):
                    x_re = a_re[k * a_pitch + i + r * down]
                    x_im = a_im[k * a_pitch + i + r * down]
                    for s in range(wide):
                        y_re = b_re[k * b_pitch + j + s * across]
                        y_im = b_im[k * b_pitch + j + s * across]
                        sum_re[r * wide + s] += x_re * y_re
                        sum_re[r * wide + s] += -x_im * y_im
                        sum_im[r * wide + s] += x_re * y_im
                        sum_im[r * wide + s] += x_im * y_re
            cuda.syncthreads()

        for r in range(tall):
            for s in range(wide):
                row, column = top + i + r * down, left + j + s * across
                if row < rows and column < columns:
                    plane = row * out_steps[0] + column * out_steps[1] + group * out_steps[2]
                    if add:
                        sum_re[r * wide + s] += to_re[plane]
                        sum_im[r * wide + s] += to_im[plane]
                    to_re[plane] = sum_re[r * wide + s]
                    to_im[plane] = sum_im[r * wide + s]

    return multiply


PRODUCTS = {
    product: _product_kernel(product)
    for product in (Product((16, 8), (4, 4)), Product((8, 8), (4, 4)), Product((32, 1), (1, 4)))
}

FILTERS = 32
SLICES = 8
SUMMERS = FILTERS * SLICES
"""Filters of a block of _sum_tiles, and threads that share the tiles of a filter."""


@kernel(ARRAY4, VECTOR, FLAG, threads=SUMMERS, shared_bytes=4 * SUMMERS)
def _sum_tiles(spectrum, db, add):
    """db[f] = the sum of all of dy: frequency 0 of every tile. ``add``: add to what db holds."""
    sums = cuda.shared.array(SUMMERS, float32)
    thread = cuda.threadIdx.x
    f = cuda.blockIdx.x * FILTERS + thread % FILTERS
    total = ZERO
    if f < db.size:
        for plane in range(thread // FILTERS * db.size + f, spectrum.shape[3], SLICES * db.size):
            total += spectrum[0, 0, 0, plane]
    sums[thread] = total
    cuda.syncthreads()
    if thread < FILTERS and f < db.size:
        for other in range(1, SLICES):
            total += sums[other * FILTERS + thread]
        db[f] = db[f] + total if add else total


@dataclass(frozen=True)
class Tiling:
    """How a direction cuts its images: all that its launches and its scratch follow from."""

    side: int
    advance: Pair
    tiles: Pair
    """Of an image, down and across."""
    chunks: tuple[range, ...]
    """Which tiles of all images are computed together."""
    parts: int
    """Of the sums."""


def places(spec: ConvSpec, direction: str) -> Pair:
    """Rows and columns of results of an image, with those that a stride passes over."""
    if direction == GRAD_INPUT:
        return spec.height, spec.width
    return tuple((out - 1) * step + 1 for out, step in zip(spec.y_shape[1:3], spec.stride, strict=True))


def advances(spec: ConvSpec, side: int) -> Pair:
    """Rows and columns of results that a tile gives."""
    return side + 1 - spec.extent[0], side + 1 - spec.extent[1]


def tile_counts(spec: ConvSpec, direction: str, side: int) -> Pair:
    """Tiles of an image, down and across."""
    return tuple(-(-p // a) for p, a in zip(places(spec, direction), advances(spec, side), strict=True))


def cost(spec: ConvSpec, side: int) -> float:
    """Operations, and bytes times BALANCE, of the three directions together."""
    pixels = side * side
    each = spec.channels // spec.groups
    total = 0.0
    for direction in (FORWARD, GRAD_INPUT, GRAD_WEIGHTS):
        tiles = spec.batch * math.prod(tile_counts(spec, direction, side))
        planes = tiles * (spec.channels + spec.filters) + each * spec.filters
        products = 8 * frequencies(side) * tiles * each * spec.filters
        transforms = 2.5 * pixels * math.log2(pixels) * planes
        moved = (4 * pixels + 2 * COMPLEX_BYTES * frequencies(side)) * planes
        total += products + transforms + BALANCE * moved
    return total


def least_scratch(spec: ConvSpec, side: int) -> int:
    """Bytes of the weights' spectra and of those of one tile."""
    planes = math.prod(spec.w_shape[2:]) + spec.channels + spec.filters
    return COMPLEX_BYTES * frequencies(side) * planes


@cache
def tile_side(spec: ConvSpec) -> int | None:
    """T: the side that costs least, of those that hold the kernel and whose scratch is in bounds; None: there is none.

    It follows from the problem alone.
    """
    sides = [s for s in SIDES if s >= max(spec.extent) and least_scratch(spec, s) <= SCRATCH_BYTES]
    return min(sides, key=lambda side: cost(spec, side), default=None)


def parts_and_chunks(spec: ConvSpec, direction: str, side: int) -> Pair:
    """Parts of the sums, and chunks of tiles that fit the scratch."""
    tiles = spec.batch * math.prod(tile_counts(spec, direction, side))
    plane_bytes = COMPLEX_BYTES * frequencies(side)
    weights_bytes = plane_bytes * math.prod(spec.w_shape[2:])
    tile_bytes = plane_bytes * (spec.channels + spec.filters)
    parts = 1
    if direction == GRAD_WEIGHTS:
        rows, _, columns = product_sizes(spec, direction, tiles)
        blocks = product_of(rows, columns).blocks(rows, columns) * frequencies(side) * spec.groups
        parts = min(-(-ENOUGH_BLOCKS // blocks), -(-tiles // SHORTEST_PART), SCRATCH_BYTES // (4 * weights_bytes))
        parts = max(1, parts)
    most = max(1, (SCRATCH_BYTES - parts * weights_bytes) // tile_bytes)
    return parts, -(-tiles // most)


def tiling(spec: ConvSpec, direction: str) -> Tiling:
    """The cut of a problem that ``why_not`` has nothing against."""
    side = tile_side(spec)
    counts = tile_counts(spec, direction, side)
    tiles = spec.batch * math.prod(counts)
    parts, chunks = parts_and_chunks(spec, direction, side)
    cuts = [chunk * tiles // chunks for chunk in range(chunks + 1)]
    return Tiling(side, advances(spec, side), counts, tuple(map(range, cuts, cuts[1:])), parts)


def product_sizes(spec: ConvSpec, direction: str, tiles: int) -> tuple[int, int, int]:
    """Rows, terms and columns of a group's product at one frequency."""
    channels, filters = spec.channels // spec.groups, spec.filters // spec.groups
    return {
        FORWARD: (tiles, channels, filters),
        GRAD_INPUT: (tiles, filters, channels),
        GRAD_WEIGHTS: (channels, tiles, filters),
    }[direction]


def product_steps(spec: ConvSpec, direction: str) -> tuple[tuple[int, int, int], ...]:
    """How far apart rows, terms, columns and groups are in the planes of both factors and of the result."""
    c, f = spec.channels, spec.filters
    channels, filters = c // spec.groups, f // spec.groups
    return {
        FORWARD: ((c, 1, channels), (f, 1, filters), (f, 1, filters)),
        GRAD_INPUT: ((f, 1, filters), (1, f, filters), (c, 1, channels)),
        GRAD_WEIGHTS: ((1, c, channels), (f, 1, filters), (f, 1, filters)),
    }[direction]


def product_of(rows: int, columns: int) -> Product:
    """The block shape that suits a product."""
    return min(PRODUCTS, key=lambda product: product.cost(rows, columns))


def spectra(spec: ConvSpec, direction: str) -> tuple[Shape, Shape, Shape]:
    """(parts, frequencies, 2, planes) of both factors and of the result, for the largest chunk: the scratch."""
    cut = tiling(spec, direction)
    tiles = max(map(len, cut.chunks))
    many, weights = frequencies(cut.side), math.prod(spec.w_shape[2:])
    images = (1, many, 2, tiles * spec.channels), (1, many, 2, tiles * spec.filters)
    if direction == GRAD_WEIGHTS:
        return *images, (cut.parts, many, 2, weights)
    first, last = images if direction == FORWARD else reversed(images)
    return first, (1, many, 2, weights), last


def why_not(spec: ConvSpec, direction: str) -> str | None:
    """The reason why no tile serves a problem, or None."""
    side = tile_side(spec)
    if side is not None:
        _, chunks = parts_and_chunks(spec, direction, side)
        if chunks <= MOST_CHUNKS:
            return None
        return f"its tiles take {chunks} chunks of {SCRATCH_BYTES} bytes of scratch; a call has at most {MOST_CHUNKS}"
    fitting = [side for side in SIDES if side >= max(spec.extent)]
    if not fitting:
        return (
            f"its kernel spans {spec.extent[0]}x{spec.extent[1]} pixels; the largest tile has {SIDES[-1]}x{SIDES[-1]}"
        )
    needed = least_scratch(spec, fitting[0])
    return f"the spectra of its weights and of one tile take {needed} bytes; scratch has at most {SCRATCH_BYTES}"


@dataclass(frozen=True)
class PackedWeights:
    """Transformed weights, on the device: what ``pack`` gives, in place of w."""

    spectrum: Any


class NumbaCudaViaFFT(CudaPlan):
    """Three directions on one stream, which share their scratch; packed weights have memory of their own."""

    spec: ConvSpec

    @classmethod
    def launches(cls, spec, direction):
        cut = tiling(spec, direction)
        weights = math.prod(spec.w_shape[2:])
        every = []
        for tiles in map(len, cut.chunks):
            rows, _, columns = product_sizes(spec, direction, tiles)
            product = product_of(rows, columns)
            grid = product.blocks(rows, columns), frequencies(cut.side), spec.groups * cut.parts
            multiply = Launch(PRODUCTS[product], grid)
            of_x, of_y = (tiles * planes for planes in (spec.channels, spec.filters))
            if direction == GRAD_WEIGHTS:
                every += [over_planes(TO_SPECTRUM, cut.side, of_x), over_planes(TO_SPECTRUM, cut.side, of_y), multiply]
                every += [Launch(_sum_tiles, (-(-spec.filters // FILTERS), 1, 1))] if spec.bias else []
            else:
                first, last = (of_x, of_y) if direction == FORWARD else (of_y, of_x)
                every += [over_planes(TO_SPECTRUM, cut.side, first), multiply]
                every += [over_planes(FROM_SPECTRUM, cut.side, last)]
        if direction == GRAD_WEIGHTS:
            return *every, over_planes(FROM_SPECTRUM, cut.side, weights)
        return over_planes(TO_SPECTRUM, cut.side, weights), *every

    @classmethod
    def scratch_bytes(cls, spec, directions):
        return max(sum(map(_bytes, spectra(spec, direction))) for direction in directions)

    def prepare(self):
        super().prepare()
        spec = self.spec
        kh, kw, *channels = spec.w_shape
        self._w_image = (1, kh, kw, math.prod(channels))
        self._no_bias = self.device.put(np.zeros(1, np.float32))
        self._packed = None
        self._work = {direction: self._lay_out(direction) for direction in self.directions}
        for direction in self.directions:
            if direction != GRAD_WEIGHTS:
                self._launches["pack"] = self._launches[direction][:1]
                self._launches[f"packed {direction}"] = self._launches[direction][1:]

    def pack(self, w):
        """Transform the weights into memory of the plan; what it gives serves both forward and grad_input."""
        if "pack" not in self._launches:
            return super().pack(w)
        if self._packed is None:
            shape = (1, frequencies(tile_side(self.spec)), 2, self._w_image[3])
            self._packed = PackedWeights(self.allocate(4 * math.prod(shape)).view("float32").reshape(shape))
        self.enqueue("pack", self._of_weights(w, self._packed.spectrum))
        return self._packed

    def forward(self, x, w, b, out):
        relu = self.spec.activation == "relu"
        self._convolve(FORWARD, x, w, out, self._no_bias if b is None else b, b is not None, relu)

    def grad_input(self, dy, w, dx):
        self._convolve(GRAD_INPUT, dy, w, dx, self._no_bias, False, False)

    def grad_weights(self, x, dy, dw, db):
        spec = self.spec
        (top, _), (left, _) = spec.pads
        cut, chunks = self._work[GRAD_WEIGHTS]
        steps = product_steps(spec, GRAD_WEIGHTS)
        grid = cut.tiles, cut.advance
        calls = []
        for tiles, (of_x, of_dy, of_dw) in zip(cut.chunks, chunks, strict=True):
            sizes = product_sizes(spec, GRAD_WEIGHTS, len(tiles))
            add = tiles.start > 0
            calls.append((x, of_x, tiles.start, *grid, (top, left), (1, 1), (cut.side, cut.side)))
            calls.append((dy, of_dy, tiles.start, *grid, (0, 0), spec.stride, cut.advance))
            calls.append((of_x, of_dy, of_dw, sizes, *steps, spec.groups, True, add))
            calls += [] if db is None else [(of_dy, db, add)]
        image = dw.reshape(self._w_image)
        taps = ((1, 1), spec.extent, (0, 0), spec.dilation)
        self.enqueue(GRAD_WEIGHTS, *calls, (of_dw, self._no_bias, image, 0, *taps, False, False))

    def _convolve(self, direction, source, w, out, bias, biased, relu):
        spec = self.spec
        cut, chunks = self._work[direction]
        (top, _), (left, _) = spec.pads
        before, shift, spread, step = (top, left), (0, 0), (1, 1), spec.stride
        if direction == GRAD_INPUT:
            shift = (spec.extent[0] - 1, spec.extent[1] - 1)
            before, spread, step = (shift[0] - top, shift[1] - left), spec.stride, (1, 1)
        is_packed = isinstance(w, PackedWeights)
        weights = w.spectrum if is_packed else chunks[0][1]
        calls = [] if is_packed else [self._of_weights(w, weights)]
        steps = product_steps(spec, direction)
        grid = cut.tiles, cut.advance
        for tiles, (of_source, _, of_out) in zip(cut.chunks, chunks, strict=True):
            sizes = product_sizes(spec, direction, len(tiles))
            calls.append((source, of_source, tiles.start, *grid, before, spread, (cut.side, cut.side)))
            calls.append((of_source, weights, of_out, sizes, *steps, spec.groups, direction == FORWARD, False))
            calls.append((of_out, bias, out, tiles.start, *grid, shift, step, biased, relu))
        self.enqueue(f"packed {direction}" if is_packed else direction, *calls)

    def _of_weights(self, w, spectrum):
        """Arguments that transform the weights: one image of one tile, its pixels the dilation apart."""
        side = tile_side(self.spec)
        image = w.reshape(self._w_image)
        return image, spectrum, 0, (1, 1), (side, side), (0, 0), self.spec.dilation, (side, side)

    def _lay_out(self, direction: str) -> tuple[Tiling, list[list[Any]]]:
        """The cut, and per chunk the views of the scratch that hold its spectra."""
        cut = tiling(self.spec, direction)
        shapes = spectra(self.spec, direction)
        largest = max(map(len, cut.chunks))
        held = (0, 1) if direction == GRAD_WEIGHTS else (0, 2)
        every = []
        for tiles in map(len, cut.chunks):
            views, offset = [], 0
            for number, shape in enumerate(shapes):
                planes = shape[3] // largest * tiles if number in held else shape[3]
                views.append(self.scratch((*shape[:3], planes), offset=offset))
                offset += _bytes(shape)
            every.append(views)
        return cut, every


def _bytes(shape: Shape) -> int:
    """Bytes of a spectrum, rounded up so that the next one is aligned."""
    count = math.prod(shape) * 4
    return -(-count // ALIGNMENT) * ALIGNMENT


IMPL = implementation(
    NumbaCudaViaFFT,
    algorithm=FFT,
    note="real-to-complex FFTs of overlapping tiles in shared memory, a matrix product per frequency",
    why_not=why_not,
)
