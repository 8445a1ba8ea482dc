"""The bound is as it was derived, and it decides."""

import numpy as np
import pytest

from bench import check, inputs
from impls import parse_case, reference
from impls.contract import DIRECT, FFT, FLOAT32, TF32

CASE = parse_case("conv2d:2x6x5x4,k3x3,f8,relu")
U = 2.0**-24


def compute(case, direction, arrays, dtype=np.float32):
    shapes = [a.shape for a in check.arguments(case.spec, direction) if a.is_output]
    outputs = [np.empty(shape, dtype) for shape in shapes]
    reference(case.op).plan(case.spec, (direction,)).bind(direction, *arrays, *outputs)()
    return outputs


@pytest.mark.parametrize("direction", ["forward", "grad_weights", "grad_input"])
@pytest.mark.parametrize("design", [inputs.SPARSE_FIRST, inputs.SPARSE_SECOND])
def test_sparse_inputs_have_about_four_products_per_sum(direction, design):
    case = parse_case("conv2d:8x16x16x32,k3x3,f32")
    arrays = inputs.make(case, direction, design, seed=0)
    roundings = check.expected(case, direction, arrays).roundings[0]
    assert 3 < roundings.mean() < 7


def test_roundings_and_magnitudes_are_those_of_each_element():
    case = parse_case("dense:1x3,u1")
    x = np.array([[2, 0, -3]], np.float32)
    w = np.array([[5], [7], [1]], np.float32)
    b = np.array([-4], np.float32)
    truth = check.expected(case, "forward", (x, w, b))
    assert truth.values[0] == 3
    assert truth.roundings[0] == 3
    assert truth.magnitudes[0] == 17
    limit = check.bound(case, "forward", (x, w, b), truth, DIRECT, FLOAT32)[0]
    assert limit == pytest.approx(3 * U / (1 - 3 * U) * 17)


@pytest.mark.parametrize("direction", ["forward", "grad_weights", "grad_input"])
def test_a_rounded_reference_is_right_and_a_slightly_worse_one_is_not(direction):
    arrays = inputs.make(CASE, direction, inputs.SPARSE_FIRST, seed=1)
    truth = check.expected(CASE, direction, arrays)
    outputs = compute(CASE, direction, arrays)
    right = check.verdict(CASE, direction, inputs.SPARSE_FIRST, arrays, outputs, truth, DIRECT, FLOAT32)
    assert right.is_right
    outputs[0] *= np.float32(1 + 40 * U)
    worse = check.verdict(CASE, direction, inputs.SPARSE_FIRST, arrays, outputs, truth, DIRECT, FLOAT32)
    assert not worse.is_right


@pytest.mark.parametrize("direction", ["forward", "grad_weights", "grad_input"])
@pytest.mark.parametrize("design", [inputs.SPARSE_FIRST, inputs.SPARSE_SECOND])
def test_tf32_takes_factors_of_11_bits_and_neither_fewer_nor_for_float32(direction, design):
    """Cut off, not rounded: the larger error of the two. bfloat16 keeps 8 bits."""
    arrays = inputs.make(CASE, direction, design, seed=1)
    truth = check.expected(CASE, direction, arrays)

    def bounds(bits: int, arithmetic: str) -> float:
        mask = np.uint32(0xFFFFFFFF << (24 - bits) & 0xFFFFFFFF)
        cut = [(a.view(np.uint32) & mask).view(np.float32) for a in arrays[:2]]
        outputs = compute(CASE, direction, [*cut, *arrays[2:]])
        return check.verdict(CASE, direction, design, arrays, outputs, truth, DIRECT, arithmetic).bounds

    assert 0.05 < bounds(11, TF32) <= 1
    assert bounds(8, TF32) > 1
    assert bounds(11, FLOAT32) > 100


def test_integers_must_be_exact_unless_an_fft_computes_them():
    arrays = inputs.make(CASE, "forward", inputs.INTEGERS, seed=1)
    truth = check.expected(CASE, "forward", arrays)
    outputs = compute(CASE, "forward", arrays)
    assert check.verdict(CASE, "forward", inputs.INTEGERS, arrays, outputs, truth, DIRECT, FLOAT32).bounds == 0
    outputs[0][0, 0, 0, 0] += np.float32(1e-3)
    assert not check.verdict(CASE, "forward", inputs.INTEGERS, arrays, outputs, truth, DIRECT, FLOAT32).is_right
    outputs[0][0, 0, 0, 0] += np.float32(1)
    assert not check.verdict(CASE, "forward", inputs.INTEGERS, arrays, outputs, truth, FFT, FLOAT32).is_right


