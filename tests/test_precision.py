"""What ran shows in its errors: every arithmetic and algorithm, emulated in NumPy, is recognised; a fault is not."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from bench import check, inputs, precision
from bench.precision import BFLOAT16, FLOAT16, SUMS, TRANSFORM, WINOGRAD, Inferred
from impls import get, parse_case
from impls.contract import DIRECT, FFT, FLOAT32, FLOAT64, GEMM, TF32
from impls.specs import DIRECTIONS, arguments

IMAGE = "conv2d:2x40x36x3,k3x3,f4"
CASES = (IMAGE, "conv2d:3x9x8x16,k5x3,f8,s2x1,relu", "dense:33x70,u40", "conv2d:1x6x5x8,k1x1,f8,float64")

WINOGRAD_2X3 = (
    [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]],
    [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    [[1, 1, 1, 0], [0, 1, -1, -1]],
)
WINOGRAD_4X3 = (
    [
        [1 / 4, 0, 0],
        [-1 / 6] * 3,
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
)
"""(G, B^T, A^T) of F(2x2, 3x3) and F(4x4, 3x3): Lavin and Gray, CVPR 2016, section 4."""


def keep(bits, cut=False):
    """A rounding of float32 values to so many bits, by the width of their last one."""

    def rounded(array):
        unit = 2.0 ** (np.floor(np.log2(np.maximum(abs(array).astype(np.float64), 1e-300))) - bits + 1)
        return ((np.trunc if cut else np.round)(array / unit) * unit).astype(np.float32)

    return rounded


def half(array):
    return array.astype(np.float16).astype(np.float32)


def summed(case, direction, arrays, factor=None, total=np.float32, result=None):
    """Products of rounded factors, added up in 16 parts in ``total``, as a direct sum or a GEMM does."""
    first, second = (a if factor is None else factor(a) for a in arrays[:2])
    linear = case if case.op == "dense" else replace(case, spec=replace(case.spec, activation=None))
    bias = arrays[2] if len(arrays) == 3 else None
    nothing = () if bias is None else (np.zeros_like(bias),)
    sums = 0 if bias is None else bias.astype(total)
    for i in range(16):
        part = np.where(np.arange(second.size).reshape(second.shape) % 16 == i, second, 0)
        products = check.expected(linear, direction, (first, part, *nothing)).values[0]
        sums = (sums + products.astype(total)).astype(total)
    if direction == "forward" and case.spec.activation:
        sums = np.maximum(sums, 0)
    return [(result or (lambda a: a))(sums).astype(case.spec.dtype)]


def by_fft(case, arrays):
    """A forward convolution of one stride by a transform of the whole padded image, in float32."""
    x, w, b = arrays
    (top, bottom), (left, right) = case.spec.pads
    image = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    sides = image.shape[1:3]
    spectra = np.fft.fft2(image, axes=(1, 2)), np.fft.fft2(w, s=sides, axes=(0, 1))
    y = np.fft.ifft2(np.einsum("nhwc,hwcf->nhwf", spectra[0], spectra[1].conj()), axes=(1, 2)).real
    _, rows, columns, _ = case.spec.y_shape
    return [(y[:, :rows, :columns] + b).astype(x.dtype)]


def by_winograd(case, arrays, matrices):
    """A forward 3x3 convolution of one stride by Winograd's algorithm, in float32."""
    g, bt, at = (np.array(m, np.float32) for m in matrices)
    x, w, b = arrays
    size, tile = at.shape
    n, rows, columns, filters = case.spec.y_shape
    down, across = -(-rows // size), -(-columns // size)
    image = np.pad(x, ((0, 0), (1, down * size + 1 - rows), (1, across * size + 1 - columns), (0, 0)))
    u = np.einsum("ia,abcf,jb->ijcf", g, w, g)
    y = np.empty((n, down * size, across * size, filters), np.float32)
    for i in range(down):
        for j in range(across):
            d = image[:, i * size : i * size + tile, j * size : j * size + tile]
            m = np.einsum("nijc,ijcf->nijf", np.einsum("ia,nabc,jb->nijc", bt, d, bt), u)
            y[:, i * size : (i + 1) * size, j * size : (j + 1) * size] = np.einsum("ia,nabf,jb->nijf", at, m, at)
    return [y[:, :rows, :columns] + b]


def inferred(text, direction, compute):
    case = parse_case(text)
    arrays = inputs.make(case, direction, inputs.IMPULSE, seed=0)
    return precision.infer(precision.probe(case, direction, arrays), compute(case, arrays))


ARITHMETICS = {
    "float64": ({"total": np.float64}, FLOAT64),
    "float32": ({}, FLOAT32),
    "TF32, rounded": ({"factor": keep(11)}, TF32),
    "TF32, cut": ({"factor": keep(11, cut=True)}, TF32),
    "float16": ({"factor": half}, FLOAT16),
    "float16 throughout": ({"factor": half, "total": np.float16}, FLOAT16),
    "bfloat16": ({"factor": keep(8)}, BFLOAT16),
    "bfloat16, cut": ({"factor": keep(8, cut=True)}, BFLOAT16),
    "bfloat16 results": ({"factor": keep(8), "result": keep(8)}, BFLOAT16),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("text", CASES[:3])
@pytest.mark.parametrize("name", ARITHMETICS)
def test_the_arithmetic_of_sums_is_recognised_in_every_direction(name, text, direction):
    options, arithmetic = ARITHMETICS[name]
    found = inferred(text, direction, lambda case, arrays: summed(case, direction, arrays, **options))
    assert (found.arithmetic, found.algorithm) == (arithmetic, SUMS), found.evidence


@pytest.mark.parametrize(
    ("factor", "total", "arithmetic"), [(None, np.float64, FLOAT64), (np.float32,) * 2 + (FLOAT32,)]
)
def test_a_problem_in_float64_may_be_computed_in_less(factor, total, arithmetic):
    found = inferred(CASES[3], "forward", lambda case, arrays: summed(case, "forward", arrays, factor, total))
    assert found.arithmetic == arithmetic, found.evidence


def test_one_rounding_proves_no_float64_where_every_sum_has_the_huge_product():
    """Float32 with fused multiply-adds, the huge product last: on a tiny image all of its sums are rounded but once."""

    def huge_last(case, arrays):
        dy, w = arrays
        huge = np.where(abs(dy) >= inputs.IMPULSE_SIZE, dy, 0)
        parts = (check.expected(case, "grad_input", (part, w)).values[0] for part in (dy - huge, huge))
        return [(next(parts).astype(np.float32) + next(parts)).astype(np.float32)]

    found = inferred("conv2d:32x2x2x32,k7x7,f64", "grad_input", huge_last)
    assert (found.arithmetic, found.algorithm) == (FLOAT32, SUMS), found.evidence


ALGORITHMS = {
    "an FFT": (by_fft, FFT),
    "Winograd's F(2x2, 3x3)": (partial(by_winograd, matrices=WINOGRAD_2X3), WINOGRAD),
    "Winograd's F(4x4, 3x3)": (partial(by_winograd, matrices=WINOGRAD_4X3), WINOGRAD),
}


@pytest.mark.parametrize("text", [IMAGE, "conv2d:1x28x28x32,k3x3,f8", "conv2d:2x9x9x3,k3x3,f4"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_transform_is_recognised_where_the_image_is_larger_than_its_tiles(name, text):
    compute, algorithm = ALGORITHMS[name]
    found = inferred(text, "forward", compute)
    assert found.algorithm == (algorithm if "9x9" not in text else TRANSFORM), found.evidence
    assert found.arithmetic == FLOAT32


FAULTS = {
    "zeros": lambda right: np.zeros_like(right),
    "one bad pixel": lambda right: np.where(np.arange(right.size).reshape(right.shape) == 9, right * 1.0001, right),
    "a bias that is not added": lambda right: right + np.float32(inputs.SMALL),
    "results mixed up": lambda right: right[::-1, ::-1],
    "not a number": lambda right: np.full_like(right, np.nan),
    "a factor that is off": lambda right: right * np.float32(1.001),
}


@pytest.mark.parametrize("text", [IMAGE, "conv2d:3x6x7x4,k3x3,f5"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_result_is_no_arithmetic(name, text):
    found = inferred(text, "forward", lambda case, arrays: [FAULTS[name](summed(case, "forward", arrays)[0])])
    assert (found.arithmetic, found.algorithm) == ("", "")


@pytest.mark.parametrize(
    ("algorithm", "arithmetic", "ran", "is_fault"),
    [
        (DIRECT, FLOAT32, (FLOAT32, SUMS), False),
        (GEMM, FLOAT32, (FLOAT64, SUMS), False),
        (GEMM, TF32, (FLOAT32, SUMS), False),
        (FFT, FLOAT32, (FLOAT32, SUMS), False),
        (FFT, FLOAT32, (FLOAT32, FFT), False),
        (DIRECT, FLOAT32, ("", ""), False),
        (DIRECT, FLOAT64, (FLOAT32, SUMS), True),
        (GEMM, FLOAT32, (TF32, SUMS), True),
        (GEMM, TF32, (FLOAT16, SUMS), True),
        (GEMM, TF32, (BFLOAT16, SUMS), True),
        (DIRECT, FLOAT32, (FLOAT32, FFT), True),
        (GEMM, FLOAT32, (FLOAT32, WINOGRAD), True),
        (GEMM, FLOAT32, (FLOAT32, TRANSFORM), True),
        (FFT, FLOAT32, (FLOAT32, TRANSFORM), False),
        (FFT, FLOAT32, (FLOAT32, WINOGRAD), False),
        ("winograd(4, 3)", FLOAT32, (FLOAT32, WINOGRAD), False),
        ("winograd(2, 3)", FLOAT32, (FLOAT32, TRANSFORM), False),
        ("winograd(2, 3)", FLOAT32, (FLOAT32, SUMS), False),
        ("winograd(2, 3)", FLOAT32, (BFLOAT16, SUMS), False),
        ("winograd(4, 3)", FLOAT32, (FLOAT32, FFT), True),
    ],
)
def test_less_exact_than_declared_is_a_fault_and_more_exact_is_none(algorithm, arithmetic, ran, is_fault):
    reason = precision.misfit(algorithm, arithmetic, Inferred(*ran, "the evidence"))
    assert bool(reason) == is_fault
    assert not is_fault or reason.endswith("the evidence")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("text", ["conv2d:1x28x28x32,k3x3,f8", "conv2d:2x9x9x8,k3x3,f8", "conv2d:1x16x16x8,k5x5,f8"])
def test_our_own_transform_is_what_it_declares(text, direction):
    record, spec = get("conv2d", "numba_jit_winograd"), parse_case(text).spec

    def compute(case, arrays):
        outputs = [np.empty(a.shape, np.float32) for a in arguments(spec, direction) if a.is_output]
        getattr(record.plan(spec, (direction,)), direction)(*arrays, *outputs)
        return outputs

    found = inferred(text, direction, compute)
    assert not precision.misfit(record.algorithm_of(spec, direction), FLOAT32, found)
    assert precision.misfit(DIRECT, FLOAT32, found)


def test_pooling_tells_nothing():
    assert not precision.tells(parse_case("maxpool2d:2x6x6x3,pool2x2"))
    assert precision.tells(parse_case(IMAGE))
