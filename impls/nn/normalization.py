"""Batch normalisation of the last axis (S. Ioffe and C. Szegedy, ICML 2015), with Keras' settings.

    training     y = gamma (x - m) / sqrt(v + EPSILON) + beta; m, v: the batch's mean and population variance
    inference    the same with the moving averages, which every step moves: a <- MOMENTUM a + (1 - MOMENTUM) m

With z = (x - m) / sqrt(v + EPSILON) and sums over the n values of a channel:

    dgamma = sum dy z    dbeta = sum dy    dx = gamma / sqrt(v + EPSILON) (dy - dbeta / n - z dgamma / n)

In inference m and v are constants, and only the first term of dx is left. Sums are float64 whatever the arrays are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.numba_setup import numba, prange
from impls.parts import parts_for, shared

Array = npt.NDArray[Any]

EPSILON = 1e-3
MOMENTUM = 0.99
"""Keras' defaults."""

SERIAL_BELOW = 1 << 15
"""Values: fewer take less time than waking a second thread."""


class Normalization:
    """A layer bound to x and y (batch, ..., channels) and its weights (gamma, beta, moving mean, moving variance).

    ``by_batch``: normalise by the batch, and learn; otherwise by the moving averages.
    """

    def __init__(self, x: Array, y: Array, weights: Sequence[Array], *, by_batch: bool) -> None:
        self.x, self.y = _rows(x), _rows(y)
        self.gamma, self.beta, self.moving_mean, self.moving_variance = weights
        self.by_batch = by_batch
        channels = x.shape[-1]
        self._partial = np.empty((2, numba.config.NUMBA_NUM_THREADS, channels))
        self._mean, self._variance, self._dgamma, self._dbeta = np.zeros((4, channels))

    def forward(self) -> None:
        """Fill y. The moving averages stay as they are: a step that comes to nothing changes no weights."""
        parts, partial = parts_for(self.x.size, SERIAL_BELOW), self._partial[0]
        if self.by_batch:
            _sum(self.x, partial, parts)
            partial[:parts].sum(axis=0, out=self._mean)
            self._mean /= len(self.x)
            _sum_squares(self.x, self._mean, partial, parts)
            partial[:parts].sum(axis=0, out=self._variance)
            self._variance /= len(self.x)
        else:
            self._mean[...], self._variance[...] = self.moving_mean, self.moving_variance
        _normalize(self.x, *self._as_x(self._mean, self.gamma * self._rate(), self.beta), self.y, parts)

    def grad_weights(self, dy: Array, dgamma: Array, dbeta: Array) -> None:
        """Fill the gradients of gamma and beta after ``forward``, and move the averages towards the batch's moments."""
        parts = parts_for(self.x.size, SERIAL_BELOW)
        _sum_products(self.x, self._mean, _rows(dy), self._partial, parts)
        of_dy, of_products = self._partial[:, :parts].sum(axis=1)
        self._dbeta[...], self._dgamma[...] = of_dy, of_products * self._rate()
        dbeta[...], dgamma[...] = self._dbeta, self._dgamma
        for moving, found in ((self.moving_mean, self._mean), (self.moving_variance, self._variance)):
            moving[...] = MOMENTUM * moving.astype(np.float64) + (1 - MOMENTUM) * found

    def grad_input(self, dy: Array) -> None:
        """Turn dy into dx in place; by the batch, ``grad_weights`` comes first."""
        rate, share = self._rate(), 1 / len(self.x) if self.by_batch else 0.0
        of_mean, of_deviation = self._dbeta * share, self._dgamma * rate * share
        coefficients = self._as_x(self._mean, self.gamma * rate, of_mean, of_deviation)
        _take_back(self.x, *coefficients, _rows(dy), parts_for(self.x.size, SERIAL_BELOW))

    def _rate(self) -> Array:
        """1 / standard deviation of every channel."""
        rate: Array = 1 / np.sqrt(self._variance + EPSILON)
        return rate

    def _as_x(self, *coefficients: Array) -> tuple[Array, ...]:
        return tuple(each.astype(self.x.dtype) for each in coefficients)


def _rows(values: Array) -> Array:
    """As (n, channels), a view."""
    return values.reshape(-1, values.shape[-1])


@shared
def _sum(x, partial, parts):
    for part in prange(parts):
        total = partial[part]
        total[:] = 0
        for i in range(len(x) * part // parts, len(x) * (part + 1) // parts):
            for c in range(x.shape[1]):
                total[c] += x[i, c]


@shared
def _sum_squares(x, mean, partial, parts):
    """Of the deviations from the mean: a second pass over x, but nothing cancels."""
    for part in prange(parts):
        total = partial[part]
        total[:] = 0
        for i in range(len(x) * part // parts, len(x) * (part + 1) // parts):
            for c in range(x.shape[1]):
                total[c] += (x[i, c] - mean[c]) ** 2


@shared
def _sum_products(x, mean, dy, partial, parts):
    """dy, and dy times the deviation from the mean."""
    for part in prange(parts):
        of_dy, of_products = partial[0, part], partial[1, part]
        of_dy[:] = 0
        of_products[:] = 0
        for i in range(len(x) * part // parts, len(x) * (part + 1) // parts):
            for c in range(x.shape[1]):
                of_dy[c] += dy[i, c]
                of_products[c] += dy[i, c] * (x[i, c] - mean[c])


@shared
def _normalize(x, mean, slope, offset, y, parts):
    for part in prange(parts):
        for i in range(len(x) * part // parts, len(x) * (part + 1) // parts):
            for c in range(x.shape[1]):
                y[i, c] = (x[i, c] - mean[c]) * slope[c] + offset[c]


@shared
def _take_back(x, mean, slope, of_mean, of_deviation, dy, parts):
    for part in prange(parts):
        for i in range(len(x) * part // parts, len(x) * (part + 1) // parts):
            for c in range(x.shape[1]):
                dy[i, c] = slope[c] * (dy[i, c] - of_mean[c] - (x[i, c] - mean[c]) * of_deviation[c])
