"""The definition in loops: every output is one sum along its window; no im2col.

For a few output rows at a time, the rows of the image under their windows are copied side by side, column by column
(taps of one column, then channels). Every window is then one contiguous stretch of that strip, and neighbouring
windows overlap in it: nothing is copied per tap of the kernel's width. Borders are zeros in the strip, and windows
are cut to the columns that lie inside the image. A dilation sorts the columns by their residue, so that the taps of a
window are neighbours again.
"""

from __future__ import annotations

import numpy as np

from impls.contract import DIRECT, Implementation, float32_only
from impls.conv2d._correlation import CorrelationPlan, Layout, round_up
from impls.conv2d._tiles import (
    LANES,
    TILE,
    add_block,
    add_sums,
    clear,
    copy,
    finish_block,
    multiply_block,
    start_part,
    take_block,
)
from impls.numba_setup import njit, prange

PIXELS = 32
"""At least so many windows share a strip: enough to reuse a tile's weights from the first-level cache."""


def columns_per_residue(columns):
    """Columns of the padded image under all windows that share a residue modulo the dilation, rounded up."""
    extent = (columns.out - 1) * columns.stride + max(columns.taps - 1, 0) * columns.dilation + 1
    return -(-extent // columns.dilation)


@njit
def lay_out(x, first, count, group, record, strip):
    """Copy the image rows under output rows ``first`` to ``first + count`` to the strip, column by column."""
    problem = record[0]
    rows, columns, inner, channels = problem.rows, problem.columns, problem.inner, x.shape[3]
    source, step = x.reshape(-1), problem.column_step
    used = rows.taps * inner
    if step == 0:
        return
    length = problem.lowered // (problem.pixels // columns.out * step)
    per_residue = length // columns.dilation
    for r in range(count):
        n, i = divmod(first + r, rows.out)
        top = i * rows.stride - rows.pad
        for residue in range(columns.dilation):
            for index in range(per_residue):
                at = ((r * columns.dilation + residue) * per_residue + index) * step
                v = index * columns.dilation + residue - columns.pad
                if v < 0 or v >= columns.side:
                    clear(strip, at, step)
                    continue
                for s in range(rows.taps):
                    h = top + s * rows.dilation
                    if 0 <= h < rows.side:
                        start = ((n * rows.side + h) * columns.side + v) * channels + group * inner
                        copy(source, start, strip, at + s * inner, inner)
                    else:
                        clear(strip, at + s * inner, inner)
                clear(strip, at + used, step - used)


@njit
def correlate_share(worker, x, b, relu, record, windows, packed, lowered, results, out):
    """One worker's share of the blocks in ``correlate``."""
    problem = record[0]
    width = problem.columns.out
    pixels = problem.batch * problem.rows.out * width
    blocks = -(-pixels // problem.pixels)
    workers, height = lowered.shape[0], results.shape[2]
    strip, products = lowered[worker], results[worker]
    for block in range(worker * blocks // workers, (worker + 1) * blocks // workers):
        first = block * problem.pixels
        count = min(problem.pixels, pixels - first)
        for group in range(problem.groups):
            lay_out(x, first // width, count // width, group, record, strip)
            multiply_block(strip, windows, count, packed, group * height, problem.column_step, products)
            finish_block(products, count, first, group, b, relu, record, out)


@njit(parallel=True)
def correlate(x, b, relu, record, windows, packed, lowered, results, out):
    """Fill the problem's pixels of out with sums, bias and relu."""
    for worker in prange(len(lowered)):
        correlate_share(np.int64(worker), x, b, relu, record, windows, packed, lowered, results, out)


@njit
def accumulate_share(worker, x, dy, record, windows, packed, lowered, results, sums):
    """One worker's part of the batch and share of the filters in ``accumulate``."""
    problem = record[0]
    width = problem.columns.out
    pixels = problem.batch * problem.rows.out * width
    blocks = -(-pixels // problem.pixels)
    parts, workers, height = packed.shape[0], lowered.shape[0], results.shape[2]
    splits, tiles = workers // parts, height // TILE
    part, split = divmod(worker, splits)
    low, high = split * tiles // splits * TILE, (split + 1) * tiles // splits * TILE
    strip, dys = lowered[worker], results[worker]
    start_part(packed[part], sums[part], height, low, high)
    for block in range(part * blocks // parts, (part + 1) * blocks // parts):
        first = block * problem.pixels
        count = min(problem.pixels, pixels - first)
        for group in range(problem.groups):
            lay_out(x, first // width, count // width, group, record, strip)
            take_block(dy, count, first, group, problem.outer, dys)
            add_block(strip, windows, count, dys, low, high, problem.column_step, packed[part], group * height)
            add_sums(dys, count, low, high, sums[part], group * height)


@njit(parallel=True)
def accumulate(x, dy, record, windows, packed, lowered, results, sums):
    """Fill packed and sums with partial sums of the gradients of weights and bias."""
    for worker in prange(len(lowered)):
        accumulate_share(np.int64(worker), x, dy, record, windows, packed, lowered, results, sums)


class NumbaJitDirect(CorrelationPlan):
    """Strips of image rows, in which windows overlap, times packed weights."""

    correlate = staticmethod(correlate)
    accumulate = staticmethod(accumulate)

    @staticmethod
    def layout(problem):
        rows, columns, inner = problem.rows, problem.columns, problem.inner
        column_step = round_up(rows.taps * inner, LANES) if columns.taps else 0
        lines = min(-(-PIXELS // columns.out), problem.batch * rows.out)
        strip = columns_per_residue(columns) * columns.dilation * column_step
        return Layout(inner, column_step, columns.taps * column_step, lines * columns.out, lines * strip)

    @staticmethod
    def windows(problem, layout):
        columns = problem.columns
        line, j = np.divmod(np.arange(round_up(layout.pixels, TILE)) % layout.pixels, columns.out)
        left = j * columns.stride
        per_residue = columns_per_residue(columns)
        residue, index = left % columns.dilation, left // columns.dilation
        starts = ((line * columns.dilation + residue) * per_residue + index) * layout.column_step
        first = -((left - columns.pad) // columns.dilation)
        end = (columns.side - 1 - (left - columns.pad)) // columns.dilation + 1
        return np.stack([starts, np.clip(first, 0, columns.taps), np.clip(end, 0, columns.taps)], axis=1)


IMPL = Implementation(
    NumbaJitDirect, algorithm=DIRECT, why_not=float32_only, note="the definition in loops over overlapping windows"
)
