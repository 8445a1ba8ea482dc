"""Winograd's minimal filtering: exact matrices, a bound that wrong ones break, tiles that cover every result."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import impls
from bench import check, inputs, local
from bench.winograd_bound import error_bound
from impls import Case, get, parse
from impls.contract import FLOAT32
from impls.conv2d import numba_jit_winograd as winograd
from impls.conv2d._correlation import MOST_BYTES, problems
from impls.conv2d._winograd_transforms import FORMS, LANES
from impls.numba_setup import numba
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, arguments
from impls.winograd import POINTS, algorithm, matrices, sizes

NAME = "numba_jit_winograd"
DIRECTIONS = (FORWARD, GRAD_INPUT)
COVERED = {
    "F(2, 3), more tiles than a block": ["37x2x2x5,k3x3,f4", "2x2x3x4,k3x3,f4,p1:2:1:1"],
    "F(4, 3), results past a tile's edge": [f"1x{side}x{side + 2}x5,k3x3,f6" for side in (4, 5, 6, 7)],
    "F(2, 5) and F(4, 5)": ["2x6x6x5,k5x5,f5,valid", "2x9x6x5,k5x5,f7,relu", "1x9x9x6,k5x5,f5,p7:6:0:2"],
    "F(2, 7)": ["2x9x5x4,k7x7,f5", "1x7x8x4,k7x7,f4,valid,nobias"],
    "channels and filters past a vector's edge": [f"1x5x5x{LANES + 1},k3x3,f{2 * LANES + 3},relu", "1x4x9x35,k3x3,f99"],
    "no padding, and too much of it": ["2x8x7x4,k3x3,f4,valid", "2x5x6x4,k3x3,f4,p2:0:1:3", "1x3x3x4,k3x3,f4,p4:5:0:6"],
    "several blocks": ["5x24x24x40,k3x3,f8"],
}


@pytest.mark.parametrize("sides", [(m, r) for m in range(1, 7) for r in range(1, 8) if 3 <= m + r <= len(POINTS) + 2])
def test_the_identity_holds_exactly_in_fractions(sides):
    m, r = sides
    back, of_kernel, of_image = matrices(m, r)
    d = [Fraction(k * k + 3, k + 2) for k in range(m + r - 1)]
    g = [Fraction(2 * k - 5, 3) for k in range(r)]

    def times(matrix, vector):
        return [sum(c * v for c, v in zip(row, vector, strict=True)) for row in matrix]

    products = [a * b for a, b in zip(times(of_kernel, g), times(of_image, d), strict=True)]
    assert times(back, products) == [sum(d[i + k] * g[k] for k in range(r)) for i in range(m)]


def test_what_transforms_image_and_results_is_exact_in_float32():
    for m, r in FORMS:
        for row in (*matrices(m, r).image, *matrices(m, r).results):
            assert all(Fraction(float(np.float32(float(c)))) == c for c in row)


def test_more_points_than_there_are_cannot_be_asked_for():
    with pytest.raises(ValueError, match=r"F\(7, 3\) needs 8 points"):
        matrices(7, 3)


def test_a_declared_algorithm_says_its_sizes():
    assert sizes(algorithm(4, 3)) == (4, 3)
    assert sizes("direct") is None


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("texts", COVERED.values(), ids=COVERED)
def test_tiles_cover_every_result_whatever_the_size(texts, direction):
    """Designed inputs; outputs start as NaN; the memory around all arrays stays as it is."""
    for text in texts:
        case = Case("conv2d", parse("conv2d", text))
        judgement = local.judge(impls.get("conv2d", NAME), case, direction, seed=1)
        assert judgement.is_right, f"{text}: {judgement.bounds:.3g} bounds: {judgement.where}"


def test_these_problems_take_every_form():
    implementation = impls.get("conv2d", NAME)
    declared = {
        implementation.algorithm_of(parse("conv2d", text), direction)
        for texts in COVERED.values()
        for text in texts
        for direction in DIRECTIONS
    }
    assert declared == {algorithm(m, r) for m, r in FORMS}


def halved(*stages):
    """What these stages give, rounded to half precision."""
    return lambda stage, a: a.astype(np.float16).astype(np.float32) if stage in stages else a


def enlarged(stage, a):
    """Results a little too large."""
    return a * np.float32(1.0001) if stage == "results" else a


def dropped(stage, a):
    """One of the products forgotten."""
    if stage == "products":
        a[2, 1] = 0
    return a


def in_numpy(spec, x, w, b, m, after=lambda stage, a: a, coefficient=0.0):
    """F(m, r) of a forward pass in float32; ``after`` sees what every stage gives, ``coefficient`` spoils one of B."""
    r, (top, left) = spec.kernel[0], (pad[0] for pad in spec.pads)
    back, of_kernel, of_image = (np.array(matrix, np.float64).astype(np.float32) for matrix in matrices(m, r))
    of_image[1, 2] *= np.float32(1 + coefficient)
    side, (_, height, width, _) = m + r - 1, spec.y_shape
    down, across = -(-height // m), -(-width // m)
    image = np.zeros((spec.batch, down * m + r - 1, across * m + r - 1, spec.channels), np.float32)
    image[:, top : top + spec.height, left : left + spec.width] = x
    tiles = np.array(
        [[image[:, i * m : i * m + side, j * m : j * m + side] for j in range(across)] for i in range(down)]
    )
    pixels = after("image", np.einsum("ea,ijnabc,gb->egijnc", of_image, tiles, of_image))
    taps = after("kernel", np.einsum("ea,abcf,gb->egcf", of_kernel, w, of_kernel))
    products = after("products", np.einsum("egijnc,egcf->egijnf", pixels, taps))
    y = after("results", np.einsum("pe,egijnf,qg->nipjqf", back, products, back))
    y = y.reshape(spec.batch, down * m, across * m, -1)[:, :height, :width] + b
    return np.ascontiguousarray(y, np.float32)


WRONG = {
    "half precision": {"after": halved("image", "kernel", "products", "results")},
    "the image alone in half precision": {"after": halved("image")},
    "the kernel alone in half precision": {"after": halved("kernel")},
    "a coefficient wrong by a thousandth": {"coefficient": 1e-3},
    "a product forgotten": {"after": dropped},
    "results a ten thousandth too large": {"after": enlarged},
}


@pytest.mark.parametrize("form", [(2, 3), (4, 3), (4, 5)], ids=str)
def test_float32_is_right_and_wrong_winograds_are_wrong(form):
    m, r = form
    case = Case("conv2d", parse("conv2d", f"2x11x10x24,k{r}x{r},f6"))

    def worst(**how):
        found = []
        for design in inputs.judged(case):
            x, w, b = inputs.make(case, FORWARD, design, seed=3)
            truth = check.expected(case, FORWARD, (x, w, b))
            y = in_numpy(case.spec, x, w, b, m, **how)
            verdict = check.verdict(case, FORWARD, design, (x, w, b), (y,), truth, algorithm(m, r), FLOAT32)
            found.append(verdict.bounds)
        return max(found)

    assert worst() < 0.5
    assert {name: worst(**how) for name, how in WRONG.items() if worst(**how) <= 1} == {}


def test_the_bound_is_larger_than_that_of_a_plain_sum_everywhere():
    """What the fewer multiplications cost: absolute values do not cancel in the transforms."""
    case = Case("conv2d", parse("conv2d", "2x7x6x5,k3x3,f4"))
    arrays = inputs.make(case, FORWARD, inputs.DENSE, seed=1)
    truth = check.expected(case, FORWARD, arrays)
    plain, theirs = (check.bound(case, FORWARD, arrays, truth, how, FLOAT32)[0] for how in ("direct", algorithm(4, 3)))
    assert (theirs > plain).all()


@pytest.mark.parametrize(
    ("form", "small"),
    [((2, 3), "kernel"), ((4, 3), "kernel"), ((4, 3), "image"), ((4, 5), "kernel"), ((4, 5), "image")],
    ids=str,
)
def test_the_bound_holds_where_transforms_underflow(form, small):
    """Numbers near the least of float32, times large ones: what is lost is no share of the result's own size."""
    m, r = form
    case = Case("conv2d", parse("conv2d", f"2x7x6x5,k{r}x{r},f4"))
    x, w, b = inputs.make(case, FORWARD, inputs.DENSE, seed=5)
    tiny, large = np.float32(2.0**-146), np.float32(2.0**60)
    x, w = (x * tiny, w * large) if small == "image" else (x * large, w * tiny)
    (truth,) = check.expected(case, FORWARD, (x, w, np.zeros_like(b))).values
    errors = np.abs(in_numpy(case.spec, x, w, np.zeros_like(b), m) - truth)
    bound = error_bound(case.spec, FORWARD, (x, w, None), m, r, 2.0**-24, 2.0**-126)
    assert (errors <= bound).all()
    relative = error_bound(case.spec, FORWARD, (x, w, None), m, r, 2.0**-24, 0.0)
    assert (errors > relative).any()


