"""What can be said of the implicit GEMM without running a kernel: phases, tables, tiles and slices."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from bench import suites
from impls import registry
from impls.cuda_gemm import (
    CORRELATE,
    ENOUGH_THREADS,
    MAX_PARTIAL,
    MULTIPLY,
    OUTSIDE,
    TILES,
    backward_phases,
    best_tile,
    forward_phases,
    product_of,
    weight_rows,
)
from impls.specs import DIRECTIONS, FORWARD, GRAD_INPUT, parse

NAME = "numba_cuda_tiles"
AXES = [
    (side, taps, stride, dilation, before, after)
    for side, taps, stride, dilation, before, after in product((1, 2, 7), (1, 3, 4), (1, 2, 5), (1, 3), (0, 2), (0, 3))
    if side + before + after > (taps - 1) * dilation
]
CONVOLUTIONS = [
    "2x3x5x3,k3x2,f5",
    "1x2x3x2,k5x7,f3",
    "2x5x4x2,k3x2,s2x3,valid,f3",
    "1x7x8x4,k3x2,s2x3,d2x1,f6,g2",
    "1x2x3x1,k2,p3:1:0:2,f2,nobias",
    "1x1x1x1,k1,s3,p1:1:1:1,f1",
]


def reads(phases, step):
    """Every (result pixel, tap, source pixel) along an axis; source pixels may lie outside."""
    return {
        (phase.first + t * step[1], tap, t * step[0] + shift)
        for phase in phases
        for t in range(phase.count)
        for tap, shift in phase.taps
    }


@pytest.mark.parametrize(("side", "taps", "stride", "dilation", "before", "after"), AXES)
def test_phases_hold_every_product_of_an_axis_once(side, taps, stride, dilation, before, after):
    """Forward and backward are the same set of (pixel, tap, window), found by the definition of a convolution."""
    out = (side + before + after - (taps - 1) * dilation - 1) // stride + 1
    axis = (side, out, taps, stride, dilation, before)
    triples = product(range(out), range(taps), range(side))
    true = {(i, tap, p) for i, tap, p in triples if p == i * stride + tap * dilation - before}
    forward = reads(forward_phases(*axis), (stride, 1))
    backward = reads(backward_phases(*axis), (1, stride))
    assert {read for read in forward if 0 <= read[2] < side} == true
    assert {(i, tap, p) for p, tap, i in backward if 0 <= i < out} == true


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (7, 2), (2, 5), (9, 3)])
def test_phases_cover_every_pixel_of_the_input_gradient(side, stride):
    """Also where no window reads: those pixels are zeros, and somebody has to write them."""
    phases = backward_phases(side, 1, 1, stride, 1, 0)
    assert sorted(p.first + t * stride for p in phases for t in range(p.count)) == list(range(side))


@pytest.mark.parametrize("text", CONVOLUTIONS)
@pytest.mark.parametrize("direction", [FORWARD, GRAD_INPUT])
def test_tables_lead_to_every_source_and_weight(text, direction):
    """For every phase, pixel and product: the offset is that of the shifted pixel, the place that of its weight."""
    spec = parse("conv2d", text)
    gemm = product_of(spec, direction)
    weights = np.arange(math.prod(spec.w_shape)).reshape(spec.w_shape)
    strides = weights.strides[1] // 8, weights.strides[2 if direction == FORWARD else 3] // 8
    table, records = gemm.tables(strides, spec.kernel[1])
    assert table.dtype == records.dtype == np.int32
    for (rows, columns), (high, wide, top, left, first, steps) in zip(gemm.phases, records, strict=True):
        assert (high, wide, top, left) == (rows.count, columns.count, rows.first, columns.first)
        expected = [
            (
                (down << 16) + right,
                (down * gemm.source[2] + right) * gemm.source[3] + term,
                weights[u, v, term, 0] if direction == FORWARD else weights[u, v, 0, term],
            )
            for (u, down), (v, right) in product(rows.taps, columns.taps)
            for term in range(gemm.terms)
        ]
        filled = expected + [(OUTSIDE, 0, -1)] * (steps * 8 - len(expected))
        assert [tuple(column) for column in table[:, first * 8 : (first + steps) * 8].T] == filled


@pytest.mark.parametrize("text", CONVOLUTIONS)
def test_rows_of_the_weight_gradient_are_the_weights_and_the_bias(text):
    """Each row of weights shifts to its own tap, the bias is 1 everywhere, and what fills up the tile is 0."""
    spec = parse("conv2d", text)
    table = weight_rows(spec)
    weights = math.prod(spec.w_shape[:3])
    assert len({tuple(column) for column in table[:, :weights].T}) == weights
    assert (table[0, weights:] == OUTSIDE).all()
    assert table[2].sum() == spec.bias == table[2, weights]
    assert table.shape[1] % best_tile(weights + spec.bias, spec.filters // spec.groups).rows == 0


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_threads_of_a_tile_share_its_loads_evenly(tile):
    """Each thread loads as often as any other, decodes at most one pixel, and keeps to one row or column."""
    assert tile.threads % 32 == 0
    assert tile.rows <= tile.threads
    assert tile.threads % tile.rows == tile.threads % tile.columns == 0
    assert tile.rows * 8 % tile.threads == tile.columns * 8 % tile.threads == 0
    assert {kernel.threads for kernel in (CORRELATE[tile], MULTIPLY[tile, False], MULTIPLY[tile, True])} == {
        tile.threads
    }


@pytest.mark.parametrize(
    ("rows", "columns", "name"),
    [(10**6, 128, "128x64"), (10**6, 32, "128x32"), (10**6, 10, "128x16"), (28, 64, "32x32"), (10, 33, "32x32")],
)
def test_the_tile_that_wastes_least_is_taken(rows, columns, name):
    """Wide tiles for many filters, narrow ones for few, small ones for small batches."""
    assert str(best_tile(rows, columns)) == name


CASES = [case for name in ("networks", "paper-large-kernels") for case in suites.load(name).cases]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", ["conv2d", "dense"])
def test_slices_are_bounded_and_every_published_case_can_be_launched(op, direction):
    """Scratch keeps to its bound or to one slice; slices stop where the device is full; no limit is exceeded."""
    plan = registry.get(op, NAME).plan_type
    for spec in (case.spec for case in CASES if case.op == op):
        multiply, *adding = plan.launches(spec, direction)
        _, slices, _ = multiply.blocks
        values = plan.scratch_bytes(spec, (direction,)) // 4
        assert registry.get(op, NAME).why_not(spec, direction) is None
        assert bool(adding) == bool(values)
        assert values <= MAX_PARTIAL or slices == 1
        assert slices == 1 or math.prod(multiply.blocks) * multiply.kernel.threads <= ENOUGH_THREADS


@pytest.mark.parametrize("text", ["1x20000x1x1,k1,f1", "1x4x4x1,k2,p16000:500:0:0,f1", "4096x1024x1024x1,k1,f1"])
def test_positions_and_indices_beyond_their_bits_are_refused_with_the_reason(text):
    """A packed position has fourteen bits for a row, an index thirty-one."""
    reason = registry.get("conv2d", NAME).why_not(parse("conv2d", text), FORWARD)
    assert "are kept below" in reason
