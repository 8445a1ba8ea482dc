"""What is special about convolution in register tiles: covering, neighbours, padding, threads, NaN, compilation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numba.core import types

import impls
from bench import local
from impls import Case, parse
from impls.conv2d import numba_jit_blocked as blocked
from impls.conv2d._correlation import problems
from impls.conv2d._register_tiles import LANES, TILES, blocks, multiply
from impls.numba_setup import numba
from impls.specs import DIRECTIONS, FORWARD, GRAD_INPUT, GRAD_WEIGHTS, arguments

ALONG_SAMPLES = (
    *(f"{batch}x4x3x5,k5x3,f{LANES}" for batch in (8, 9, 16, 17, 29, 33)),
    *(f"{batch}x3x3x4,k3x3,f40" for batch in (41, 57)),
    *(f"31x5x4x6,{rest}" for rest in ("k5x5,f32,s2x1", "k7x5,f64,d1x2", "k3x5,f96,g3", "k7x4,f64,p1:4:2:2")),
)
TURNED_BY_THREADS = ("24x8x8x16,k3x3,f33", "19x5x4x6,k5x5,f32,s2x1", "19x5x4x6,k3x5,f96,g3")
NO_TAP = ("19x3x4x2,k2x2,f16,p0:1:5:4", "19x3x3x2,k2x2,f20,p5:4:0:1")
COVERED = {
    "every width up to two tiles": [
        f"1x1x{width}x2,k1x3,f{LANES + 1}" for width in (1, 2, 3, 4, 5, 7, 8, 13, 14, 17, 29)
    ],
    "every number of vectors": [f"1x3x5x2,k3x3,f{filters}" for filters in (LANES, 2 * LANES, 3 * LANES + 5, 7 * LANES)],
    "neighbouring columns in a vector": [f"2x4x{width}x2,k3x4,f{f}" for width in (9, 16) for f in (1, 2, 3, 5, 8)],
    "neighbouring columns, strided": [f"2x5x{width}x3,k2x3,f3,s1x2" for width in (15, 32)],
    "several rows of taps in a tile": ["2x9x9x1,k5x5,f8", "2x9x9x1,k7x7,f32", "2x9x9x1,k9x9,f16", "2x9x9x3,k3x3,f32"],
    "several samples and several blocks": ["9x33x33x2,k3x3,f4", "41x7x7x3,k3x3,f18", "2x70x40x5,k4x3,f9,s2x1,valid"],
    "one pixel of several samples": ALONG_SAMPLES,
    "pixels that no tap meets, of several samples": NO_TAP,
    "columns that a tap leaves out": [
        "3x9x9x20,k3x3,f20,s2x2,p1:1:1:1",
        "4x4x4x6,k3x3,f16,d3x3",
        "4x5x5x24,k5x5,f32,g8",
    ],
    "lines that meet only padding": ["1x3x4x2,k2x2,f3,p5:4:0:1", "1x3x4x2,k2x2,f3,s3x1,p4:5:0:1"],
    "more channels than a strip should hold": ["1x5x6x1500,k3x3,f3"],
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("texts", COVERED.values(), ids=COVERED)
def test_tiles_cover_every_result_once_whatever_the_size(texts, direction):
    """Designed inputs; outputs start as NaN; the memory around all arrays stays as it is."""
    implementation = impls.get("conv2d", "numba_jit_blocked")
    for text in texts:
        judgement = local.judge(implementation, Case("conv2d", parse("conv2d", text)), direction, seed=1)
        assert judgement.is_right, f"{text}: {judgement.bounds:.3g} bounds: {judgement.where}"


@pytest.mark.parametrize("outputs", range(1, 5 * LANES, 7))
def test_blocks_of_outputs_follow_each_other_to_the_last_output(outputs):
    _, found = blocks(outputs, lambda tile: 1 / tile.rows)
    end = 0
    for first, tile, _, _, last in found:
        assert first == end
        assert 1 <= last <= LANES
        end = first + (TILES[tile].vectors - 1) * LANES + last
    assert end == outputs


def test_few_filters_take_the_columns_beside_them_into_their_vectors():
    """Eight filters would leave half of a vector of sixteen idle."""
    layouts = {
        f: blocked.cut(problems(parse("conv2d", f"1x8x64x4,k5x5,f{f}"), FORWARD)[0], FORWARD, 2)[0] for f in (1, 64)
    }
    assert layouts[1].neighbours > 1
    assert layouts[64].neighbours == 1


@pytest.mark.parametrize("text", ALONG_SAMPLES)
def test_tiles_hold_samples_where_images_are_small_and_samples_many(text):
    assert blocked.cut(problems(parse("conv2d", text), FORWARD)[0], FORWARD, 2)[0].along_samples


@pytest.mark.parametrize("text", TURNED_BY_THREADS)
def test_tiles_hold_rows_where_a_thread_would_wait_for_the_last_samples(text):
    (problem,) = problems(parse("conv2d", text), FORWARD)
    assert [blocked.cut(problem, FORWARD, threads)[0].along_samples for threads in (1, 2)] == [1, 0]


@pytest.mark.parametrize("text", ["32x64x64x16,k3x3,f16", f"{blocked.LEAST_SAMPLES - 1}x4x4x16,k7x7,f16"])
def test_tiles_hold_rows_where_images_are_large_or_samples_few(text):
    for direction in (FORWARD, GRAD_INPUT):
        assert not blocked.cut(problems(parse("conv2d", text), direction)[0], direction, 2)[0].along_samples


@pytest.mark.parametrize("text", NO_TAP)
def test_a_pixel_that_no_tap_meets_has_a_place_in_padding_alone(text):
    (problem,) = problems(parse("conv2d", text), FORWARD)
    cost, _ = blocked.covered_by_samples(problem, blocked.LEAST_SAMPLES)
    assert cost == float("inf")


@pytest.mark.parametrize("direction", [FORWARD, GRAD_INPUT])
@pytest.mark.parametrize(
    ("text", "threads", "samples", "lines"),
    [
        ("1x32x32x8,k3x3,f8", 1, 1, 32),
        ("1x32x32x8,k3x3,f8", 2, 1, 16),
        ("1x9x8x5,k3x3,f9", 4, 1, 3),
        ("3x16x16x8,k3x3,f8", 2, 1, 8),
        ("4x8x8x8,k3x3,f8", 2, 2, 8),
        ("5x8x6x8,k3x3,f8", 8, 1, 8),
        ("33x32x32x8,k3x3,f8", 32, 1, 11),
        ("32x32x32x8,k3x3,f8", 2, 1, 32),
    ],
)
def test_blocks_are_as_small_as_pays_for_the_thread_that_gets_most(text, threads, samples, lines, direction):
    (problem,) = problems(parse("conv2d", text), direction)
    layout, _ = blocked.cut(problem, direction, threads)
    assert (layout.samples, layout.lines) == (samples, lines)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("text", ["11x20x21x5,k3x3,f9", "37x4x5x5,k3x3,f33", "1x9x8x5,k3x3,f9", *TURNED_BY_THREADS])
def test_results_do_not_depend_on_the_number_of_threads(text, direction):
    """Bit for bit: parts of the batch are a function of the problem alone, and padding adds zeros."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one thread on this machine")
    spec, found = parse("conv2d", text), []
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal(a.shape, np.float32) for a in arguments(spec, direction) if not a.is_output]
    before = numba.get_num_threads()
    for threads in (1, 2):
        numba.set_num_threads(threads)
        try:
            plan = impls.get("conv2d", "numba_jit_blocked").plan(spec, (direction,))
            found.append(local.compute(plan, direction, inputs))
        finally:
            numba.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("direction", [FORWARD, GRAD_INPUT])
