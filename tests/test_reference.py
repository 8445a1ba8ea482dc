"""The definitions themselves, against witnesses that share no code with them: loops, SciPy, finite differences."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scipy.signal

from bench.awkward import SHAPES
from impls import PoolSpec, parse, reference
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, arguments

TINY_POOLS = ("2x4x5x2,pool2x3", "1x5x4x2,pool3x3,s2x1,same", "1x5x5x2,pool2x2,s3x3,p1:1:0:1")

TINY = {
    "conv2d": (
        "1x1x1x1,k1x1,f1",
        "2x4x3x2,k3x2,f3",
        "1x5x4x2,k2x3,f2,s2x1,p2:0:1:3",
        "1x5x6x1,k2x3,f2,d3x2",
        "2x4x5x4,k3x3,f6,s2x2,g2,relu",
        "1x3x2x2,k5x4,f2,nobias",
    ),
    "maxpool2d": TINY_POOLS,
    "avgpool2d": TINY_POOLS,
    "dense": ("1x1,u1", "3x4,u5", "3x4,u5,nobias,relu"),
}

CASES = [pytest.param(op, parse(op, text), id=f"{op}:{text}") for op, texts in TINY.items() for text in texts]


def run(op, spec, direction, *operands):
    """The float64 outputs of the reference."""
    outputs = [np.full(a.shape, np.nan) if a.shape else None for a in arguments(spec, direction) if a.is_output]
    reference(op).plan(spec, (direction,)).bind(direction, *operands, *outputs)()
    return outputs


def operands_of(spec, direction, seed=0):
    """Standard normal inputs in float64, None for an absent bias."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(a.shape) if a.shape else None for a in arguments(spec, direction) if not a.is_output]


def linear(spec):
    """The same problem without its activation."""
    return spec if isinstance(spec, PoolSpec) else replace(spec, activation=None)


def finish(spec, y, b):
    """Bias and activation."""
    y = y if b is None else y + b
    return np.maximum(y, 0) if spec.activation else y


