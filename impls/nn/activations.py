"""What stands between the layers: one pass over the values each, in place.

relu is computed by the layer before it (the registry's implementations have it fused); the others here. The backward
passes need the activation's result only: they turn the gradient with respect to it into the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.numba_setup import njit, prange
from impls.parts import cut, parts_for, shared

Array = npt.NDArray[Any]

SERIAL_BELOW = 1 << 14
"""Values: fewer take less time than waking a second thread."""

RELU_SERIAL_BELOW = 1 << 17
"""The same for relu's gradient, which has no exponential to compute."""


def apply(name: str, y: Array) -> None:
    """Replace pre-activations (batch, ..., units) by the activation's values; relu has been applied by its layer."""
    if name in FORWARD:
        FORWARD[name](_as(name, y), _parts(name, y))


def take_back(name: str, y: Array, dy: Array) -> None:
    """Replace the gradient with respect to the activation's values y by the one with respect to what came before."""
    if name in BACKWARD:
        BACKWARD[name](_as(name, y), _as(name, dy), _parts(name, y))


def _as(name: str, values: Array) -> Array:
    """Flat; or rows of units, where these belong together."""
    return values.reshape(-1, values.shape[-1]) if name == "softmax" else values.reshape(-1)


def _parts(name: str, values: Array) -> int:
    return parts_for(values.size, RELU_SERIAL_BELOW if name == "relu" else SERIAL_BELOW)


@njit(inline="always")
def logistic(z):
    """1 / (1 + exp(-z)) without overflow: the exponential's argument is never above 0."""
    e = np.exp(-abs(z))
    return 1 / (1 + e) if z >= 0 else e / (1 + e)


@shared
def _sigmoid(all_y, parts):
    for part in prange(parts):
        y = cut(all_y, part, parts)
        for i in range(len(y)):
            y[i] = logistic(y[i])


@shared
def _sigmoid_back(all_y, all_dy, parts):
    for part in prange(parts):
        y, dy = cut(all_y, part, parts), cut(all_dy, part, parts)
        for i in range(len(y)):
            dy[i] *= y[i] * (1 - y[i])


@shared
def _tanh(all_y, parts):
    for part in prange(parts):
        y = cut(all_y, part, parts)
        for i in range(len(y)):
            y[i] = np.tanh(y[i])


@shared
def _tanh_back(all_y, all_dy, parts):
    for part in prange(parts):
        y, dy = cut(all_y, part, parts), cut(all_dy, part, parts)
        for i in range(len(y)):
            dy[i] *= 1 - y[i] * y[i]


@shared
def _relu_back(all_y, all_dy, parts):
    for part in prange(parts):
        y, dy = cut(all_y, part, parts), cut(all_dy, part, parts)
        for i in range(len(y)):
            dy[i] = dy[i] if y[i] > 0 else 0


@shared
def _softmax(y, parts):
    for part in prange(parts):
        for i in range(len(y) * part // parts, len(y) * (part + 1) // parts):
            softmax_row(y[i])


@njit(inline="always")
def softmax_row(z):
    """exp(z) / sum exp(z) in place, after the maximum has been subtracted."""
    largest = z[0]
    for j in range(1, len(z)):
        largest = max(largest, z[j])
    total = z[0] * 0
    for j in range(len(z)):
        z[j] = np.exp(z[j] - largest)
        total += z[j]
    for j in range(len(z)):
        z[j] /= total


@shared
def _softmax_back(y, dy, parts):
    for part in prange(parts):
        for i in range(len(y) * part // parts, len(y) * (part + 1) // parts):
            inner = y[i, 0] * 0
            for j in range(y.shape[1]):
                inner += y[i, j] * dy[i, j]
            for j in range(y.shape[1]):
                dy[i, j] = y[i, j] * (dy[i, j] - inner)


FORWARD: Mapping[str, Callable[[Array, int], None]] = MappingProxyType(
    {"sigmoid": _sigmoid, "tanh": _tanh, "softmax": _softmax}
)
BACKWARD: Mapping[str, Callable[[Array, Array, int], None]] = MappingProxyType(
    {"sigmoid": _sigmoid_back, "tanh": _tanh_back, "relu": _relu_back, "softmax": _softmax_back}
)
"""By name; what is linear needs neither."""
OF_EACH = ("sigmoid", "tanh", "relu")
"""Those whose gradient is a function of each value alone."""
