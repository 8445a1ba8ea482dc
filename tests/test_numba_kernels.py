"""What is special about the compiled convolutions: NaN, idle memory, threads, scratch, dropped taps, compilation."""

from __future__ import annotations

from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

import impls
from impls.conv2d import _correlation, _tiles
from impls.numba_setup import FASTMATH, numba
from impls.specs import DIRECTIONS, FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ConvSpec, arguments

NAMES = ("numba_jit_direct", "numba_jit_gemm")
SPECS = (
    ConvSpec(3, 9, 7, 5, 6, (3, 5), activation="relu"),
    ConvSpec(2, 8, 11, 6, 9, (3, 2), stride=(2, 3), padding=((1, 2), (0, 3)), groups=3),
    ConvSpec(40, 8, 8, 3, 8, (3, 3), dilation=(1, 2), bias=False),
)


def filled(spec: ConvSpec, direction: str, seed: int = 0) -> list[np.ndarray | None]:
    """Arrays for a call: random inputs, outputs of NaN."""
    rng = np.random.default_rng(seed)
    return [
        None
        if a.shape is None
        else np.full(a.shape, np.nan, np.float32)
        if a.is_output
        else rng.standard_normal(a.shape, np.float32)
        for a in arguments(spec, direction)
    ]


def outputs(name: str, spec: ConvSpec, direction: str, arrays: list[np.ndarray | None], fill: int = 0):
    """Results of one call whose scratch memory held the byte ``fill`` before."""
    plan = impls.get("conv2d", name).plan(spec, (direction,))
    plan.workspace.fill(fill)
    plan.bind(direction, *arrays)()
    return [
        array for array, a in zip(arrays, arguments(spec, direction), strict=True) if a.is_output and array is not None
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_nan_pixel_reaches_its_windows_and_no_others(name, activation):
    """NaN survives relu, and does not leak through padding to whole vectors or to whole tiles."""
    spec = ConvSpec(2, 6, 7, 3, 5, (3, 3), activation=activation)
    x, w, b, out = filled(spec, FORWARD)
    x[1, 2, 3, 1] = np.nan
    (y,) = outputs(name, spec, FORWARD, [x, w, b, out])
    reached = np.zeros(spec.y_shape, bool)
    reached[1, 1:4, 2:5] = True
    np.testing.assert_array_equal(np.isnan(y), reached)


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_in_dy_reaches_its_own_filter_alone(name):
    spec = ConvSpec(1, 5, 5, 2, 5, (3, 3))
    x, dy, dw, db = filled(spec, GRAD_WEIGHTS)
    dy[0, 2, 2, 3] = np.nan
    outputs(name, spec, GRAD_WEIGHTS, [x, dy, dw, db])
    np.testing.assert_array_equal(np.isnan(db), np.arange(5) == 3)
    np.testing.assert_array_equal(np.isnan(dw), np.broadcast_to(np.arange(5) == 3, dw.shape))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_scratch_memory_held_before_does_not_matter(name, direction, spec):
    """Bytes of 255 are NaN as floats."""
    clean = outputs(name, spec, direction, filled(spec, direction))
    soiled = outputs(name, spec, direction, filled(spec, direction), fill=255)
    for a, b in zip(clean, soiled, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="numba has one thread here")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_number_of_threads_does_not_change_a_bit(name, direction, spec):
    """The order of every addition is a function of the problem."""
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        results.append(outputs(name, spec, direction, filled(spec, direction)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [2, 8, 64])
@pytest.mark.parametrize("kernel", [3, 19])
def test_scratch_is_below_64_mb_whatever_the_batch(name, side, kernel):
    plan_type = impls.get("conv2d", name).plan_type
    sizes = {
        plan_type.scratch_bytes(ConvSpec(batch, side, side, 64, 64, (kernel, kernel)), DIRECTIONS)
        for batch in (1, 32, 3000)
    }
    assert len(sizes) == 1
    assert max(sizes) <= 64 << 20


@pytest.mark.parametrize("name", NAMES)
def test_taps_that_meet_only_padding_cost_nothing_and_have_gradient_zero(name):
    spec = ConvSpec(2, 2, 2, 3, 4, (7, 7))
    (problem,) = _correlation.problems(spec, GRAD_WEIGHTS)
    assert (problem.rows.taps, problem.columns.taps) == (3, 3)
    dw, _ = outputs(name, spec, GRAD_WEIGHTS, filled(spec, GRAD_WEIGHTS))
    unseen = np.ones(spec.w_shape, bool)
    unseen[2:5, 2:5] = False
    assert not dw[unseen].any()
    assert dw[~unseen].all()


def test_a_strided_input_gradient_is_one_problem_per_residue_and_together_they_have_every_tap_once():
    spec = ConvSpec(1, 9, 9, 1, 1, (5, 4), stride=(2, 3), padding="valid")
    parts = _correlation.problems(spec, GRAD_INPUT)
    assert len(parts) == 2 * 3
    assert sum(p.rows.taps * p.columns.taps for p in parts) == 5 * 4


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_refused_with_a_reason(name):
    spec = ConvSpec(1, 4, 4, 1, 1, (3, 3), dtype="float64")
    assert "float32" in impls.get("conv2d", name).supports(spec, FORWARD)


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_runs_the_same_compiled_kernel_and_it_is_kept_on_disk(name):
    plan_type = impls.get("conv2d", name).plan_type
    for spec in SPECS:
        for direction in DIRECTIONS:
            outputs(name, spec, direction, filled(spec, direction))
    for kernel in (plan_type.correlate, plan_type.accumulate, _tiles.pack, _tiles.unpack, _tiles.reduce_parts):
        assert len(kernel.signatures) == 1
        assert list(Path(kernel.stats.cache_path).glob("*.nbc"))


@pytest.mark.parametrize("kernel", [_tiles.dots, _tiles.add_outer], ids=["dots", "add_outer"])
def test_the_innermost_loops_use_the_widest_vectors_of_this_processor(kernel):
    """A loop that is not vectorised is right, and sixteen times slower."""
    if not llvm.get_host_cpu_features().get("avx512f"):
        pytest.skip("no 512-bit vectors on this processor")
    fresh = numba.njit(fastmath=FASTMATH)(kernel.py_func)  # what comes from the cache cannot be inspected
    array, places = np.zeros((8, 16), np.float32), (0, 16, 32, 48)
    flat = array.reshape(-1)
    if kernel is _tiles.dots:
        fresh(flat, places, flat.copy(), 0, 16, 16, array.copy(), 0, 0)
    else:
        fresh(array, 0, 0, flat, places, flat.copy(), 0, 16, 16)
    (assembly,) = fresh.inspect_asm().values()
    assert sum("vfmadd" in line and "zmm" in line for line in assembly.splitlines()) >= 16