@pytest.mark.parametrize("text", ["2x6x19x3,k3x3,f5", "2x6x19x1,k3x3,f1", "2x6x19x3,k3x3,f40", "17x6x5x3,k3x3,f16"])
def test_a_pixel_that_is_not_finite_reaches_its_windows_and_no_others(text, direction, value):
    """In every column: neither through padding, nor to neighbours that share its vector, nor to a strip's tiles."""
    spec = parse("conv2d", text)
    rng = np.random.default_rng(4)
    inputs = [rng.standard_normal(a.shape, np.float32) for a in arguments(spec, direction) if not a.is_output]
    plan = impls.get("conv2d", "numba_jit_blocked").plan(spec, (direction,))
    (expected,) = local.compute(plan, direction, inputs)
    for column in range(spec.width):
        spoilt = [inputs[0].copy(), *inputs[1:]]
        spoilt[0][1, 2, column, 0] = value
        (found,) = local.compute(plan, direction, spoilt)
        reached = np.zeros(found.shape, bool)
        reached[1, 1:4, max(column - 1, 0) : column + 2] = True
        np.testing.assert_array_equal(~np.isfinite(found), reached)
        np.testing.assert_array_equal(found[~reached], expected[~reached])


def test_a_nan_pixel_survives_relu():
    spec = parse("conv2d", "2x6x19x3,k3x3,f5,relu")
    rng = np.random.default_rng(4)
    x, w, b = (rng.standard_normal(shape, np.float32) for shape in (spec.x_shape, spec.w_shape, spec.b_shape))
    x[1, 2, 3, 1] = np.nan
    (y,) = local.compute(impls.get("conv2d", "numba_jit_blocked").plan(spec, (FORWARD,)), FORWARD, (x, w, b))
    reached = np.zeros(spec.y_shape, bool)
    reached[1, 1:4, 2:5] = True
    np.testing.assert_array_equal(np.isnan(y), reached)
    assert (y[~reached] >= 0).all()