@pytest.mark.parametrize("arithmetic", [FLOAT32, TF32])
def test_a_maximum_has_no_error_whatever_is_declared(arithmetic):
    case = parse_case("maxpool2d:2x5x5x1,pool2x2")
    arrays = inputs.make(case, "forward", inputs.DENSE, seed=0)
    truth = check.expected(case, "forward", arrays)
    (limit,) = check.bound(case, "forward", arrays, truth, DIRECT, arithmetic)
    assert not limit.any()
    value = truth.values[0].copy()
    assert check.judge(case, "forward", (value,), truth, (limit,)).bounds == 0
    value.flat[3] *= 1 + U
    assert check.judge(case, "forward", (value,), truth, (limit,)).bounds == np.inf


def test_the_gradient_of_a_maximum_is_rounded_where_windows_give_to_the_same_pixel():
    """Of 1 in the corner of its window, of 9 in the middle, the others are the largest of one window or of none."""
    case = parse_case("maxpool2d:1x5x5x1,pool3x3,s1x1")
    x = np.zeros(case.spec.x_shape, np.float32)
    x[0, 2, 2] = 1
    y, dy = np.ones(case.spec.y_shape, np.float32), np.full(case.spec.y_shape, -1, np.float32)
    truth = check.expected(case, "grad_input", (x, y, dy))
    assert truth.values[0][0, 2, 2] == -9
    assert truth.roundings[0][0, 2, 2] == 8
    assert truth.magnitudes[0][0, 2, 2] == 9
    assert truth.roundings[0].sum() == 8
    dy[0, 0] = 0
    assert check.expected(case, "grad_input", (x, y, dy)).roundings[0][0, 2, 2] == 5


def test_a_float64_result_may_be_off_by_the_truths_own_roundings_too():
    """1 + u + u + u in float64: 1 from left to right, 1 + 4u from right to left, and either may be the reference."""
    u = 2.0**-53
    x, w = np.array([[1, u, u, u]]), np.ones((4, 1))
    case = parse_case("dense:1x4,u1,float64")
    truth = check.expected(case, "forward", (x, w, np.zeros(1)))
    (limit,) = check.bound(case, "forward", (x, w, np.zeros(1)), truth, DIRECT, "float64")
    for order in (1.0, 1 + 4 * u):
        assert check.judge(case, "forward", (np.array([[order]]),), truth, (limit,)).is_right
    assert limit == pytest.approx(2 * 5 * u, rel=1e-6)


def test_what_was_never_written_is_infinitely_wrong():
    arrays = inputs.make(CASE, "forward", inputs.SPARSE_FIRST, seed=1)
    truth = check.expected(CASE, "forward", arrays)
    outputs = compute(CASE, "forward", arrays)
    outputs[0][1, 2, 3, 4] = np.nan
    judgement = check.verdict(CASE, "forward", inputs.SPARSE_FIRST, arrays, outputs, truth, DIRECT, FLOAT32)
    assert judgement.bounds == np.inf
    assert "out[1, 2, 3, 4] is nan" in judgement.where


def test_dense_inputs_are_blind_to_half_precision_and_sparse_ones_are_not():
    """Why acceptance is judged on sparse inputs: over many terms the worst-case bound hides everything."""
    case = parse_case("dense:4x20000,u8")
    found = {}
    for design in (inputs.DENSE, inputs.SPARSE_FIRST):
        arrays = inputs.make(case, "forward", design, seed=0)
        truth = check.expected(case, "forward", arrays)
        half = [np.float16(a).astype(np.float32) for a in arrays]
        outputs = compute(case, "forward", half)
        found[design] = check.verdict(case, "forward", design, arrays, outputs, truth, DIRECT, FLOAT32).bounds
    assert found[inputs.DENSE] < 1
    assert found[inputs.SPARSE_FIRST] > 100


def test_the_reference_in_blocks_is_the_reference(monkeypatch):
    case = parse_case("conv2d:5x6x5x4,k3x3,f8")
    for direction in ("forward", "grad_weights", "grad_input"):
        arrays = inputs.make(case, direction, inputs.DENSE, seed=3)
        whole = check.expected(case, direction, arrays).values
        with monkeypatch.context() as patch:
            patch.setattr(check, "BLOCK_BYTES", 1)
            parts = check.expected(case, direction, arrays).values
        for a, b in zip(whole, parts, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_same_seed_gives_the_same_inputs_and_another_one_does_not():
    first, again, other = (inputs.make(CASE, "forward", inputs.DENSE, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_integer_sums_stay_exact_in_float32():
    case = parse_case("dense:2x100000,u2")
    arrays = inputs.make(case, "forward", inputs.INTEGERS, seed=0)
    assert check.expected(case, "forward", arrays).magnitudes[0].max() < 2**24
