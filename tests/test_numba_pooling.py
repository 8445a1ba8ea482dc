"""The gradient of max pooling in explicit vectors: every way of writing it, every size its loops are compiled for."""

import numpy as np
import pytest

from bench import local
from impls import reference
from impls.contract import ALIGNMENT, aligned_empty
from impls.maxpool2d import numba_jit
from impls.specs import FORWARD, GRAD_INPUT, parse

IMPL = numba_jit.IMPL.named("maxpool2d", "numba_jit")
PAST_CACHES = ["3x8x10x16,pool2x2", "2x9x8x8,pool2x2", "3x8x13x8,pool4x4", "2x10x9x32,pool3x3", "1x6x10x48,pool3x5"]
WRITTEN = ["3x8x10x5,pool2x2", "2x9x10x16,pool2x2,s3x3", "2x10x9x17,pool4x4,s4x5", "1x7x7x24,pool3x3,same"]
ADDED = ["2x9x9x16,pool3x3,s2x2", "2x6x6x18,pool3x2,s2x2,same", "3x7x6x8,pool4x4,s1x1", "2x5x5x3,pool2x2,s2x1"]


@pytest.fixture
def every_size_is_large(monkeypatch):
    monkeypatch.setattr(numba_jit, "LARGE_BYTES", 0)


def unaligned(shape):
    """A float32 array one value beyond a multiple of ALIGNMENT."""
    size = int(np.prod(shape))
    return aligned_empty(4 * size + ALIGNMENT).view(np.float32)[1 : size + 1].reshape(shape)


def gradient(spec, parts, x, y, dy, dx):
    plan = IMPL.plan(spec, (GRAD_INPUT,))
    plan.parts = parts
    dx.fill(np.nan)
    plan.bind(GRAD_INPUT, x, y, dy, dx)()
    return dx


@pytest.mark.usefixtures("every_size_is_large")
@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("text", [*PAST_CACHES, *WRITTEN, *ADDED])
def test_the_gradient_is_the_reference_in_every_way_of_writing_it(text, nan):
    spec, parts = parse("maxpool2d", text), 3 if text.startswith("3x") else 1
    way = numba_jit.PAST_CACHES if text in PAST_CACHES else numba_jit.WRITE if text in WRITTEN else numba_jit.ADD
    assert numba_jit.ways(spec)[0] == way
    rng = np.random.default_rng(5)
    x = rng.standard_normal(spec.x_shape, np.float32)
    if nan:
        x[rng.random(spec.x_shape) < 0.1] = np.nan
    truth = reference("maxpool2d").plan(spec)
    (y,) = local.compute(truth, FORWARD, (x,))
    dy = rng.standard_normal(spec.y_shape, np.float32)
    (expected,) = local.compute(truth, GRAD_INPUT, (x, y, dy))
    aligned = aligned_empty(4 * x.size)[: 4 * x.size].view(np.float32).reshape(x.shape)
    for dx in (aligned, unaligned(x.shape)):
        found = gradient(spec, parts, x, y, dy, dx)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 if way == numba_jit.ADD else 0)


def test_small_results_stay_in_the_caches():
    assert numba_jit.ways(parse("maxpool2d", "32x32x32x16,pool2x2")) == (numba_jit.WRITE,)
    assert numba_jit.ways(parse("maxpool2d", "32x64x64x16,pool2x2"))[0] == numba_jit.PAST_CACHES


@pytest.mark.parametrize("kernel", [numba_jit.forward, numba_jit.grad_input])
def test_another_shape_of_the_same_windows_is_not_compiled_again(kernel):
    compiled = []
    for text in ("2x8x8x16,pool2x2", "3x12x10x7,pool2x2", "1x9x9x40,pool2x2", "4x8x8x16,pool5x7", "4x8x9x3,pool1x3"):
        IMPL.plan(parse("maxpool2d", text))
        compiled.append(len(kernel._alone.signatures))
    assert compiled[0] == compiled[2]
    assert compiled[3] == compiled[4]
