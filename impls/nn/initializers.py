"""Initial weights: zeros, random normal, and variances that keep a signal's size through the layers.

Glorot: variance 2 / (fan_in + fan_out) (X. Glorot and Y. Bengio, AISTATS 2010). He: variance 2 / fan_in (K. He et al.,
ICCV 2015). A uniform distribution on (-limit, limit) has variance limit^2 / 3. As Keras does, the normal forms are cut
at two standard deviations and widened so that the variance is kept; ``truncated=False`` gives the textbooks' form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.specs import Shape, SpecError

Array = npt.NDArray[Any]

CUT = 2.0
"""Standard deviations beyond which a truncated normal draws again."""

CUT_DEVIATION = 0.87962566103423978
"""The standard deviation of a standard normal cut at CUT: sqrt(1 - 2 * CUT * phi(CUT) / (2 * Phi(CUT) - 1))."""


@dataclass(frozen=True, slots=True)
class Initializer:
    """A way to draw weights: a family, and for ``normal`` its standard deviation.

    ``truncated`` matters to glorot_normal and he_normal only.
    """

    name: str
    stddev: float = 0.05
    truncated: bool = True

    def __post_init__(self) -> None:
        """Raises SpecError for an unknown family or a standard deviation that is negative or not finite."""
        if self.name not in FAMILIES:
            raise SpecError(f"unknown initializer {self.name!r}; known: {', '.join(FAMILIES)}")
        if not (self.stddev >= 0 and math.isfinite(self.stddev)):
            raise SpecError(f"stddev={self.stddev} must be a finite number of at least 0")

    def __str__(self) -> str:
        """As "glorot_normal", "glorot_normal untruncated", or "normal 0.05"."""
        if self.name == "normal":
            return f"{self.name} {self.stddev:g}"
        return self.name if self.truncated else f"{self.name} untruncated"

    def draw(self, shape: Shape, rng: np.random.Generator, dtype: str = "float32") -> Array:
        """Weights of this shape: (inputs, units) or (KH, KW, C / groups, F)."""
        return FAMILIES[self.name](self, shape, rng).astype(dtype)


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out): values that one output sums, and outputs that one input reaches, counted as Keras does."""
    receptive = math.prod(shape[:-2])
    return shape[-2] * receptive, shape[-1] * receptive


def default_for(activation: str) -> Initializer:
    """He uniform before relu, Glorot uniform otherwise."""
    return Initializer("he_uniform" if activation == "relu" else "glorot_uniform")


def _zeros(settings: Initializer, shape: Shape, rng: np.random.Generator) -> Array:
    return np.zeros(shape)


def _random_normal(settings: Initializer, shape: Shape, rng: np.random.Generator) -> Array:
    return rng.standard_normal(shape) * settings.stddev


def _glorot(shape: Shape) -> float:
    return 2.0 / sum(fans(shape))


def _he(shape: Shape) -> float:
    return 2.0 / fans(shape)[0]


def _uniform(variance: Callable[[Shape], float]) -> Callable[[Initializer, Shape, np.random.Generator], Array]:
    def draw(settings: Initializer, shape: Shape, rng: np.random.Generator) -> Array:
        limit = math.sqrt(3.0 * variance(shape))
        return rng.uniform(-limit, limit, shape)

    return draw


def _normal(variance: Callable[[Shape], float]) -> Callable[[Initializer, Shape, np.random.Generator], Array]:
    def draw(settings: Initializer, shape: Shape, rng: np.random.Generator) -> Array:
        deviation = math.sqrt(variance(shape))
        if settings.truncated:
            return _truncated_normal(shape, rng) * (deviation / CUT_DEVIATION)
        return rng.standard_normal(shape) * deviation

    return draw


def _truncated_normal(shape: Shape, rng: np.random.Generator) -> Array:
    """Standard normal values; those beyond CUT are drawn again."""
    values = rng.standard_normal(shape)
    beyond = np.abs(values) > CUT
    while beyond.any():
        values[beyond] = rng.standard_normal(int(beyond.sum()))
        beyond = np.abs(values) > CUT
    return values


FAMILIES: Mapping[str, Callable[[Initializer, Shape, np.random.Generator], Array]] = MappingProxyType(
    {
        "zeros": _zeros,
        "normal": _random_normal,
        "glorot_uniform": _uniform(_glorot),
        "glorot_normal": _normal(_glorot),
        "he_uniform": _uniform(_he),
        "he_normal": _normal(_he),
    }
)
"""Every family by its name."""
