"""The scalar functions that all families are made of, directly or from tables in steps of 1e-4.

A table is read by linear interpolation: the error is at most step^2 / 8 times the largest second derivative, here
1.25e-9 for exp(-t) and 4.9e-8 for cos(2 pi t). That is what the gradient by differences needs: from the nearest entry
alone a difference over less than a step would be 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Function = Callable[[Array], Array]

STEP = 1e-4
DECAYED = 25.0
"""Beyond it exp(-t) counts as 0: it is below 1.4e-11."""
SATURATED = 12.0
"""Beyond it tanh(t) counts as 1: it is within 8e-11."""


class Scalars(NamedTuple):
    """exp(-t) for t >= 0; cos(2 pi t); tanh(t)."""

    decay: Function
    wave: Function
    bend: Function


def _decay(t: Array) -> Array:
    return np.exp(-t)


def _wave(t: Array) -> Array:
    return np.cos(2 * np.pi * t)


DIRECT = Scalars(_decay, _wave, np.tanh)


class Table:
    """A function on [low, high] by linear interpolation; arguments beyond it get the value at its ends."""

    def __init__(self, function: Function, low: float, high: float, step: float = STEP) -> None:
        """Evaluates the function (high - low) / step + 1 times."""
        count = round((high - low) / step)
        self.low, self.steps_per_unit, self.last = low, count / (high - low), count - 1
        self.entries = function(np.linspace(low, high, count + 1))
        self._rises = np.diff(self.entries)

    def __call__(self, t: Array) -> Array:
        """The function's values at t, of any shape."""
        place = np.clip((t - self.low) * self.steps_per_unit, 0, self.last + 1)
        left = np.minimum(place.astype(np.intp), self.last)
        place -= left
        place *= self._rises[left]
        place += self.entries[left]
        return place


@cache
def tabled(step: float = STEP) -> Scalars:
    """The same functions from tables, made once: half a million entries at the default step."""
    decay, wave, bend = (
        Table(_decay, 0, DECAYED, step),
        Table(_wave, 0, 1, step),
        Table(np.tanh, -SATURATED, SATURATED, step),
    )
    return Scalars(decay, lambda t: wave(t - np.floor(t)), bend)
