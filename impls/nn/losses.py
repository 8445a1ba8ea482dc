"""Losses: the mean over the samples of a batch, and its gradient before the last activation, in one pass.

    categorical_crossentropy   -sum t log p over the units, t one-hot or any distribution
    binary_crossentropy        -mean (t log p + (1 - t) log (1 - p)) over the units
    mean_squared_error         mean (y - t)^2 over the units

Where a cross-entropy meets its own activation (softmax, sigmoid) both are one: the gradient is (p - t) / batch, and the
loss comes from the pre-activations, so nothing overflows and no probability has to be cut off. Elsewhere probabilities
are kept within EPSILON of 0 and 1, as Keras does; there the gradient is 0, as it is for Keras' clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.nn.activations import apply, logistic, take_back
from impls.numba_setup import njit
from impls.specs import SpecError

Array = npt.NDArray[Any]

EPSILON = 1e-7
"""Keras' floatx epsilon."""

FUSED = {("categorical_crossentropy", "softmax"), ("binary_crossentropy", "sigmoid")}
"""Losses and the activations they are one with."""


def evaluate(loss: str, activation: str, y: Array, targets: Array, dz: Array) -> float:
    """The loss of a batch. y (batch, units) holds pre-activations, and the activation's values afterwards.

    dz (batch, units) receives the gradient with respect to the pre-activations; relu has been applied to y already.
    Raises SpecError for an unknown loss, naming the known ones, and for shapes that differ.
    """
    if loss not in LOSSES:
        raise SpecError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
    if y.shape != targets.shape:
        raise SpecError(f"the network's output is {y.shape}, the targets are {targets.shape}: they must be the same")
    if (loss, activation) in FUSED:
        return float(_FUSED_LOSSES[loss](y, targets, dz))
    apply(activation, y)
    value = float(LOSSES[loss](y, targets, dz))
    take_back(activation, y, dz)
    return value


@njit
def _softmax_crossentropy(z, targets, dz):
    """Turns z into probabilities; -sum t (z - log sum exp z), shifted by the largest z."""
    batch, units = z.shape
    total = 0.0
    for i in range(batch):
        largest = z[i, 0]
        for j in range(1, units):
            largest = max(largest, z[i, j])
        sum_of_exp = z[i, 0] * 0
        linear = weight = 0.0
        for j in range(units):
            shifted = z[i, j] - largest
            linear += targets[i, j] * shifted
            weight += targets[i, j]
            z[i, j] = np.exp(shifted)
            sum_of_exp += z[i, j]
        total += weight * np.log(np.float64(sum_of_exp)) - linear
        for j in range(units):
            z[i, j] /= sum_of_exp
            dz[i, j] = (z[i, j] * weight - targets[i, j]) / batch
    return total / batch


@njit
def _sigmoid_crossentropy(z, targets, dz):
    """Turns z into probabilities; max(z, 0) - z t + log(1 + exp(-|z|))."""
    batch, units = z.shape
    total = 0.0
    for i in range(batch):
        for j in range(units):
            value, target = z[i, j], targets[i, j]
            total += max(value, 0.0) - value * target + np.log1p(np.exp(-abs(np.float64(value))))
            z[i, j] = logistic(value)
            dz[i, j] = (z[i, j] - target) / (batch * units)
    return total / (batch * units)


@njit
def _categorical_crossentropy(p, targets, dp):
    """Of probabilities that are divided by their sum first, as Keras does."""
    batch, units = p.shape
    total = 0.0
    for i in range(batch):
        of_row = weight = 0.0
        for j in range(units):
            of_row += p[i, j]
        for j in range(units):
            share = p[i, j] / of_row
            inside = EPSILON < share < 1 - EPSILON
            total -= targets[i, j] * np.log(min(max(share, EPSILON), 1 - EPSILON))
            weight += targets[i, j] if inside else 0.0
        for j in range(units):
            share = p[i, j] / of_row
            inside = EPSILON < share < 1 - EPSILON
            dp[i, j] = (weight / of_row - (targets[i, j] / p[i, j] if inside else 0.0)) / batch
    return total / batch


@njit
def _binary_crossentropy(p, targets, dp):
    batch, units = p.shape
    total = 0.0
    for i in range(batch):
        for j in range(units):
            target, inside = targets[i, j], EPSILON < p[i, j] < 1 - EPSILON
            share = min(max(np.float64(p[i, j]), EPSILON), 1 - EPSILON)
            total -= target * np.log(share) + (1 - target) * np.log(1 - share)
            dp[i, j] = (share - target) / (share * (1 - share)) / (batch * units) if inside else 0.0
    return total / (batch * units)


@njit
def _mean_squared_error(y, targets, dy):
    batch, units = y.shape
    total = 0.0
    for i in range(batch):
        for j in range(units):
            difference = np.float64(y[i, j]) - targets[i, j]
            total += difference * difference
            dy[i, j] = 2 * difference / (batch * units)
    return total / (batch * units)


LOSSES: Mapping[str, Callable[[Array, Array, Array], float]] = MappingProxyType(
    {
        "categorical_crossentropy": _categorical_crossentropy,
        "binary_crossentropy": _binary_crossentropy,
        "mean_squared_error": _mean_squared_error,
    }
)
"""Every loss by its name: fills the gradient with respect to what the last activation gave."""

_FUSED_LOSSES = {
    "categorical_crossentropy": _softmax_crossentropy,
    "binary_crossentropy": _sigmoid_crossentropy,
}