def conv2d(spec, x, w, b):
    """The formula in ConvSpec's docstring, product by product."""
    y = np.zeros(spec.y_shape)
    per_filter, per_channel = spec.filters // spec.groups, spec.channels // spec.groups
    for n, i, j, f in np.ndindex(spec.y_shape):
        for a, c, k in product(*map(range, spec.w_shape[:3])):
            row = i * spec.stride[0] + a * spec.dilation[0] - spec.pads[0][0]
            column = j * spec.stride[1] + c * spec.dilation[1] - spec.pads[1][0]
            if 0 <= row < spec.height and 0 <= column < spec.width:
                y[n, i, j, f] += x[n, row, column, f // per_filter * per_channel + k] * w[a, c, k, f]
    return finish(spec, y, b)


def pool2d(spec, x, reduce):
    """``reduce`` of the real pixels under every window."""
    y = np.empty(spec.y_shape)
    for n, i, j, c in np.ndindex(spec.y_shape):
        top, left = i * spec.step[0] - spec.pads[0][0], j * spec.step[1] - spec.pads[1][0]
        rows = range(max(0, top), min(spec.height, top + spec.pool[0]))
        columns = range(max(0, left), min(spec.width, left + spec.pool[1]))
        y[n, i, j, c] = reduce([x[n, row, column, c] for row, column in product(rows, columns)])
    return y


def dense(spec, x, w, b):
    """Products one by one."""
    y = np.zeros(spec.y_shape)
    for n, k, u in np.ndindex(spec.batch, spec.inputs, spec.units):
        y[n, u] += x[n, k] * w[k, u]
    return finish(spec, y, b)


LOOPS = {
    "conv2d": conv2d,
    "maxpool2d": lambda spec, x: pool2d(spec, x, max),
    "avgpool2d": lambda spec, x: pool2d(spec, x, np.mean),
    "dense": dense,
}


@pytest.mark.parametrize(("op", "spec"), CASES)
def test_forward_is_the_formula_written_as_loops(op, spec):
    operands = operands_of(spec, FORWARD)
    np.testing.assert_allclose(run(op, spec, FORWARD, *operands)[0], LOOPS[op](spec, *operands), rtol=0, atol=1e-13)


@pytest.mark.parametrize("text", list(SHAPES["conv2d"].values()), ids=list(SHAPES["conv2d"]))
def test_convolution_is_scipys_correlation(text):
    """Of the padded image with the kernel spread out by its dilation, read at every stride."""
    spec = parse("conv2d", text)
    x, w, b = operands_of(spec, FORWARD)
    padded = np.pad(x, ((0, 0), *spec.pads, (0, 0)))
    spread = np.zeros((*spec.extent, *spec.w_shape[2:]))
    spread[:: spec.dilation[0], :: spec.dilation[1]] = w
    y = np.zeros(spec.y_shape)
    per_filter, per_channel = spec.filters // spec.groups, spec.channels // spec.groups
    for n, f, k in np.ndindex(spec.batch, spec.filters, per_channel):
        image = padded[n, :, :, f // per_filter * per_channel + k]
        everywhere = scipy.signal.correlate(image, spread[:, :, k, f], mode="valid", method="direct")
        y[n, :, :, f] += everywhere[:: spec.stride[0], :: spec.stride[1]]
    np.testing.assert_allclose(run("conv2d", spec, FORWARD, x, w, b)[0], finish(spec, y, b), rtol=0, atol=1e-11)


def differences(function, operand, step=1e-4):
    """Central differences of a scalar function of nothing with respect to every element of ``operand``."""
    gradient = np.empty(operand.shape)
    for index in np.ndindex(operand.shape):
        kept = operand[index]
        operand[index] = kept + step
        above = function()
        operand[index] = kept - step
        gradient[index] = (above - function()) / (2 * step)
        operand[index] = kept
    return gradient


@pytest.mark.parametrize(("op", "spec"), CASES)
def test_gradients_are_those_of_finite_differences(op, spec):
    """Of <pre-activation, dy>, with respect to every operand; the steps are too small to change a maximum."""
    operands = operands_of(spec, FORWARD, seed=1)
    dy = np.random.default_rng(2).standard_normal(spec.y_shape)

    def loss():
        return np.vdot(run(op, linear(spec), FORWARD, *operands)[0], dy)

    slopes = [None if operand is None else differences(loss, operand) for operand in operands]
    x = operands[0]
    if isinstance(spec, PoolSpec):
        gradients = run(op, spec, GRAD_INPUT, x, *run(op, spec, FORWARD, x), dy)
    else:
        gradients = [*run(op, spec, GRAD_INPUT, dy, operands[1]), *run(op, spec, GRAD_WEIGHTS, x, dy)]
    for gradient, slope in zip(gradients, slopes, strict=True):
        if slope is None:
            assert gradient is None
        else:
            np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-8)


def test_the_first_of_equal_maxima_in_row_major_order_takes_the_gradient():
    x = np.array([[1, 7, 7], [7, 7, 0], [5, 5, 5]], float).reshape(1, 3, 3, 1)
    spec = parse("maxpool2d", "1x3x3x1,pool2x2,s1x1")
    (y,) = run("maxpool2d", spec, FORWARD, x)
    (dx,) = run("maxpool2d", spec, GRAD_INPUT, x, y, np.array([1.0, 10, 100, 1000]).reshape(1, 2, 2, 1))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 11, 0], [100, 1000, 0], [0, 0, 0]])


def test_padding_never_takes_a_gradient_even_where_all_pixels_are_minus_infinity():
    x = np.full((1, 2, 2, 1), -np.inf)
    spec = parse("maxpool2d", "1x2x2x1,pool2x2,s1x1,p1:0:1:0")
    (y,) = run("maxpool2d", spec, FORWARD, x)
    (dx,) = run("maxpool2d", spec, GRAD_INPUT, x, y, np.ones(spec.y_shape))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[4, 0], [0, 0]])


def test_padding_does_not_count_in_an_average():
    spec = parse("avgpool2d", "1x2x2x1,pool2x2,s1x1,p1:0:1:0")
    (y,) = run("avgpool2d", spec, FORWARD, np.array([[2.0, 4], [6, 8]]).reshape(1, 2, 2, 1))
    np.testing.assert_array_equal(y[0, :, :, 0], [[2, 3], [4, 5]])
