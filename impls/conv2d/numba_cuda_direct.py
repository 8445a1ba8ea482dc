"""Convolution by its definition on a CUDA device: no shared memory, a small tile of results in each thread's registers.

A thread computes ``columns`` neighbouring pixels of a row for ``filters`` filters: a weight that it loads serves every
pixel, a pixel every filter. Neighbouring threads work on neighbouring filters, so that loads of weights and stores are
coalesced and loads of pixels are broadcast; the next neighbours are a row below, and meet the left and right border
together. A tile inside the image does not test its columns: its taps of a row follow each other in x as they do in w.

grad_input is the same kernel. With stride s the rows r = a, a + s, a + 2s ... of dx meet the same taps, and between
them and those taps stands a correlation of dy with stride 1: one for each residue a of the rows and each of the
columns, all in one launch. The weights are first turned round, those of a residue next to each other.

grad_weights has too few results to fill a device: its images' rows are cut into slices, a thread sums one slice of
``terms`` neighbouring (v, c) by ``filters`` weights, and a second kernel adds the slices in a fixed order. No atomics:
the same input gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from impls.contract import DIRECT
from impls.cuda_setup import (
    FLAG,
    VECTOR,
    ZERO,
    CudaPlan,
    Kernel,
    Launch,
    cuda,
    device_function,
    divide,
    flat,
    implementation,
    int32s,
    kernel,
    needs_wide_indices,
    one_thread_each,
)
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ITEMSIZE, ConvSpec, Shape

INDICES = "int32[::1]"
TABLE = "int32[:,::1]"

TILES = ((8, 4), (4, 4), (2, 2), (4, 1), (1, 1))
"""(columns, filters) or (terms, filters) of a thread, the fewest loads per product first."""

LEAST_USED = 0.75
"""Of a tile's places, those that must hold results: a larger tile with more idle places gains nothing."""

ENOUGH_THREADS = 1 << 15
"""Where a smaller tile would only add loads: two warps for each of some 500 schedulers, each with independent sums."""

MAX_SLICES = 256
"""Where adding the slices (one thread per weight) takes about as long as summing within them."""

MAX_PARTIALS = 1 << 20
"""Where the weights alone are not more: 4 MB of scratch, and ENOUGH_THREADS tiles of 4 x 4 twice over."""

CHAINS = 8
"""Slices that are added at a time, so that as many loads are under way."""


