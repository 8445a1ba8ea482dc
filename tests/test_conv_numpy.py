"""numpy_gemm, cv2 and scipy: what is particular to them. Every implementation's shapes are tested elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from impls import registry
from impls.contract import DIRECT, FFT
from impls.conv2d import _stacked, numpy_gemm
from impls.specs import DIRECTIONS, FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ConvSpec, arguments, parse

OURS = ("numpy_gemm", "cv2", "scipy")


def small_integers(spec, direction, seed=0):
    """Inputs whose sums are exact in float32, and poisoned outputs."""
    rng = np.random.default_rng(seed)
    return [
        None
        if a.shape is None
        else np.full(a.shape, np.nan, spec.dtype)
        if a.is_output
        else rng.integers(-3, 4, a.shape).astype(spec.dtype)
        for a in arguments(spec, direction)
    ]


def results(name, spec, direction):
    """The outputs of an implementation, whose scratch holds NaN before the call."""
    plan = registry.get("conv2d", name).plan(spec, (direction,))
    plan.workspace.fill(255)
    arrays = small_integers(spec, direction)
    plan.bind(direction, *arrays)()
    return [array for array, a in zip(arrays, arguments(spec, direction), strict=True) if a.is_output]


def assert_exact(name, spec, direction):
    """Bit for bit what float64 gives."""
    for got, expected in zip(results(name, spec, direction), results("reference", spec, direction), strict=True):
        np.testing.assert_array_equal(got, expected)


def offered(name):
    """The directions of an implementation."""
    return registry.get("conv2d", name).directions


PECULIAR = {
    "one kernel row, dilated, with a stride": "2x9x7x4,k1x3,f6,s3x1,d3x2",
    "dilated rows with a stride": "2x9x8x4,k3x2,f6,s2x1,d2x1",
    "padding wider than the kernel": "2x5x4x2,k2x3,f3,p6:3:4:7",
    "stride longer than the kernel": "3x11x9x2,k2x1,f3,s3x4,valid",
    "even kernel, stride and groups": "2x8x9x6,k4x2,f4,s2x3,g2",
    "pointwise, several samples": "5x3x4x6,k1x1,f2",
    "pointwise in groups": "5x3x4x6,k1x1,f2,g2",
    "tiny image under a large kernel": "3x2x3x2,k7x5,f3,relu",
    "tiny image, stride and dilation": "9x3x3x2,k5x5,f3,s2x2,d2x1",
    "float64": "2x6x7x3,k3x3,f4,float64",
}


@pytest.mark.parametrize("text", PECULIAR.values(), ids=PECULIAR)
@pytest.mark.parametrize(("name", "direction"), [(name, d) for name in OURS for d in offered(name)])
def test_peculiar_problems_are_exact_on_small_integers(name, direction, text):
    """Every way of computing inside these implementations is met, with scratch that starts as NaN."""
    assert_exact(name, parse("conv2d", text), direction)


WAYS = [
    ("32x28x28x8,k5x5,f16", FORWARD, numpy_gemm.Windows),
    ("32x28x28x8,k5x5,f16", GRAD_WEIGHTS, numpy_gemm.Windows),
    ("32x28x28x8,k5x5,f16", GRAD_INPUT, numpy_gemm.Turned),
    ("32x28x28x8,k5x5,f16,s2x2", GRAD_INPUT, numpy_gemm.Scatter),
    ("32x28x28x8,k3x3,f16,p5:5:5:5", GRAD_INPUT, numpy_gemm.Scatter),
    ("32x4x4x64,k7x7,f64", FORWARD, numpy_gemm.Dense),
    ("32x28x28x8,k1x1,f16", FORWARD, numpy_gemm.Dense),
    ("1x4x4x64,k7x7,f64", FORWARD, numpy_gemm.Windows),
    ("32x8x8x64,k7x7,f64", FORWARD, numpy_gemm.Rows),
    ("32x8x8x64,k7x7,f64", GRAD_WEIGHTS, numpy_gemm.Windows),
    ("32x8x8x16,k3x3,f16", FORWARD, numpy_gemm.Windows),
    ("32x8x8x64,k7x7,f64,d2x1", FORWARD, numpy_gemm.Windows),
    ("32x4x4x64,k5x5,f64", FORWARD, numpy_gemm.Rows),
    ("32x28x28x1,k5x5,f16", FORWARD, numpy_gemm.Taps),
    ("32x28x28x1,k5x5,f16", GRAD_WEIGHTS, numpy_gemm.Taps),
    ("1x1024x1024x1,k5x5,f16", FORWARD, numpy_gemm.Windows),
    ("1x1024x1024x1,k5x5,f16", GRAD_WEIGHTS, numpy_gemm.Windows),
    ("8x32x32x32,k7x7,f8192", FORWARD, numpy_gemm.Windows),
    ("32x28x28x3,k3x3,f16", FORWARD, numpy_gemm.Windows),
    ("32x28x28x3,k3x3,f16", GRAD_WEIGHTS, numpy_gemm.Taps),
]


@pytest.mark.parametrize(("text", "direction", "way"), WAYS)
def test_the_way_of_computing_follows_the_documented_rule(text, direction, way):
    assert type(numpy_gemm.choose(parse("conv2d", text), direction)) is way


@pytest.mark.parametrize("text", ["9x8x7x4,k5x3,f6", "9x8x7x4,k3x5,f6,s2x3,g2,relu", "9x5x4x4,k2x3,f4,p6:3:4:7"])
@pytest.mark.parametrize("products", [1, 16, 512])
def test_a_product_per_output_row_is_exact_whatever_its_samples(monkeypatch, text, products):
    """Also where an output row lies on padding alone."""
    monkeypatch.setattr(numpy_gemm, "CALL", 0)
    monkeypatch.setattr(numpy_gemm, "dense_cost", lambda spec: np.inf)
    monkeypatch.setattr(numpy_gemm, "ROW_PRODUCTS", products)
    spec = parse("conv2d", text)
    assert isinstance(numpy_gemm.choose(spec, FORWARD), numpy_gemm.Rows)
    assert_exact("numpy_gemm", spec, FORWARD)
    assert_exact("numpy_gemm", spec, GRAD_INPUT)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "text",
    [
        "7x6x5x4,k3x3,f6",
        "7x6x5x4,k3x3,f6,s2x2",
        "7x6x5x4,k3x2,f6,d2x1,g2",
        "7x2x2x4,k5x5,f6",
        "7x6x5x1,k5x3,f3,s1x2,d1x2",
        "7x6x5x4,k3x2,f8,g4,s2x1,d2x1",
    ],
)
def test_blocks_of_one_column_give_the_same_as_one_block(monkeypatch, text, direction):
    """Blocks are sized for the cache; here each is as small as it gets, then some samples with a rest."""
    spec = parse("conv2d", text)
    for block_bytes in (1, 3 * 4 * np.prod(spec.x_shape[1:]) * 3):
        monkeypatch.setattr(numpy_gemm, "BLOCK_BYTES", int(block_bytes))
        monkeypatch.setattr(numpy_gemm, "BLOCK_ROWS", 1)
        assert_exact("numpy_gemm", spec, direction)


@pytest.mark.parametrize("direction", [FORWARD, GRAD_INPUT])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_batch_that_exceeds_the_scratch_is_stacked_in_parts(monkeypatch, samples, direction):
    spec = parse("conv2d", "7x6x5x4,k3x3,f4,s2x1")
    rows, columns = _stacked.axes(spec, direction)
    monkeypatch.setattr(_stacked, "PLANES_BYTES", samples * 4 * rows.pitch * columns.length * 4)
    assert_exact("cv2", spec, direction)


@pytest.mark.parametrize("name", ["cv2", "scipy"])
def test_the_library_is_called_once_per_channel_and_filter_whatever_the_batch(monkeypatch, name):
    implementation = registry.get("conv2d", name)
    spec = parse("conv2d", "32x6x5x4,k3x3,f6,g2")
    correlate, calls = implementation.plan_type.correlate, []
    monkeypatch.setattr(
        implementation.plan_type, "correlate", staticmethod(lambda *args: (calls.append(1), correlate(*args)))
    )
    results(name, spec, FORWARD)
    assert len(calls) == 4 // 2 * 6


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("kernel", [3, 7, 19])
@pytest.mark.parametrize("side", [2, 8, 16, 64])
@pytest.mark.parametrize("options", [{}, {"stride": (2, 2)}])
def test_scratch_stays_below_64_mb_and_does_not_grow_with_the_batch(name, kernel, side, options):
    implementation = registry.get("conv2d", name)

    def scratch(batch):
        spec = ConvSpec(batch, side, side, 64, 64, (kernel, kernel), **options)
        return implementation.plan_type.scratch_bytes(spec, implementation.directions)

    assert 0 < scratch(32) <= 64e6
    assert scratch(100_000) <= 64e6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", [(7, 7), (5, 10), (3, 43), (10, 13), (13, 13)])
def test_filter2d_is_exact_on_integers_just_where_it_is_declared_direct(kernel, dtype):
    """The size from which OpenCV multiplies spectra stands in its source, not in its manual: it may move."""
    spec = ConvSpec(4, 64, 64, 1, 2, kernel, padding="valid", bias=False, dtype=dtype)
    [got], [expected] = results("cv2", spec, FORWARD), results("reference", spec, FORWARD)
    declared = registry.get("conv2d", "cv2").algorithm_of(spec, FORWARD)
    assert np.array_equal(got, expected) == (declared == DIRECT)
    if declared == FFT:
        np.testing.assert_allclose(got, expected, atol=1e-10)