def test_a_problem_that_is_not_winograds_has_no_bound():
    spec = parse("conv2d", "2x7x6x5,k3x3,f4,s2x2")
    with pytest.raises(ValueError, match=r"F\(4, 3\) does not compute forward of 2x7x6x5,k3x3,f4,s2x2"):
        error_bound(spec, FORWARD, (np.ones(spec.x_shape), np.ones(spec.w_shape), None), 4, 3, 2.0**-24, 2.0**-126)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_results_do_not_depend_on_the_number_of_threads(direction):
    """Bit for bit: a tile is computed alone, whoever computes it."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one thread on this machine")
    spec, found = parse("conv2d", "9x20x21x33,k3x3,f9"), []
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(a.shape, np.float32) for a in arguments(spec, direction) if not a.is_output]
    before = numba.get_num_threads()
    for threads in (1, 2):
        numba.set_num_threads(threads)
        try:
            found.append(local.compute(impls.get("conv2d", NAME).plan(spec, (direction,)), direction, arrays))
        finally:
            numba.set_num_threads(before)
    np.testing.assert_array_equal(*(arrays for (arrays,) in found))


def test_packed_weights_give_the_same_bits_in_both_directions_until_the_next_pack():
    spec = parse("conv2d", "2x9x8x18,k5x5,f20")
    plan = impls.get("conv2d", NAME).plan(spec)
    rng = np.random.default_rng(4)
    x, dy, b = (rng.standard_normal(shape, np.float32) for shape in (spec.x_shape, spec.y_shape, spec.b_shape))
    y, dx = np.empty(spec.y_shape, np.float32), np.empty(spec.x_shape, np.float32)
    for w in rng.standard_normal((2, *spec.w_shape), np.float32):
        packed = plan.pack(w)
        plan.workspace.fill(0xFF)  # another plan has worked there
        plan.bind(FORWARD, x, packed, b, y)()
        plan.bind(GRAD_INPUT, dy, packed, dx)()
        np.testing.assert_array_equal(y, local.compute(plan, FORWARD, (x, w, b))[0])
        np.testing.assert_array_equal(dx, local.compute(plan, GRAD_INPUT, (dy, w))[0])


def test_a_nan_pixel_reaches_its_windows_through_relu_and_no_tile_that_does_not_read_it():
    spec = parse("conv2d", "2x12x12x5,k3x3,f5,relu")
    rng = np.random.default_rng(5)
    x, w, b = (rng.standard_normal(shape, np.float32) for shape in (spec.x_shape, spec.w_shape, spec.b_shape))
    x[1, 5, 6, 1] = np.nan
    plan = impls.get("conv2d", NAME).plan(spec, (FORWARD,))
    (y,) = local.compute(plan, FORWARD, (x, w, b))
    assert impls.get("conv2d", NAME).algorithm_of(spec, FORWARD) == algorithm(4, 3)
    assert np.isnan(y[1, 4:7, 5:8]).all()
    y[1, 4:8, 4:8] = 0
    assert not np.isnan(y).any()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2x8x8x8,k3x5,f8", "square kernels"),
        ("2x8x8x8,k1x1,f8", "square kernels of 3, 5, 7 taps"),
        ("2x8x8x8,k3x3,f8,s2x2", "no stride"),
        ("2x8x8x8,k3x3,f8,g2", "no stride, dilation or groups"),
        ("2x8x8x3,k3x3,f8", "cost more than the products they save"),
        ("2x1x1x8,k3x3,f8", "taps that meet only padding"),
        ("2x8x8x8,k3x3,f8,float64", "computes in float32, not in float64"),
    ],
)
def test_what_does_not_suit_is_refused_with_the_reason(text, reason):
    for direction in DIRECTIONS:
        assert reason in impls.get("conv2d", NAME).supports(parse("conv2d", text), direction)
    assert GRAD_WEIGHTS not in impls.get("conv2d", NAME).directions


def test_every_shape_runs_the_same_compiled_loops_and_they_are_kept_on_disk():
    for text in ("1x4x4x4,k3x3,f4", "2x9x9x33,k5x5,f35,relu", "1x9x9x5,k7x7,f4,nobias"):
        spec = parse("conv2d", text)
        plan = impls.get("conv2d", NAME).plan(spec)
        for direction in DIRECTIONS:
            arrays = [a.shape and np.ones(a.shape, np.float32) for a in arguments(spec, direction) if not a.is_output]
            local.compute(plan, direction, arrays)
    for loops in (winograd.pack, winograd.correlate):
        assert len(loops.signatures) == 1
        assert list(Path(loops.stats.cache_path).glob("*.nbc"))


@pytest.mark.parametrize("threads", [2, 3, 16])
@pytest.mark.parametrize("spec", ["12x20x20x256,k3x3,f256", "9x9x9x8,k5x5,f8", "1x4x4x4,k3x3,f4"])
def test_every_thread_gets_as_many_tiles(spec, threads, monkeypatch):
    """To one tile in each of its blocks."""
    monkeypatch.setattr(numba, "get_num_threads", lambda: threads)
    (problem,) = problems(parse("conv2d", spec), FORWARD)
    layout, _ = winograd.cut(problem, FORWARD)
    total = problem.batch * layout.down * layout.across
    several = -(-total // layout.tiles)
    ends = [min((worker + 1) * several // threads * layout.tiles, total) for worker in range(threads)]
    shares = np.diff([0, *ends])
    assert shares.sum() == total
    assert max(shares) <= -(-total // threads) + several // threads + 1


@pytest.mark.parametrize("threads", [2, 4, 8])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_blocks_become_smaller_before_threads_are_left_out(direction, threads, monkeypatch):
    """Of many channels: all workers' scratch memory together stays below its limit."""
    monkeypatch.setattr(numba, "get_num_threads", lambda: threads)
    (problem,) = problems(parse("conv2d", "32x28x28x512,k3x3,f512"), direction)
    *_, (workers, own) = winograd.NumbaJitWinograd._shapes(problem, direction)
    assert workers == threads
    assert 4 * workers * own <= MOST_BYTES


@pytest.mark.parametrize("spec", ["12x5x5x16,k3x3,f48", "24x12x12x64,k7x7,f32", "5x9x7x8,k5x5,f20"])
def test_a_plan_finds_room_for_every_batch(spec):
    """How many tiles a block has depends on the batch, and more samples may take less of something."""
    record, wanted = get("conv2d", "numba_jit_winograd"), parse("conv2d", spec)
    for batch in range(1, 40):
        record.plan(replace(wanted, batch=batch), (FORWARD, GRAD_INPUT))


def test_what_is_refused_declares_no_form():
    record = get("conv2d", "numba_jit_winograd")
    assert record.algorithm_of(parse("conv2d", "2x9x9x8,k9x9,f8"), FORWARD) == "winograd"