@device_function
def _ceiling(value, divisor):
    """value / divisor rounded up; the value may be negative."""
    return -(-value // divisor)


def _products(height: int, width: int) -> Any:
    """The device function that adds outer products to a tile of so many rows and columns."""

    @device_function
    def add(total, count, x, pixel, pixel_step, shift, w, place, place_step, own, guarded, offset, column, limit):
        """total[p, q] += x[pixel + shift[p]] * w[place + own[q]], ``count`` times, both a step further each time.

        ``guarded``, a constant: leave out the rows of the tile where offset + column[p] lies outside [0, limit).
        """
        right = cuda.local.array(width, np.float32)
        for _ in range(count):
            for q in range(width):
                right[q] = w[np.uint64(np.int32(place + own[q]))]
            for p in range(height):
                if not guarded or 0 <= offset + column[p] < limit:
                    left = x[np.uint64(np.int32(pixel + shift[p]))]
                    for q in range(width):
                        total[p, q] += left * right[q]
            pixel = np.int32(pixel + pixel_step)
            place = np.int32(place + place_step)

    return add


def _correlation(columns_each: int, filters_each: int) -> Kernel:
    """A correlation whose threads compute so many neighbouring pixels of a row for so many filters."""
    add = _products(columns_each, filters_each)

    @kernel(*[VECTOR] * 4, TABLE, TABLE, "UniTuple(int32, 15)", FLAG, variant=f"{columns_each}x{filters_each}")
    def _correlate(x, w, b, y, rows, columns, geometry, relu):
        """One thread per tile of y, one row of the grid's blocks per class of rows and class of columns (Axis)."""
        batch, height, width, channels, out_height, out_width, filters, groups, kw = geometry[:9]
        step_i, step_j, apart_u, apart_v, spread_i, spread_j = geometry[9:]
        down, across = divide(cuda.blockIdx.y, columns.shape[0])
        if down >= rows.shape[0]:
            return
        first_u, taps_u, top, count_i = rows[down, 0], rows[down, 1], rows[down, 2], rows[down, 3]
        first_v, taps_v, left, count_j = columns[across, 0], columns[across, 1], columns[across, 2], columns[across, 3]
        depth = channels // groups
        share = filters // groups
        lanes = (share + filters_each - 1) // filters_each
        tiles = (count_j + columns_each - 1) // columns_each
        index = cuda.grid(1)
        if index >= batch * count_i * tiles * groups * lanes:
            return
        rest, lane = divide(index, lanes)
        rest, group = divide(rest, groups)
        rest, i = divide(rest, count_i)
        n, tile = divide(rest, tiles)
        j = tile * columns_each
        total = cuda.local.array((columns_each, filters_each), np.float32)
        own = cuda.local.array(filters_each, np.int32)
        column = cuda.local.array(columns_each, np.int32)
        shift = cuda.local.array(columns_each, np.int32)
        for p in range(columns_each):
            column[p] = p * step_j
            shift[p] = column[p] * channels
        for q in range(filters_each):
            own[q] = group * share + min(lane + q * lanes, share - 1)
            for p in range(columns_each):
                total[p, q] = b[own[q]]
        start = left + j * step_j
        ahead = column[columns_each - 1]
        runs, length = taps_v, depth
        if groups == 1 and apart_v == 1 and start >= 0 and start + taps_v - 1 + ahead < width:
            runs, length = 1, taps_v * depth
        for u in range(taps_u):
            row = top + i * step_i + u * apart_u
            if 0 <= row < height:
                for v in range(runs):
                    first = start + v * apart_v
                    pixel = np.int32(((n * height + row) * width + first) * channels + group * depth)
                    place = np.int32(((first_u + u) * kw + first_v + v) * depth * filters)
                    if first >= 0 and first + ahead < width:
                        add(total, length, x, pixel, 1, shift, w, place, filters, own, False, first, column, width)
                    else:
                        add(total, length, x, pixel, 1, shift, w, place, filters, own, True, first, column, width)
        out_row = down + i * spread_i
        for p in range(columns_each):
            out_column = across + (j + p) * spread_j
            if j + p < count_j:
                for q in range(filters_each):
                    if lane + q * lanes < share:
                        value = total[p, q]
                        if relu and value < ZERO:
                            value = ZERO
                        y[np.uint64(((n * out_height + out_row) * out_width + out_column) * filters + own[q])] = value

    return _correlate


def _slices_of_sums(terms_each: int, filters_each: int) -> Kernel:
    """The sums of a weight gradient over slices of rows, so many neighbouring (v, c) by so many filters a thread."""
    add = _products(terms_each, filters_each)

    @kernel(VECTOR, VECTOR, VECTOR, "UniTuple(int32, 18)", variant=f"{terms_each}x{filters_each}")
    def _sum_slices(x, dy, partial, geometry):
        """One thread per tile of weights and slice of rows, and one per bias and slice.

        partial is (slices, weights + biases). Columns of dy in [start, stop) meet pixels with every term of the tile.
        """
        batch, height, width, channels, out_height, out_width, filters, groups, kh, kw = geometry[:10]
        step_i, step_j, apart_u, apart_v, top, left, slices, biases = geometry[10:]
        depth = channels // groups
        share = filters // groups
        lanes = (share + filters_each - 1) // filters_each
        terms = kw * depth
        tiles = (terms + terms_each - 1) // terms_each
        threads = kh * tiles * groups * lanes + biases
        index = cuda.grid(1)
        if index >= slices * threads:
            return
        part, item = divide(index, threads)
        first_row = np.int32(part * batch * out_height // slices)
        stop_row = np.int32((part + 1) * batch * out_height // slices)
        out = part * (kh * terms * filters + biases)
        if item >= threads - biases:
            f = item - (threads - biases)
            bias = ZERO
            for pixel in range(first_row * out_width, stop_row * out_width):
                bias += dy[np.uint64(np.int32(pixel * filters + f))]
            partial[np.uint64(out + kh * terms * filters + f)] = bias
            return
        rest, lane = divide(item, lanes)
        rest, group = divide(rest, groups)
        u, tile = divide(rest, tiles)
        total = cuda.local.array((terms_each, filters_each), np.float32)
        own = cuda.local.array(filters_each, np.int32)
        column = cuda.local.array(terms_each, np.int32)
        shift = cuda.local.array(terms_each, np.int32)
        for q in range(filters_each):
            own[q] = group * share + min(lane + q * lanes, share - 1)
        start, stop = 0, out_width
        for r in range(terms_each):
            v, c = divide(min(tile * terms_each + r, terms - 1), depth)
            column[r] = v * apart_v - left
            shift[r] = column[r] * channels + group * depth + c
            start = max(start, _ceiling(-column[r], step_j))
            stop = min(stop, _ceiling(width - column[r], step_j))
            for q in range(filters_each):
                total[r, q] = ZERO
        stop = max(start, stop)
        step = step_j * channels
        for k in range(first_row, stop_row):
            n, i = divide(k, out_height)
            row = i * step_i + u * apart_u - top
            if 0 <= row < height:
                corner = (n * height + row) * width * channels
                pixel = np.int32(corner + start * step)
                place = np.int32((k * out_width + start) * filters)
                add(total, stop - start, x, pixel, step, shift, dy, place, filters, own, False, 0, column, width)
                for border in range(out_width - (stop - start)):
                    j = border if border < start else border + stop - start
                    pixel = np.int32(corner + j * step)
                    place = np.int32((k * out_width + j) * filters)
                    add(total, 1, x, pixel, step, shift, dy, place, filters, own, True, j * step_j, column, width)
        for r in range(terms_each):
            term = tile * terms_each + r
            if term < terms:
                for q in range(filters_each):
                    if lane + q * lanes < share:
                        partial[np.uint64(out + (u * terms + term) * filters + own[q])] = total[r, q]

    return _sum_slices


CORRELATIONS = {tile: _correlation(*tile) for tile in TILES}
SLICES_OF_SUMS = {tile: _slices_of_sums(*tile) for tile in TILES}


@kernel(VECTOR, VECTOR, VECTOR, "UniTuple(int32, 3)")
def _add_slices(partial, dw, db, geometry):
    """One thread per weight and bias; geometry: slices, weights, biases."""
    slices, weights, biases = geometry
    items = weights + biases
    item = cuda.grid(1)
    if item >= items:
        return
    sums = cuda.local.array(CHAINS, np.float32)
    for chain in range(CHAINS):
        sums[chain] = ZERO
    for part in range(0, slices, CHAINS):
        for chain in range(CHAINS):
            if part + chain < slices:
                sums[chain] += partial[np.uint64((part + chain) * items + item)]
    total = ZERO
    for chain in range(CHAINS):
        total += sums[chain]
    if item < weights:
        dw[item] = total
    else:
        db[item - weights] = total


@kernel(VECTOR, VECTOR, INDICES, INDICES, "UniTuple(int32, 6)")
def _turn_round(w, turned, rows, columns, geometry):
    """(KH, KW, C / groups, F) to (rows, columns, F / groups, C), one thread per value; rows and columns name taps."""
    taps_u, taps_v, kw, channels, filters, groups = geometry
    share = filters // groups
    index = cuda.grid(1)
    if index >= taps_u * taps_v * share * channels:
        return
    rest, channel = divide(index, channels)
    rest, f = divide(rest, share)
    u, v = divide(rest, taps_v)
    group, c = divide(channel, channels // groups)
    place = ((rows[u] * kw + columns[v]) * (channels // groups) + c) * filters + group * share + f
    turned[index] = w[np.uint64(place)]


@dataclass(frozen=True)
class Axis:
    """One axis of a correlation whose results fall into classes.

    ``classes``: (first tap, taps, first pixel, results). Result m of class a is pixel a + m * spread of the output;
    it sums taps t = 0, 1 ... of its class, which lie on pixels first pixel + m * stride + t * dilation of the input.
    ``order``: the taps of the convolution, in the order in which the classes count them.
    """

    classes: tuple[tuple[int, int, int, int], ...]
    order: tuple[int, ...]
    stride: int
    dilation: int
    spread: int

    @property
    def results(self) -> int:
        """Of the largest class, which is the first."""
        return self.classes[0][3]


def forward_axis(taps: int, stride: int, dilation: int, before: int, results: int) -> Axis:
    """All results are of one class, and meet every tap."""
    return Axis(((0, taps, -before, results),), tuple(range(taps)), stride, dilation, spread=1)


def gradient_axis(taps: int, stride: int, dilation: int, before: int, pixels: int) -> Axis:
    """One class for each residue of the pixels modulo the stride.

    Pixel r meets tap u under the window at i where i * stride + u * dilation = r + before. The taps of one class
    follow each other at stride / gcd(stride, dilation), so the windows that they lie under at dilation / gcd.
    """
    classes, order = [], []
    for residue in range(min(stride, pixels)):
        own = [u for u in reversed(range(taps)) if (residue + before - u * dilation) % stride == 0]
        first = (residue + before - own[0] * dilation) // stride if own else 0
        classes.append((len(order), len(own), first, -(-(pixels - residue) // stride)))
        order += own
    return Axis(tuple(classes), tuple(order), 1, dilation // math.gcd(stride, dilation), spread=stride)


@dataclass(frozen=True)
class Correlation:
    """What _correlate computes: of ``source`` (N, H, W, C), into ``result`` (N, OH, OW, F)."""

    source: Shape
    result: Shape
    groups: int
    rows: Axis
    columns: Axis

    @property
    def classes(self) -> int:
        """Classes of rows times classes of columns."""
        return len(self.rows.classes) * len(self.columns.classes)

    def threads(self, tile: tuple[int, int]) -> int:
        """Of the largest class: one per tile."""
        tiles = -(-self.columns.results // tile[0]) * self.groups * -(-self.result[3] // self.groups // tile[1])
        return self.result[0] * self.rows.results * tiles

    @property
    def tile(self) -> tuple[int, int]:
        """(columns, filters) of a thread."""
        return fitting(lambda tile: self.classes * self.threads(tile), math.prod(self.result))

    @property
    def geometry(self) -> tuple[np.int32, ...]:
        """The numbers that _correlate unpacks."""
        steps = (axis.stride for axis in (self.rows, self.columns))
        gaps = (axis.dilation for axis in (self.rows, self.columns))
        spreads = (axis.spread for axis in (self.rows, self.columns))
        taps_across = len(self.columns.order)
        return int32s(*self.source, *self.result[1:], self.groups, taps_across, *steps, *gaps, *spreads)


def correlation(spec: ConvSpec, direction: str) -> Correlation:
    """forward, or grad_input as the correlation that it is."""
    make, source, result = {
        FORWARD: (forward_axis, spec.x_shape, spec.y_shape),
        GRAD_INPUT: (gradient_axis, spec.y_shape, spec.x_shape),
    }[direction]
    befores = (before for before, _ in spec.pads)
    rows, columns = map(make, spec.kernel, spec.stride, spec.dilation, befores, result[1:3])
    return Correlation(source, result, spec.groups, rows, columns)


def fitting(threads: Callable[[tuple[int, int]], int], results: int) -> tuple[int, int]:
    """The first tile of TILES that leaves ENOUGH_THREADS and few idle places, or the last."""
    for tile in TILES[:-1]:
        count = threads(tile)
        if count >= ENOUGH_THREADS and results >= LEAST_USED * count * math.prod(tile):
            return tile
    return TILES[-1]


def partial_shape(spec: ConvSpec) -> Shape:
    """(slices, weights + biases): scratch of grad_weights. It depends on the spec alone, and so do the sums' bits."""
    items = math.prod(spec.w_shape) + (spec.filters if spec.bias else 0)
    rows = spec.batch * spec.y_shape[1]
    return max(1, min(rows, MAX_SLICES, MAX_PARTIALS // items)), items


def weight_tiles(spec: ConvSpec, tile: tuple[int, int]) -> int:
    """Threads that sum one slice of all weights."""
    kh, kw, channels, filters = spec.w_shape
    return kh * -(-kw * channels // tile[0]) * spec.groups * -(-filters // spec.groups // tile[1])


def weight_tile(spec: ConvSpec) -> tuple[int, int]:
    """(terms, filters) of a thread of _sum_slices."""
    slices, _ = partial_shape(spec)
    return fitting(lambda tile: slices * weight_tiles(spec, tile), slices * math.prod(spec.w_shape))


class NumbaCudaDirect(CudaPlan):
    """Three directions on one stream; grad_weights and grad_input share their scratch."""

    spec: ConvSpec

    @classmethod
    def launches(cls, spec, direction):
        if direction == GRAD_WEIGHTS:
            slices, items = partial_shape(spec)
            tile = weight_tile(spec)
            threads = slices * (weight_tiles(spec, tile) + items - math.prod(spec.w_shape))
            return one_thread_each(SLICES_OF_SUMS[tile], threads), one_thread_each(_add_slices, items)
        what = correlation(spec, direction)
        kernel = CORRELATIONS[what.tile]
        correlate = Launch(kernel, (-(-what.threads(what.tile) // kernel.threads), what.classes, 1))
        if direction == FORWARD:
            return (correlate,)
        return one_thread_each(_turn_round, math.prod(spec.w_shape)), correlate

    @classmethod
    def scratch_bytes(cls, spec, directions):
        counts = {
            FORWARD: 0,
            GRAD_WEIGHTS: math.prod(partial_shape(spec)),
            GRAD_INPUT: math.prod(spec.w_shape),
        }
        return max(counts[direction] for direction in directions) * ITEMSIZE[spec.dtype]

    def prepare(self):
        super().prepare()
        spec = self.spec
        put = self.device.put
        self._zeros = put(np.zeros(max(spec.filters, spec.channels), np.float32))
        self._scratch = self.scratch((self.workspace_bytes // ITEMSIZE[spec.dtype],)) if self.workspace_bytes else None
        self._correlations = {}
        for direction in {FORWARD, GRAD_INPUT} & set(self.directions):
            what = correlation(spec, direction)
            tables = (put(np.array(axis.classes, np.int32)) for axis in (what.rows, what.columns))
            self._correlations[direction] = *tables, what.geometry
            if direction == GRAD_INPUT:
                self._orders = [put(np.array(axis.order or (0,), np.int32)) for axis in (what.rows, what.columns)]
                counts = len(what.rows.order), len(what.columns.order), spec.kernel[1]
                self._turning = int32s(*counts, spec.channels, spec.filters, spec.groups)
        slices, items = partial_shape(spec)
        weights = math.prod(spec.w_shape)
        self._adding = int32s(slices, weights, items - weights)
        (top, _), (left, _) = spec.pads
        sizes = *spec.x_shape, *spec.y_shape[1:], spec.groups, *spec.kernel
        self._summing = int32s(*sizes, *spec.stride, *spec.dilation, top, left, slices, items - weights)

    def forward(self, x, w, b, out):
        b = self._zeros if b is None else b
        relu = self.spec.activation == "relu"
        self.enqueue(FORWARD, (flat(x), flat(w), b, flat(out), *self._correlations[FORWARD], relu))

    def grad_weights(self, x, dy, dw, db):
        db = self._zeros if db is None else db
        summing = flat(x), flat(dy), self._scratch, self._summing
        self.enqueue(GRAD_WEIGHTS, summing, (self._scratch, flat(dw), db, self._adding))

    def grad_input(self, dy, w, dx):
        turning = flat(w), self._scratch, *self._orders, self._turning
        correlating = flat(dy), self._scratch, self._zeros, flat(dx), *self._correlations[GRAD_INPUT], False
        self.enqueue(GRAD_INPUT, turning, correlating)


IMPL = implementation(
    NumbaCudaDirect,
    algorithm=DIRECT,
    note="a tile of results in each thread's registers, no shared memory",
    why_not=needs_wide_indices,
)
