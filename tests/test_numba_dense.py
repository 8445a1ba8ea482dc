"""What is special about the compiled dense layer: tiles of every size, blocks of sums, threads, NaN, transposition."""

from __future__ import annotations

import numpy as np
import pytest

from bench import inputs, local
from impls import Case, get, reference
from impls.dense import numba_jit
from impls.numba_setup import njit, numba
from impls.processor import host
from impls.specs import DIRECTIONS, FORWARD, GRAD_INPUT, GRAD_WEIGHTS, DenseSpec
from impls.transposition import transposition

WIDTH = numba_jit.WIDTH
SPECS = (
    DenseSpec(15, 37, WIDTH + 21, activation="relu"),
    DenseSpec(3, 2 * numba_jit.DEPTH + 5, 10, activation="relu"),
    DenseSpec(2 * numba_jit.DEPTH + 1, 9, 40, bias=False),
    DenseSpec(numba_jit.BAND_TURNED + 5, 2 * WIDTH + 1, numba_jit.DEPTH + 3),
    DenseSpec(11, 2 * numba_jit.DEPTH + 1, numba_jit.ASKED // (8 * numba_jit.DEPTH) + 3),
)
"""The last one has so many weights that the next ones are asked for."""


def dense(spec: DenseSpec, directions=DIRECTIONS):
    return get("dense", "numba_jit").plan(spec, directions)


def results(spec: DenseSpec, direction: str) -> tuple[np.ndarray, ...]:
    """Of one call on dense random inputs, all of them positive or negative as it comes."""
    arrays = inputs.make(Case("dense", spec), direction, inputs.DENSE, seed=4)
    return local.compute(dense(spec, (direction,)), direction, arrays)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("units", [1, 10, 16, 17, 33, 40, 48, 64, 100])
def test_every_height_and_width_of_the_last_tiles_is_right(direction, units):
    """Batches, and so heights, from 1 to beyond the highest tile and all that follow it."""
    for batch in range(1, 2 * numba_jit.MOST_ROWS):
        case = Case("dense", DenseSpec(batch, 2 * numba_jit.MOST_ROWS - batch, units, activation="relu"))
        judgement = local.judge(get("dense", "numba_jit"), case, direction, seed=batch)
        assert judgement.is_right, f"{case}: {judgement.bounds:.3g} bounds: {judgement.where}"


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_several_blocks_of_sums_bands_and_strips_are_right_on_all_threads(direction, spec, monkeypatch):
    """A floor before the last block of sums, or a bias in each, would show."""
    monkeypatch.setattr(numba_jit, "SERIAL_BELOW", 0)
    case = Case("dense", spec)
    judgement = local.judge(get("dense", "numba_jit"), case, direction, seed=6)
    assert judgement.is_right, f"{judgement.bounds:.3g} bounds: {judgement.where}"


@pytest.mark.parametrize("sums", [numba_jit.DEPTH, 2 * numba_jit.DEPTH + 1])
def test_what_is_asked_for_is_the_strip_that_comes_next_and_nothing_beyond_the_last(sums):
    """Of two groups of strips; none where all weights stay in a cache."""
    columns = numba_jit.ASKED // (4 * sums) + WIDTH // 2
    p = numba_jit.product(DenseSpec(7, sums, columns), FORWARD, 1)
    for left, right in ((0, 4 * WIDTH), (4 * WIDTH, columns)):
        strips = [(k, j) for k in range(0, sums, numba_jit.DEPTH) for j in range(left, right, WIDTH)]
        for (k, j), after in zip(strips, [*strips[1:], None], strict=True):
            width, following = min(WIDTH, right - j), k + min(numba_jit.DEPTH, sums - k)
            ahead = numba_jit.distance.py_func(p, following, j, width, left, right)
            then = after or (k, j)
            assert k * columns + j + ahead == then[0] * columns + then[1]
    few = numba_jit.product(DenseSpec(7, sums, 4 * WIDTH), FORWARD, 1)
    assert numba_jit.distance.py_func(few, 0, 0, WIDTH, 0, 4 * WIDTH) == 0


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="numba has one thread here")
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_threads_do_not_change_a_bit(direction, spec, monkeypatch):
    """The order of every addition is a function of the problem."""
    found = []
    for serial_below in (0, 1 << 60):
        monkeypatch.setattr(numba_jit, "SERIAL_BELOW", serial_below)
        found.append(results(spec, direction))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("rows", "parts"), [(1, 1), (1, 64), (28, 2), (28, 64), (3000, 2), (3000, 64)])
