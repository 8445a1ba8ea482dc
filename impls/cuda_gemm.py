"""Convolution as a matrix product on a CUDA device, without unrolling the image: an implicit GEMM in tiles.

    forward       y[m, f]  = sum over k of X[m, k] W[k, f]
    grad_input    the same with dy in place of x, and w read turned: sums over (tap, f) instead of (tap, c)
    grad_weights  dw[k, f] = sum over m of X[m, k] dy[m, f], and db as one row more, of ones

m counts output pixels, k counts (tap row, tap column, channel of the group), so that a first layer of one channel
wastes nothing. X is never made: X[m, k] is ``source[corner[m] + offset[k]]``, or 0 where the tap of k meets padding.
What depends on k comes from a table that the host makes once a plan, what depends on m is decoded once a block: the
inner loops divide nothing.

A block computes a tile of BM x BN results. Its threads load together BK slices of X and W, neighbours on neighbouring
addresses, into shared memory, X with m along the rows; each thread then keeps TM x TN results in registers. While it
multiplies, the next slices are on their way. Where results give too few blocks, the sum is cut into slices and a
second kernel adds them in their order: no atomics, the same input gives the same bits.

A stride makes the input gradient a sum over few taps, which are others for every residue of the pixel's position
modulo the stride. Each residue is a ``phase`` with taps and pixels of its own: nothing is tested for divisibility, and
a phase without taps writes zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numba.core import config

from impls.cuda_setup import (
    BLOCK,
    FLAG,
    PAIR,
    VECTOR,
    ZERO,
    CudaPlan,
    Kernel,
    Launch,
    cuda,
    device_function,
    kernel,
)
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ITEMSIZE, ConvSpec, Pair, Shape

DEPTH = 8
"""Slices of a tile's sum that are in shared memory at a time: 32 bytes of channels, a whole sector of memory."""

PAD = 4
"""Values between the rows of a shared tile. Eight slices of a column then lie in eight different groups of banks, and
rows still begin at 16 bytes, so that four values are one load."""

ALIGNED = None if config.ENABLE_CUDASIM else 16
"""Bytes; the simulator takes no alignment."""

LIMIT = 1 << 14
"""Rows and columns of a padded image must be fewer: a position is packed as row * 2**16 + column, with signs."""

OUTSIDE = -(1 << 30)
"""A packed shift that leads from every position above the image."""

BORROWS = np.int32(-0x7FFF8000)
"""The signs of both halves of a packed position."""

MAX_VALUES = 1 << 31
"""Indices are 32-bit within an array."""

ENOUGH_THREADS = 132 * 512
"""What the largest devices hold at a time of threads with 128 registers: more slices than that takes gain nothing."""

MIN_STEPS = 4
"""Steps of DEPTH in a slice, at least: below, adding the slices costs more than it gains."""

MANY_SLICES = 64
"""Slices that one thread would take too long to add, where the values are few."""

MAX_PARTIAL = 1 << 22
"""Values of scratch for slices (16 MB, which stay in the second cache), unless one slice alone is more."""

TABLE = "int32[:,::1]"
SHAPE = "UniTuple(int64, 4)"
NUMBER = "int64"


