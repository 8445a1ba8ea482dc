"""Vectors in compiled code, and passes shared by threads."""

from __future__ import annotations

import numpy as np
import pytest

import impls
from impls import vectors
from impls.numba_setup import njit, prange
from impls.parts import shared
from impls.specs import FORWARD, GRAD_INPUT

FIRST = 3
"""Where the vectors of these tests begin: not at a multiple of anything."""


@njit
def copy_lanes(source, target, count):
    """So many values from FIRST on."""
    mask = vectors.first_lanes(count)
    vectors.store(vectors.load(source, FIRST, mask), target, FIRST, mask)


@shared
def number_parts(values, parts):
    """values[part] = the part's number, counted from 1."""
    for part in prange(parts):
        values[part] = part + 1


@pytest.mark.parametrize("count", [-1, 0, 1, 15, 16, 17, 2**33])
def test_a_mask_takes_the_first_lanes_and_no_others(count):
    """Counts below none and beyond all are those; what is not taken is not written."""
    source, target = np.arange(40, dtype=np.float32), np.full(40, np.nan, np.float32)
    copy_lanes(source, target, count)
    taken = np.arange(40) < FIRST + min(max(count, 0), vectors.LANES)
    taken[:FIRST] = False
    np.testing.assert_array_equal(target[taken], source[taken])
    assert np.isnan(target[~taken]).all()


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_shared_pass_does_every_part_whatever_their_number(parts):
    """One part runs code without threads, more run code with them: neither is taken for the other from the cache."""
    values = np.zeros(6)
    number_parts(values, parts)
    np.testing.assert_array_equal(values, [*range(1, parts + 1), *[0] * (6 - parts)])


@pytest.mark.parametrize("op", ["maxpool2d", "avgpool2d"])
@pytest.mark.parametrize("text", ["3x12x10x5,pool2x2", "3x11x9x19,pool3x3,s2x2,same", "1x13x9x4,pool2x3,s3x1"])
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_the_parts_of_a_pooling_do_not_change_a_bit(op, text, parts):
    """Neither in forward nor in the gradient, where windows of different parts may overlap."""
    spec = impls.parse(op, text)
    plan, rng = impls.get(op, "numba_jit").plan(spec), np.random.default_rng(0)
    x, dy = rng.standard_normal(spec.x_shape, np.float32), rng.standard_normal(spec.y_shape, np.float32)
    results = []
    for plan.parts in (1, parts):
        y, dx = np.full(spec.y_shape, np.nan, np.float32), np.full(spec.x_shape, np.nan, np.float32)
        plan.bind(FORWARD, x, y)()
        plan.bind(GRAD_INPUT, x, y, dy, dx)()
        results.append((y, dx))
    for alone, by_threads in zip(*results, strict=True):
        np.testing.assert_array_equal(alone, by_threads)
        assert np.isfinite(alone).all()