def test_there_is_work_for_every_thread_in_bands_of_some_rows(rows, parts):
    """Of a single strip, whose columns give no tasks; one row is a single task."""
    p = numba_jit.product(DenseSpec(rows, 100, WIDTH), FORWARD, parts)
    assert p.groups == 1
    assert p.bands == 1 or p.rows // p.bands >= numba_jit.LEAST_ROWS
    assert p.bands >= min(parts, max(1, p.rows // numba_jit.LEAST_ROWS))


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="numba has one thread here")
def test_a_plan_takes_no_more_threads_than_numba_is_allowed_when_it_is_made():
    """And leaves the others' strips out of its scratch memory."""
    spec, most = DenseSpec(600, 300, 300), numba.get_num_threads()
    needs = dense(spec).workspace_bytes
    numba.set_num_threads(1)
    try:
        plan = dense(spec)
    finally:
        numba.set_num_threads(most)
    assert not plan.is_parallel
    assert plan.workspace_bytes == needs // most


@pytest.mark.parametrize("batch", [1, numba_jit.FEW + 1, 30])
@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "infinity"])
def test_what_is_not_finite_reaches_its_own_sums_and_no_others(batch, value):
    """Neither by lanes beyond the last column, nor by rows that a transposition repeats."""
    spec = DenseSpec(batch, 19, 21)
    x, w, b = inputs.make(Case("dense", spec), FORWARD, inputs.DENSE, seed=7)
    w = w.copy()
    w[18, 20] = value
    (y,) = local.compute(dense(spec), FORWARD, (x, w, b))
    (dx,) = local.compute(dense(spec), GRAD_INPUT, (np.ones(spec.y_shape, np.float32), w))
    np.testing.assert_array_equal(~np.isfinite(y).all(axis=0), np.arange(21) == 20)
    np.testing.assert_array_equal(~np.isfinite(dx).all(axis=0), np.arange(19) == 18)


def test_a_nan_before_relu_stays_a_nan():
    spec = DenseSpec(9, 600, 5, activation="relu")
    x, w, b = inputs.make(Case("dense", spec), FORWARD, inputs.DENSE, seed=8)
    x = x.copy()
    x[3, 1] = np.nan
    (y,) = local.compute(dense(spec), FORWARD, (x, w, b))
    np.testing.assert_array_equal(np.isnan(y).all(axis=1), np.arange(9) == 3)
    assert (y[np.arange(9) != 3] >= 0).all()


def test_the_bias_gradient_is_the_sum_of_dy_whatever_the_number_of_strips():
    spec = DenseSpec(5, 3, 5 * WIDTH + 7)
    x, dy = inputs.make(Case("dense", spec), GRAD_WEIGHTS, inputs.DENSE, seed=9)
    _, db = local.compute(dense(spec), GRAD_WEIGHTS, (x, dy))
    (_, due) = local.compute(reference("dense").plan(spec), GRAD_WEIGHTS, (x, dy))
    np.testing.assert_allclose(db, due, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lanes", sorted({4, host().lanes}))
def test_a_square_is_transposed_and_nothing_beyond_it_is_read(lanes):
    """Values beyond rows and columns are NaN; rows beyond come out as zeros, columns repeat the last."""
    kernel = transposition(lanes)

    @njit
    def transpose(source, rows, columns, out):
        kernel(source.ctypes.data, source.shape[1], rows, columns, out.ctypes.data, out.shape[1])

    for rows, columns in ((1, 1), (1, lanes), (lanes, 1), (lanes - 1, 2), (lanes, lanes)):
        source = np.full((lanes, lanes + 3), np.nan, np.float32)
        source[:rows, :columns] = np.arange(1, rows * columns + 1).reshape(rows, columns)
        out = np.full((lanes, lanes + 1), -1, np.float32)
        transpose(source, rows, columns, out)
        np.testing.assert_array_equal(out[:columns, :rows], source[:rows, :columns].T)
        np.testing.assert_array_equal(out[columns:, :lanes], 0)
        np.testing.assert_array_equal(
            out[:columns, rows:lanes], np.repeat(out[:columns, rows - 1 : rows], lanes - rows, 1)
        )
        np.testing.assert_array_equal(out[:, lanes], -1)
