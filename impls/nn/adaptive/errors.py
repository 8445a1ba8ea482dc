"""Losses of residuals, by name, and the adaptive loss: a sequence of them, each left when descent stalls.

Each is brought to the scale of the residuals' deviation, so that all have the same unit: that of the response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.specs import SpecError

Array = npt.NDArray[Any]
Error = Callable[[Array, int], Array]
"""Residuals and the axis of the samples to losses."""


def _power_mean(power: int) -> Error:
    def error(residuals: Array, axis: int) -> Array:
        return (np.abs(residuals) ** power).mean(axis=axis) ** (1 / power)

    return error


def _rmse(residuals: Array, axis: int) -> Array:
    return np.sqrt(np.square(residuals).mean(axis=axis))


def _mae(residuals: Array, axis: int) -> Array:
    return np.abs(residuals).mean(axis=axis)


def _largest(residuals: Array, axis: int) -> Array:
    return np.abs(residuals).max(axis=axis)


def _root(residuals: Array, axis: int) -> Array:
    """(mean sqrt |r|)^2: cares for the many small residuals, hardly for a few large ones."""
    return np.sqrt(np.abs(residuals)).mean(axis=axis) ** 2


ERRORS: Mapping[str, Error] = MappingProxyType(
    {"root": _root, "mae": _mae, "rmse": _rmse, "quartic": _power_mean(4), "max": _largest}
)


def error_of(name: str) -> Error:
    """The loss of that name. Raises SpecError for an unknown one, listing the known ones."""
    if name not in ERRORS:
        raise SpecError(f"unknown loss {name!r}; known: {', '.join(ERRORS)}")
    return ERRORS[name]


class AdaptiveLoss:
    """Which loss is descended: the next one whenever the present one stalls; the last one is the evaluation metric.

    It stalls when within ``patience`` epochs it has not fallen by the share ``min_fall``. In the last quarter of the
    epochs it is the metric in any case.
    """

    def __init__(self, names: Sequence[str], patience: int = 25, min_fall: float = 0.01) -> None:
        """Raises SpecError for an empty sequence or a patience below 1."""
        if not names:
            raise SpecError("losses is empty; give at least the evaluation metric")
        if patience < 1:
            raise SpecError(f"patience={patience} must be at least 1")
        self.names, self.patience, self.min_fall = tuple(names), patience, min_fall
        self._number, self._best, self._waited = 0, np.inf, 0

    @property
    def name(self) -> str:
        """The present loss."""
        return self.names[self._number]

    def watch(self, value: float, left: float) -> bool:
        """Note an epoch's value, the share ``left`` of all epochs being to come; whether the loss changes."""
        self._waited += 1
        if value < self._best * (1 - self.min_fall):
            self._best, self._waited = value, 0
        if self._number == len(self.names) - 1 or (self._waited < self.patience and left > 0.25):
            return False
        self._number = self._number + 1 if left > 0.25 else len(self.names) - 1
        self._best, self._waited = np.inf, 0
        return True