def test_pixels_that_no_tap_reads_have_gradient_zero_whatever_the_weights():
    """A stride beyond the kernel leaves rows and columns out."""
    spec = parse("conv2d", "1x6x7x2,k1x1,f3,s2x2")
    dy, w = np.ones(spec.y_shape, np.float32), np.full(spec.w_shape, np.nan, np.float32)
    (dx,) = local.compute(impls.get("conv2d", "numba_jit_blocked").plan(spec, (GRAD_INPUT,)), GRAD_INPUT, (dy, w))
    unread = np.ones(spec.x_shape, bool)
    unread[:, ::2, ::2] = False
    np.testing.assert_array_equal(dx[unread], 0)
    assert np.isnan(dx[~unread]).all()


def test_a_nan_in_dy_stays_with_its_filter():
    spec = parse("conv2d", "2x6x19x3,k3x3,f5")
    rng = np.random.default_rng(5)
    x, dy = (rng.standard_normal(shape, np.float32) for shape in (spec.x_shape, spec.y_shape))
    dy[1, 2, 18, 3] = np.nan
    dw, db = local.compute(impls.get("conv2d", "numba_jit_blocked").plan(spec), GRAD_WEIGHTS, (x, dy))
    for gradient in (dw, db):
        np.testing.assert_array_equal(np.isnan(gradient[..., [0, 1, 2, 4]]), False)
        assert np.isnan(gradient[..., 3]).any()


def test_every_shape_runs_the_same_compiled_loops_and_they_are_kept_on_disk():
    for text in ("1x4x4x3,k3x3,f4", "2x9x9x33,k3x3,f35,s2x2", "2x6x5x8,k3x3,f8,g8,relu", "1x9x9x1,k5x5,f1,d2x2,nobias"):
        spec = parse("conv2d", text)
        plan = impls.get("conv2d", "numba_jit_blocked").plan(spec)
        for direction in (FORWARD, GRAD_INPUT, GRAD_WEIGHTS):
            inputs = [a.shape and np.ones(a.shape, np.float32) for a in arguments(spec, direction) if not a.is_output]
            local.compute(plan, direction, inputs)
    for loops in (blocked.correlate, blocked.accumulate):
        assert len(loops.signatures) == 1
        assert list(Path(loops.stats.cache_path).glob("*.nbc"))
    of_winograd = [kinds for kinds in multiply.signatures if isinstance(kinds[2], types.Literal)]
    assert len(of_winograd) <= 1, "its weight gradient alone calls tiles with a literal stride of rows"
    assert len(multiply.signatures) - len(of_winograd) <= 2, "one for each loop: another one compiles all tiles again"
