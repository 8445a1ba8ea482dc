"""Unroll a block of windows into rows (im2col) and multiply them by the weights, in our own compiled loops.

Each worker copies as many windows as its second-level cache holds and multiplies them by all filters before the next
block, so that scratch memory does not grow with the image or the batch. Weights are packed once per call, one row per
filter. The weight gradient adds, block by block, the outer products of dy with the same rows.
"""

from __future__ import annotations

import numpy as np

from impls.contract import FLOAT32, GEMM, Implementation, float32_only
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

BLOCK_BYTES = 256 << 10
"""Of one block of rows: a part of a second-level cache, beside the weights of a tile."""


@njit
def unroll(x, first, count, group, record, lowered):
    """Copy windows ``first`` to ``first + count`` of one group to rows; taps on padding are zeros."""
    problem = record[0]
    rows, columns, inner, channels = problem.rows, problem.columns, problem.inner, x.shape[3]
    source, contiguous = x.reshape(-1), columns.dilation == 1 and problem.groups == 1
    used = rows.taps * problem.row_step
    for m in range(count):
        line, j = divmod(first + m, columns.out)
        n, i = divmod(line, rows.out)
        top, left = i * rows.stride - rows.pad, j * columns.stride - columns.pad
        for s in range(rows.taps):
            at = m * problem.terms + s * problem.row_step
            h = top + s * rows.dilation
            start = ((n * rows.side + h) * columns.side + left) * channels + group * inner
            if h < 0 or h >= rows.side:
                clear(lowered, at, problem.row_step)
            elif contiguous:
                low, high = min(max(0, -left), columns.taps), max(0, min(columns.taps, columns.side - left))
                clear(lowered, at, low * inner)
                copy(source, start + low * inner, lowered, at + low * inner, (high - low) * inner)
                clear(lowered, at + high * inner, (columns.taps - high) * inner)
            else:
                for t in range(columns.taps):
                    moved = t * columns.dilation
                    if 0 <= left + moved < columns.side:
                        copy(source, start + moved * channels, lowered, at + t * inner, inner)
                    else:
                        clear(lowered, at + t * inner, inner)
        clear(lowered, m * problem.terms + used, problem.terms - used)


@njit
def correlate_share(worker, x, b, relu, record, windows, packed, lowered, results, out):
    """One worker's share of the blocks in ``correlate``."""
    problem = record[0]
    pixels = problem.batch * problem.rows.out * problem.columns.out
    blocks = -(-pixels // problem.pixels)
    workers, height = lowered.shape[0], results.shape[2]
    rows, products = lowered[worker], results[worker]
    for block in range(worker * blocks // workers, (worker + 1) * blocks // workers):
        first = block * problem.pixels
        count = min(problem.pixels, pixels - first)
        for group in range(problem.groups):
            unroll(x, first, count, group, record, rows)
            multiply_block(rows, windows, count, packed, group * height, 1, products)
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
    pixels = problem.batch * problem.rows.out * problem.columns.out
    blocks = -(-pixels // problem.pixels)
    parts, workers, height = packed.shape[0], lowered.shape[0], results.shape[2]
    splits, tiles = workers // parts, height // TILE
    part, split = divmod(worker, splits)
    low, high = split * tiles // splits * TILE, (split + 1) * tiles // splits * TILE
    rows, dys = lowered[worker], results[worker]
    start_part(packed[part], sums[part], height, low, high)
    for block in range(part * blocks // parts, (part + 1) * blocks // parts):
        first = block * problem.pixels
        count = min(problem.pixels, pixels - first)
        for group in range(problem.groups):
            unroll(x, first, count, group, record, rows)
            take_block(dy, count, first, group, problem.outer, dys)
            add_block(rows, windows, count, dys, low, high, 1, packed[part], group * height)
            add_sums(dys, count, low, high, sums[part], group * height)


@njit(parallel=True)
def accumulate(x, dy, record, windows, packed, lowered, results, sums):
    """Fill packed and sums with partial sums of the gradients of weights and bias."""
    for worker in prange(len(lowered)):
        accumulate_share(np.int64(worker), x, dy, record, windows, packed, lowered, results, sums)


class NumbaJitGemm(CorrelationPlan):
    """Blocks of unrolled windows times packed weights."""

    correlate = staticmethod(correlate)
    accumulate = staticmethod(accumulate)

    @staticmethod
    def layout(problem):
        row_step = problem.columns.taps * problem.inner
        terms = round_up(problem.rows.taps * row_step, LANES)
        most = BLOCK_BYTES // (np.dtype(FLOAT32).itemsize * max(terms, 1)) // TILE * TILE
        pixels = min(max(2 * TILE, min(most, 128)), round_up(problem.pixels, TILE))
        return Layout(row_step, problem.inner, terms, pixels, pixels * terms)

    @staticmethod
    def windows(problem, layout):
        starts = np.arange(layout.pixels) * layout.terms
        return np.stack([starts, np.zeros_like(starts), np.full_like(starts, layout.terms)], axis=1)


IMPL = Implementation(
    NumbaJitGemm, algorithm=GEMM, why_not=float32_only, note="im2col in cache-sized blocks, own micro-kernel"
)
