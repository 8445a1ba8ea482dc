"""Equalisation: responses that adapt to what is fitted to them, by maps y -> location + scale y.

The maps are closed under composition, so that after any number of epochs there is one. What is fitted needs no unit
and no offset any more: the linear part is taken out of the fit, and brought back by least squares at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LEAST_CORRELATION = 1e-6
"""Below it one says nothing of the other: a map by regression could not be inverted."""
SHARE = 0.1
"""Of the way, every epoch: the whole way moves the response away under particles that are on theirs to it."""


@dataclass(frozen=True, slots=True)
class ScaleLocation:
    """y -> location + scale y, scale not 0; numbers, or columns (m, 1) for m responses. The identity by default."""

    location: Array | float = 0.0
    scale: Array | float = 1.0

    def __call__(self, y: Array) -> Array:
        """The map's values."""
        return self.location + self.scale * y

    def then(self, later: ScaleLocation) -> ScaleLocation:
        """First this map, then the later one, as one map."""
        return ScaleLocation(later.location + later.scale * self.location, later.scale * self.scale)

    def inverse(self) -> ScaleLocation:
        """The map that undoes this one."""
        return ScaleLocation(-self.location / self.scale, 1 / self.scale)

    def of(self, number: int) -> ScaleLocation:
        """The map of one of m responses."""
        location, scale = np.broadcast_arrays(self.location, self.scale)
        return ScaleLocation(float(location[number, 0]), float(scale[number, 0]))


def least_squares(x: Array, y: Array) -> ScaleLocation:
    """The maps that bring x (m, n) nearest to y (m, n), row by row; where one says nothing of the other, a shift."""
    x_mean, y_mean = x.mean(axis=-1, keepdims=True), y.mean(axis=-1, keepdims=True)
    x_spread, y_spread = x - x_mean, y - y_mean
    square = np.square(x_spread).sum(axis=-1, keepdims=True)
    product = (x_spread * y_spread).sum(axis=-1, keepdims=True)
    norms = np.sqrt(square * np.square(y_spread).sum(axis=-1, keepdims=True))
    says = np.abs(product) > LEAST_CORRELATION * norms
    scale = np.where(says, product / np.where(says, square, 1), 1)
    return ScaleLocation(y_mean - scale * x_mean, scale)


def equalising(responses: Array, fitted: Array, share: float = SHARE) -> ScaleLocation:
    """The maps that bring responses (m, n) a share of the way to where they are easiest for what is fitted (m, n).

    They come from the inverses of the fitted values' regressions, which leave a response all of its variance: a
    regression of the response itself would shrink it epoch by epoch, to nothing. A regression that falls only shifts.
    """
    whole = least_squares(fitted, responses).inverse()
    mean = responses.mean(axis=-1, keepdims=True)
    scale = np.where(whole.scale > 0, np.abs(whole.scale) ** share, 1)
    return ScaleLocation(mean + share * (whole(mean) - mean) - scale * mean, scale)
