"""Parameters between 0 and 1, and what they stand for: an interval of natural values, covered in one of three ways.

linear       theta = low + (high - low) u
square       theta = low + (high - low) t^2, t = u: fine steps near the lower end, flat at it
reciprocal   theta = low / (1 - t), t = (1 - low / high) u: even steps in 1 / theta
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.specs import SpecError

Array = npt.NDArray[Any]

LINEAR, SQUARE, RECIPROCAL = "linear", "square", "reciprocal"
MAPS = (LINEAR, SQUARE, RECIPROCAL)


@dataclass(frozen=True, slots=True)
class Axis:
    """One parameter: its name, the interval of its natural values, and how [0, 1] covers it.

    Raises SpecError for an unknown map, an empty interval, and a reciprocal one that does not lie above 0.
    """

    name: str
    low: float
    high: float
    map: str = LINEAR

    def __post_init__(self) -> None:
        """See the class."""
        if self.map not in MAPS:
            raise SpecError(f"{self.name}: unknown reparameterisation {self.map!r}; known: {', '.join(MAPS)}")
        if not self.low < self.high:
            raise SpecError(f"{self.name}: the interval [{self.low}, {self.high}] is empty; give low < high")
        if self.map == RECIPROCAL and not self.low > 0:
            raise SpecError(f"{self.name}: 1 / (1 - t) needs an interval above 0; it begins at {self.low}")


class Scales:
    """The axes of a function, for arrays whose last axis runs over them."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        """``axes``: at least one."""
        self.axes = tuple(axes)
        self._low = np.array([axis.low for axis in axes], float)
        self._high = np.array([axis.high for axis in axes], float)
        self._square = np.array([axis.map == SQUARE for axis in axes])
        self._reciprocal = np.array([axis.map == RECIPROCAL for axis in axes])
        self._range = np.where(self._reciprocal, 1 - self._low / np.where(self._reciprocal, self._high, 1), 0)

    def natural(self, u: Array) -> Array:
        """What parameters u (..., axes) stand for."""
        part = np.where(self._square, u * np.abs(u), u)
        straight = self._low + (self._high - self._low) * part
        if not self._reciprocal.any():
            return straight
        return np.where(self._reciprocal, self._low / (1 - self._range * u), straight)

    def normalised(self, natural: Array) -> Array:
        """The parameters in [0, 1] of natural values (..., axes); what is outside the interval goes to its ends."""
        natural = np.clip(natural, self._low, self._high)
        part = (natural - self._low) / (self._high - self._low)
        part = np.where(self._square, np.sqrt(part), part)
        safe = np.where(self._reciprocal, natural, 1)
        return np.where(self._reciprocal, (1 - self._low / safe) / np.where(self._reciprocal, self._range, 1), part)

    def slopes(self, u: Array) -> Array:
        """d natural / d u (..., axes): what an uncertainty of u is multiplied by."""
        straight = (self._high - self._low) * np.where(self._square, 2 * np.abs(u), 1)
        return np.where(self._reciprocal, self._low * self._range / (1 - self._range * u) ** 2, straight)