@dataclass(frozen=True)
class Tile:
    """Rows x columns of results for a block, height x width of them for a thread, in squares of four."""

    rows: int
    columns: int
    height: int
    width: int
    speed: float
    """Share of multiply-adds among the instructions of the inner loops, compiled for sm_90: to choose by."""

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.rows // self.height * (self.columns // self.width)

    def shared_bytes(self, pixels: int) -> int:
        """A tile of each factor, and three indices for each decoded pixel."""
        return 4 * (DEPTH * (self.rows + self.columns + 2 * PAD) + 3 * pixels)

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    def count(self, rows: int, columns: int) -> int:
        """Tiles that cover so many results."""
        return -(-rows // self.rows) * -(-columns // self.columns)


TILES = (
    Tile(128, 64, 8, 8, speed=0.65),
    Tile(128, 32, 8, 4, speed=0.55),
    Tile(128, 16, 4, 4, speed=0.4),
    Tile(32, 32, 4, 4, speed=0.4),
)


@device_function
def _inside(position, last):
    """Whether a packed position lies in the image whose last one is given: neither is negative, nor what is between."""
    return (position | np.int32(last - position)) & BORROWS == 0


def _accumulation(tile: Tile) -> Any:
    """The device function that adds DEPTH products to each result of a thread."""
    height, width = tile.height, tile.width
    down, across = 4 * (tile.rows // height), 4 * (tile.columns // width)
    a_row, b_row = np.uint64(tile.rows + PAD), np.uint64(tile.columns + PAD)

    @device_function
    def accumulate(sums, column, row, a, b, at_a, at_b):
        for _ in range(DEPTH // 2):
            for _ in range(2):
                for i in range(height):
                    column[i] = a[at_a + np.uint64(i // 4 * down + i % 4)]
                for j in range(width):
                    row[j] = b[at_b + np.uint64(j // 4 * across + j % 4)]
                for i in range(height):
                    for j in range(width):
                        sums[i * width + j] += column[i] * row[j]
                at_a += a_row
                at_b += b_row

    return accumulate


def _multiplication(tile: Tile, *, turned: bool) -> Kernel:
    """The kernel of forward, and with ``turned`` weights of grad_input: (x, y, z) = (tile, slice, phase and group)."""
    threads, rows, columns, height, width = tile.threads, tile.rows, tile.columns, tile.height, tile.width
    across = columns // width
    a_row, b_row, results = rows + PAD, columns + PAD, height * width
    a_size, b_size = DEPTH * a_row, DEPTH * b_row
    a_loads, b_loads = rows * DEPTH // threads, columns * DEPTH // threads
    a_down = threads // DEPTH
    b_down, b_right = (0, threads // DEPTH) if turned else (threads // columns, 0)
    accumulate = _accumulation(tile)

    @kernel(
        *(VECTOR, TABLE, TABLE, VECTOR, VECTOR, VECTOR, SHAPE, SHAPE, PAIR, PAIR, NUMBER, NUMBER, FLAG),
        threads=threads,
        shared_bytes=tile.shared_bytes(rows),
        variant=f"{tile} turned" if turned else str(tile),
    )
    def _multiply(
        source, table, phases, weights, bias, out, source_shape, out_shape, source_step, out_step, groups, slices, relu
    ):
        """out (slices, N, H, W, C) = source gathered as the table says, times weights, for one tile of one slice."""
        a = cuda.shared.array(a_size, np.float32, ALIGNED)
        b = cuda.shared.array(b_size, np.float32, ALIGNED)
        positions = cuda.shared.array(rows, np.int32)
        corners = cuda.shared.array(rows, np.int32)
        targets = cuda.shared.array(rows, np.int32)
        sums = cuda.local.array(results, np.float32)
        column = cuda.local.array(height, np.float32)
        row = cuda.local.array(width, np.float32)
        a_next = cuda.local.array(a_loads, np.float32)
        b_next = cuda.local.array(b_loads, np.float32)
        a_positions = cuda.local.array(a_loads, np.int32)
        a_corners = cuda.local.array(a_loads, np.int32)

        thread = cuda.threadIdx.x
        part = cuda.blockIdx.y
        group, phase = cuda.blockIdx.z % groups, cuda.blockIdx.z // groups
        batch, source_high, source_wide, channels = source_shape
        _, out_high, out_wide, out_channels = out_shape
        inputs, outputs = channels // groups, out_channels // groups
        high, wide = phases[phase, 0], phases[phase, 1]
        pixels = batch * high * wide
        tiles_across = (outputs + columns - 1) // columns
        first_pixel = cuda.blockIdx.x // tiles_across * rows
        first_output = cuda.blockIdx.x % tiles_across * columns
        if first_pixel >= pixels:
            return

        if thread < rows:
            pixel = min(first_pixel + thread, pixels - 1)
            rest, j = pixel // wide, pixel % wide
            n, i = rest // high, rest % high
            down, right = i * source_step[0], j * source_step[1]
            positions[thread] = (down << 16) + right
            corners[thread] = ((n * source_high + down) * source_wide + right) * channels + group * inputs
            i, j = phases[phase, 2] + i * out_step[0], phases[phase, 3] + j * out_step[1]
            target = ((n * out_high + i) * out_wide + j) * out_channels + group * outputs
            targets[thread] = target if first_pixel + thread < pixels else -1
        cuda.syncthreads()

        a_k, a_m = thread % DEPTH, thread // DEPTH
        b_k, b_n = (a_k, a_m) if turned else (thread // columns, thread % columns)
        weight = first_output + b_n
        b_start = group * inputs + weight * channels if turned else group * outputs + weight
        a_store, b_store = np.uint64(a_k * a_row + a_m), np.uint64(b_k * b_row + b_n)
        for r in range(a_loads):
            a_positions[r] = positions[a_m + r * a_down]
            a_corners[r] = corners[a_m + r * a_down]
        for r in range(results):
            sums[r] = ZERO
        last_position = np.int32(((source_high - 1) << 16) + source_wide - 1)
        at_a = np.uint64(thread // across * 4)
        at_b = np.uint64(thread % across * 4)
        first = phases[phase, 4] + part * phases[phase, 5] // slices
        past = phases[phase, 4] + (part + 1) * phases[phase, 5] // slices
        for step in range(first, past + 1):  # loads run one step ahead of sums
            if step < past:
                k = np.uint64(step * DEPTH + a_k)
                shift, offset = table[0, k], table[1, k]
                for r in range(a_loads):
                    a_next[r] = ZERO
                    if _inside(np.int32(a_positions[r] + shift), last_position):
                        a_next[r] = source[np.uint64(np.int32(a_corners[r] + offset))]
                for r in range(b_loads):
                    k = np.uint64(step * DEPTH + b_k + r * b_down)
                    place, output = table[2, k], first_output + b_n + r * b_right
                    b_next[r] = ZERO
                    if place >= 0 and output < outputs:
                        b_next[r] = weights[np.uint64(np.int32(place + b_start + r * b_right * channels))]
            if step > first:
                accumulate(sums, column, row, a, b, at_a, at_b)
            cuda.syncthreads()
            if step < past:
                for r in range(a_loads):
                    a[a_store + np.uint64(r * a_down)] = a_next[r]
                for r in range(b_loads):
                    b[b_store + np.uint64(r * (b_down * b_row + b_right))] = b_next[r]
            cuda.syncthreads()

        start = part * batch * out_high * out_wide * out_channels
        for j in range(width):
            output = first_output + j // 4 * (across * 4) + thread % across * 4 + j % 4
            row[j] = bias[group * outputs + output] if output < outputs else ZERO
        for i in range(height):
            target = targets[i // 4 * (rows // height * 4) + thread // across * 4 + i % 4]
            if target >= 0:
                for j in range(width):
                    output = first_output + j // 4 * (across * 4) + thread % across * 4 + j % 4
                    if output < outputs:
                        total = sums[i * width + j] + row[j]
                        if relu and total < ZERO:
                            total = ZERO
                        out[np.uint64(start + target + output)] = total

    return _multiply


def _correlation(tile: Tile) -> Kernel:
    """The kernel of grad_weights: (x, y, z) = (tile, slice, group); a row of the tile is a k, or the bias."""
    threads, rows, columns, height, width = tile.threads, tile.rows, tile.columns, tile.height, tile.width
    across = columns // width
    a_row, b_row, results = rows + PAD, columns + PAD, height * width
    a_size, b_size = DEPTH * a_row, DEPTH * b_row
    a_loads, b_loads = rows * DEPTH // threads, columns * DEPTH // threads
    accumulate = _accumulation(tile)

    @kernel(
        *(VECTOR, TABLE, VECTOR, VECTOR, SHAPE, SHAPE, PAIR, NUMBER, NUMBER, NUMBER),
        threads=threads,
        shared_bytes=tile.shared_bytes(threads),
        variant=str(tile),
    )
    def _correlate(source, table, dy, partial, source_shape, dy_shape, source_step, groups, slices, items):
        """partial (slices, K + 1 for a bias, F) = source gathered as the table says, turned, times dy."""
        a = cuda.shared.array(a_size, np.float32, ALIGNED)
        b = cuda.shared.array(b_size, np.float32, ALIGNED)
        positions = cuda.shared.array(threads, np.int32)
        corners = cuda.shared.array(threads, np.int32)
        targets = cuda.shared.array(threads, np.int32)
        sums = cuda.local.array(results, np.float32)
        column = cuda.local.array(height, np.float32)
        row = cuda.local.array(width, np.float32)
        a_next = cuda.local.array(a_loads, np.float32)
        b_next = cuda.local.array(b_loads, np.float32)

        thread = cuda.threadIdx.x
        part, group = cuda.blockIdx.y, cuda.blockIdx.z
        batch, source_high, source_wide, channels = source_shape
        _, high, wide, filters = dy_shape
        inputs, outputs = channels // groups, filters // groups
        tiles_across = (outputs + columns - 1) // columns
        first_k = cuda.blockIdx.x // tiles_across * rows
        first_output = cuda.blockIdx.x % tiles_across * columns
        pixels = batch * high * wide
        steps = (pixels + DEPTH - 1) // DEPTH
        if first_k >= table.shape[1]:
            return

        a_k, a_m = thread % rows, thread // rows
        b_n, b_m = thread % columns, thread // columns
        a_store, b_store = np.uint64(a_m * a_row + a_k), np.uint64(b_m * b_row + b_n)
        shift = table[0, first_k + a_k]
        offset = table[1, first_k + a_k]
        fill = np.float32(table[2, first_k + a_k])
        for r in range(results):
            sums[r] = ZERO
        last_position = np.int32(((source_high - 1) << 16) + source_wide - 1)
        at_a = np.uint64(thread // across * 4)
        at_b = np.uint64(thread % across * 4)
        first, past = part * steps // slices, (part + 1) * steps // slices
        for step in range(first, past + 1):  # loads run one step ahead of sums
            if step < past:
                slot = (step - first) * DEPTH % threads
                if slot == 0:  # as many pixels as there are threads are decoded at a time
                    pixel = min(step * DEPTH + thread, pixels - 1)
                    rest, j = pixel // wide, pixel % wide
                    n, i = rest // high, rest % high
                    down, right = i * source_step[0], j * source_step[1]
                    positions[thread] = (down << 16) + right
                    corners[thread] = ((n * source_high + down) * source_wide + right) * channels + group * inputs
                    target = pixel * filters + group * outputs
                    targets[thread] = target if step * DEPTH + thread < pixels else -1
                    cuda.syncthreads()
                for r in range(a_loads):
                    m = np.uint64(slot + a_m + r * (threads // rows))
                    a_next[r] = fill
                    if _inside(np.int32(positions[m] + shift), last_position):
                        a_next[r] = source[np.uint64(np.int32(corners[m] + offset))]
                for r in range(b_loads):
                    target = targets[np.uint64(slot + b_m + r * (threads // columns))]
                    b_next[r] = ZERO
                    if target >= 0 and first_output + b_n < outputs:
                        b_next[r] = dy[np.uint64(np.int32(target + first_output + b_n))]
            if step > first:
                accumulate(sums, column, row, a, b, at_a, at_b)
            cuda.syncthreads()
            if step < past:
                for r in range(a_loads):
                    a[a_store + np.uint64(r * (threads // rows) * a_row)] = a_next[r]
                for r in range(b_loads):
                    b[b_store + np.uint64(r * (threads // columns) * b_row)] = b_next[r]
            cuda.syncthreads()

        for i in range(height):
            k = first_k + i // 4 * (rows // height * 4) + thread // across * 4 + i % 4
            for j in range(width):
                output = first_output + j // 4 * (across * 4) + thread % across * 4 + j % 4
                place = k * filters + group * outputs + output
                if place < items and output < outputs:
                    partial[np.uint64(part * items + place)] = sums[i * width + j]

    return _correlate


def _addition(parts: int) -> Kernel:
    """The kernel that adds slices, with so many threads for each value."""
    width = BLOCK // parts

    @kernel(*(VECTOR, VECTOR, VECTOR, VECTOR, NUMBER, FLAG), shared_bytes=BLOCK * 4, variant=f"{width}x{parts}")
    def _add_slices(partial, bias, out, more, slices, relu):
        """Each value's slices, always in the same order, and its bias. What out cannot hold goes into more."""
        sums = cuda.shared.array(BLOCK, np.float32)
        thread = cuda.threadIdx.x
        item, items = cuda.blockIdx.x * width + thread % width, partial.size // slices
        total = ZERO
        if item < items:
            for part in range(thread // width, slices, parts):
                total += partial[part * items + item]
        sums[thread] = total
        cuda.syncthreads()
        if thread < width and item < items:
            for part in range(1, parts):
                total += sums[part * width + thread]
            total += bias[item % bias.size]
            if relu and total < ZERO:
                total = ZERO
            if item < out.size:
                out[item] = total
            else:
                more[item - out.size] = total

    return _add_slices


MULTIPLY = {(tile, turned): _multiplication(tile, turned=turned) for tile in TILES for turned in (False, True)}
CORRELATE = {tile: _correlation(tile) for tile in TILES}
ADD_FEW, ADD_MANY = _addition(1), _addition(16)


def _adding(items: int, slices: int) -> Launch:
    """Of the addition: many slices are added by many threads for each value."""
    add, width = (ADD_MANY, BLOCK // 16) if slices >= MANY_SLICES else (ADD_FEW, BLOCK)
    return Launch(add, (-(-items // width), 1, 1))


@dataclass(frozen=True)
class Phase:
    """Results along one axis, or both, that gather from the same taps: result t is pixel ``first + t * step``."""

    first: int
    count: int
    taps: tuple[Pair, ...]
    """(tap, shift): result t reads pixel ``t * step + shift`` of the source. A tap that reads none is left out."""


def forward_phases(side: int, out: int, taps: int, stride: int, dilation: int, before: int) -> list[Phase]:
    """The single phase of y along one axis."""
    shifts = [(tap, tap * dilation - before) for tap in range(taps)]
    return [Phase(0, out, _met(shifts, out, stride, side))]


def backward_phases(side: int, out: int, taps: int, stride: int, dilation: int, before: int) -> list[Phase]:
    """The phases of dx along one axis, one for each residue modulo the stride that a pixel has.

    Pixel p is under tap u of the window at i where p + before = i * stride + u * dilation. With p = first + t * stride,
    i = t + (first + before - u * dilation) / stride, for the taps where that is whole.
    """
    phases = []
    for first in range(min(stride, side)):
        count = -(-(side - first) // stride)
        distances = [(tap, first + before - tap * dilation) for tap in range(taps)]
        shifts = [(tap, distance // stride) for tap, distance in distances if distance % stride == 0]
        phases.append(Phase(first, count, _met(shifts, count, 1, out)))
    return phases


def _met(shifts: list[Pair], count: int, step: int, side: int) -> tuple[Pair, ...]:
    """The taps under which at least one of the results reads a pixel."""
    return tuple((tap, by) for tap, by in shifts if any(0 <= t * step + by < side for t in range(count)))


@dataclass(frozen=True)
class Product:
    """One direction's matrix product: shapes, steps and phases."""

    source: Shape
    result: Shape
    source_step: Pair
    result_step: Pair
    groups: int
    phases: tuple[tuple[Phase, Phase], ...]
    """Rows' and columns' phase."""

    @property
    def terms(self) -> int:
        """Channels of a group of the source: products for each tap."""
        return self.source[3] // self.groups

    @property
    def columns(self) -> int:
        """Channels of a group of the result."""
        return self.result[3] // self.groups

    @property
    def pixels(self) -> int:
        """Of the largest phase, over the batch."""
        return self.result[0] * max(rows.count * columns.count for rows, columns in self.phases)

    @property
    def steps(self) -> list[int]:
        """Steps of DEPTH in the sum of each phase."""
        return [-(-len(rows.taps) * len(columns.taps) * self.terms // DEPTH) for rows, columns in self.phases]

    @property
    def tile(self) -> Tile:
        """The tile that wastes least."""
        return best_tile(self.pixels, self.columns)

    @property
    def slices(self) -> int:
        """Parts that each sum is cut into: 1, unless the tiles are too few to fill a device."""
        tile = self.tile
        threads = tile.count(self.pixels, self.columns) * tile.threads * self.groups * len(self.phases)
        return _slices(threads, max(self.steps), math.prod(self.result))

    def launch(self, *, turned: bool) -> Launch:
        """Of the multiplication: (tiles, slices, phases and groups)."""
        tiles = self.tile.count(self.pixels, self.columns)
        return Launch(MULTIPLY[self.tile, turned], (tiles, self.slices, len(self.phases) * self.groups))

    def tables(self, weight_strides: Pair, kernel_columns: int) -> tuple[np.ndarray, np.ndarray]:
        """What the kernel reads beside its arguments, as int32.

        First (3, k): packed shift, offset in the source, and place in the weights of every product, each phase filled
        up to whole steps with products of nothing. ``weight_strides``: between taps, and between the terms of one.
        Then (phases, 6): rows, columns, first row, first column, first step, steps.
        """
        _, _, width, channels = self.source
        tap_stride, term_stride = weight_strides
        columns, records, first_step = [_nothing(DEPTH, -1)], [], 1  # a device has no empty arrays
        for (rows, cols), steps in zip(self.phases, self.steps, strict=True):
            taps = [
                (down, right, (u * kernel_columns + v) * tap_stride)
                for (u, down), (v, right) in product(rows.taps, cols.taps)
            ]
            columns += [_gather(taps, self.terms, term_stride, width, channels)]
            columns += [_nothing(steps * DEPTH - columns[-1].shape[1], -1)]
            records.append((rows.count, cols.count, rows.first, cols.first, first_step, steps))
            first_step += steps
        return np.concatenate(columns, axis=1), np.array(records, np.int32)


def product_of(spec: ConvSpec, direction: str) -> Product:
    """The matrix product that computes forward or grad_input."""
    axes = zip(
        *(spec.x_shape[1:3], spec.y_shape[1:3], spec.kernel, spec.stride, spec.dilation, (pad[0] for pad in spec.pads)),
        strict=True,
    )
    if direction == FORWARD:
        rows, columns = (forward_phases(*axis) for axis in axes)
        return Product(spec.x_shape, spec.y_shape, spec.stride, (1, 1), spec.groups, tuple(product(rows, columns)))
    rows, columns = (backward_phases(*axis) for axis in axes)
    return Product(spec.y_shape, spec.x_shape, (1, 1), spec.stride, spec.groups, tuple(product(rows, columns)))


def weight_rows(spec: ConvSpec) -> np.ndarray:
    """The table of grad_weights, (3, k) int32, filled up to whole tiles: packed shift, offset in x, value outside of x.

    The bias is a row that is always outside, and 1 there.
    """
    _, _, width, channels = spec.x_shape
    (top, _), (left, _) = spec.pads
    shifts = product(range(spec.kernel[0]), range(spec.kernel[1]))
    taps = [(u * spec.dilation[0] - top, v * spec.dilation[1] - left, 0) for u, v in shifts]
    weights = _gather(taps, channels // spec.groups, 0, width, channels)
    bias = _nothing(1 if spec.bias else 0, 1)
    tile, columns = best_tile(_weight_rows(spec), spec.filters // spec.groups), weights.shape[1] + bias.shape[1]
    return np.concatenate([weights, bias, _nothing(-columns % tile.rows, 0)], axis=1)


def best_tile(rows: int, columns: int) -> Tile:
    """The tile that takes least time for so many results: those it computes in vain are counted."""
    return min(TILES, key=lambda tile: tile.count(rows, columns) * tile.rows * tile.columns / tile.speed)


def _slices(threads: int, steps: int, results: int) -> int:
    """Slices of a sum of so many steps where one slice has so many threads and results."""
    return max(1, min(ENOUGH_THREADS // threads, steps // MIN_STEPS, MAX_PARTIAL // results))


def _gather(taps: list[tuple[int, int, int]], terms: int, stride: int, width: int, channels: int) -> np.ndarray:
    """(3, taps * terms) int32: packed shift, offset, place; taps are (row shift, column shift, place)."""
    down, right, place = np.array(taps, np.int64).reshape(-1, 3, 1).transpose(1, 0, 2)
    term = np.arange(terms)
    columns = ((down << 16) + right + 0 * term, (down * width + right) * channels + term, place + term * stride)
    return np.stack(columns).reshape(3, -1).astype(np.int32)


def _nothing(count: int, last: int) -> np.ndarray:
    """(3, count) int32: products that meet no pixel."""
    return np.repeat(np.array([[OUTSIDE], [0], [last]], np.int32), count, axis=1)


def _weight_rows(spec: ConvSpec) -> int:
    """Rows of grad_weights: weights of a filter, and its bias."""
    return math.prod(spec.w_shape[:3]) + spec.bias


def _weight_slices(spec: ConvSpec) -> int:
    """Parts that each sum of grad_weights is cut into."""
    rows, columns = _weight_rows(spec), spec.filters // spec.groups
    tile = best_tile(rows, columns)
    steps = -(-math.prod(spec.y_shape[:3]) // DEPTH)
    return _slices(tile.count(rows, columns) * tile.threads * spec.groups, steps, rows * spec.filters)


def why_not(spec: ConvSpec) -> str | None:
    """The reason why positions or indices of a problem do not fit into their 32 bits, or None."""
    sides = [side + sum(pad) for side, pad in zip(spec.x_shape[1:3], spec.pads, strict=True)]
    if max(sides) >= LIMIT:
        return f"its padded image has {sides[0]} rows and {sides[1]} columns; positions are kept below {LIMIT}"
    values = max(spec.batch * math.prod(sides) * max(spec.channels, spec.filters), math.prod(spec.w_shape))
    if values >= MAX_VALUES:
        return f"an array has {values} values with its padding; indices are kept below {MAX_VALUES}"
    return None


class GemmPlan(CudaPlan):
    """Three directions of a convolution, or of what can be seen as one."""

    @staticmethod
    def convolution(spec: Any) -> ConvSpec:
        """The convolution that is computed."""
        return spec  # type: ignore[no-any-return]  # a plan of convolutions is given one

    @classmethod
    def launches(cls, spec, direction):
        spec = cls.convolution(spec)
        if direction == GRAD_WEIGHTS:
            rows, columns = _weight_rows(spec), spec.filters // spec.groups
            tile = best_tile(rows, columns)
            blocks = (tile.count(rows, columns), _weight_slices(spec), spec.groups)
            return Launch(CORRELATE[tile], blocks), _adding(rows * spec.filters, blocks[1])
        gemm = product_of(spec, direction)
        multiply = gemm.launch(turned=direction == GRAD_INPUT)
        return (multiply,) if gemm.slices == 1 else (multiply, _adding(math.prod(gemm.result), gemm.slices))

    @classmethod
    def scratch_bytes(cls, spec, directions):
        return max(_partial_values(cls.convolution(spec), direction) for direction in directions) * ITEMSIZE[spec.dtype]

    def prepare(self):
        super().prepare()
        spec = self.convolution(self.spec)
        self._relu = spec.activation == "relu"
        self._zeros = self.device.put(np.zeros(max(spec.channels, spec.filters), np.float32))
        self._fixed = {direction: self._prepared(spec, direction) for direction in self.directions}

    def _prepared(self, spec, direction):
        """What every call of a direction is given: tables, sizes, slices, and scratch for them (None without)."""
        count = _partial_values(spec, direction)
        partial = self.scratch((count,)) if count else None
        if direction == GRAD_WEIGHTS:
            tables, sizes = (weight_rows(spec),), (spec.x_shape, spec.y_shape, spec.stride, spec.groups)
            slices = _weight_slices(spec)
        else:
            gemm = product_of(spec, direction)
            tables = gemm.tables(_weight_strides(spec, direction), spec.kernel[1])
            sizes, slices = (gemm.source, gemm.result, gemm.source_step, gemm.result_step, gemm.groups), gemm.slices
        return tuple(self.device.put(np.ascontiguousarray(table)) for table in tables), sizes, slices, partial

    def forward(self, x, w, b, out):
        self._multiply(FORWARD, x, w, self._zeros if b is None else b, out, self._relu)

    def grad_input(self, dy, w, dx):
        self._multiply(GRAD_INPUT, dy, w, self._zeros, dx, False)

    def _multiply(self, direction, source, weights, bias, out, relu):
        tables, sizes, slices, partial = self._fixed[direction]
        source, weights, out = _flat(source), _flat(weights), _flat(out)
        if partial is None:
            self.enqueue(direction, (source, *tables, weights, bias, out, *sizes, slices, relu))
        else:
            multiply = (source, *tables, weights, self._zeros, partial, *sizes, slices, False)
            self.enqueue(direction, multiply, (partial, bias, out, out, slices, relu))

    def grad_weights(self, x, dy, dw, db):
        tables, sizes, slices, partial = self._fixed[GRAD_WEIGHTS]
        x, dy, dw = _flat(x), _flat(dy), _flat(dw)
        items = partial.size // slices
        correlate = (x, *tables, dy, partial, *sizes, slices, items)
        self.enqueue(GRAD_WEIGHTS, correlate, (partial, self._zeros, dw, dw if db is None else db, slices, False))


def _partial_values(spec: ConvSpec, direction: str) -> int:
    """Values of scratch for slices; a product in one slice needs none."""
    if direction == GRAD_WEIGHTS:
        return _weight_slices(spec) * _weight_rows(spec) * spec.filters
    gemm = product_of(spec, direction)
    return 0 if gemm.slices == 1 else gemm.slices * math.prod(gemm.result)


def _weight_strides(spec: ConvSpec, direction: str) -> Pair:
    """Values of w (KH, KW, C / groups, F) between taps, and between the terms of one: channels, or filters."""
    _, _, channels, filters = spec.w_shape
    return channels * filters, filters if direction == FORWARD else 1


def _flat(array: Any) -> Any:
    """All values in one row, a view."""
    return array if array is None or array.ndim == 1 else array.ravel()
