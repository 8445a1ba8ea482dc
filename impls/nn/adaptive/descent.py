"""Descent without formulae: particles that follow difference quotients, learn from neighbours, and take steps uphill.

Every axis is the interval [0, 1]. What is descended is anything that gives values and difference quotients at many
points at once: the fit of a model, or any function of points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from impls.specs import SpecError

Array = npt.NDArray[Any]

FASTER, SLOWER = 1.2, 0.5
"""What an axis' rate is multiplied by where its slope has kept its sign, and where it turned (Riedmiller, Rprop)."""
AXIS_RATES = 1e-6, 10.0


class Objective(Protocol):
    """What is descended, at points (m, axes)."""

    def values(self, points: Array) -> Array:
        """(m,)."""

    def slopes(self, points: Array, step: float) -> tuple[Array, Array]:
        """Values (m,) and difference quotients (m, axes)."""


@dataclass(frozen=True, slots=True)
class Function:
    """Any function of points (m, axes) to values (m,); its differences take one call with all perturbed points."""

    values: Callable[[Array], Array]

    def slopes(self, points: Array, step: float) -> tuple[Array, Array]:
        """See Objective."""
        m, axes = points.shape
        moves = np.vstack([np.zeros(axes), step * np.eye(axes)])
        values = self.values((points[:, None, :] + moves).reshape(-1, axes)).reshape(m, -1)
        return values[:, 0], (values[:, 1:] - values[:, :1]) / step


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How far a step goes. ``rate``: the distance along an axis, a share of its interval, in the first epoch.

    It is multiplied by ``decay`` epoch by epoch. ``normalised``: the gradient's size does not matter, its direction
    does. ``by_axis``: every axis has a rate of its own, raised and lowered by its slope's signs. ``difference``: how
    far a parameter is moved for a difference quotient. ``neighbour``: the chance that a particle is drawn towards a
    random other one that is better. ``temperature``: of steps uphill, as a share of the loss, and of the noise, as a
    share of the rate; it is multiplied by ``cooling`` every epoch. 0 is descent, and never goes up.
    """

    rate: float = 0.01
    decay: float = 1.0
    normalised: bool = True
    by_axis: bool = True
    difference: float = 1e-6
    neighbour: float = 0.02
    temperature: float = 0.0
    cooling: float = 0.99

    def __post_init__(self) -> None:
        """Raises SpecError for a setting outside its range, naming it."""
        for name in ("rate", "difference"):
            if not getattr(self, name) > 0:
                raise SpecError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("decay", "cooling"):
            if not 0 < getattr(self, name) <= 1:
                raise SpecError(f"{name}={getattr(self, name)} must be above 0 and at most 1")
        if not 0 <= self.neighbour <= 1:
            raise SpecError(f"neighbour={self.neighbour} is a probability, from 0 to 1")
        if not self.temperature >= 0:
            raise SpecError(f"temperature={self.temperature} must be at least 0")


class Swarm:
    """Particles: where they are, the rates of their axes, and how many of their last steps went uphill."""

    def __init__(self, points: Array, rates: Rates, random: np.random.Generator) -> None:
        """``points`` (m, axes) between 0 and 1."""
        self.points, self.rates, self.random = points.copy(), rates, random
        self.axis_rates = np.ones_like(points)
        self.epoch = 0
        self.uphill = 0.0
        """The share of the particles whose last step went uphill."""
        self._slopes = np.zeros_like(points)

    def step(self, objective: Objective) -> Array:
        """One epoch; returns the values (m,) where the particles are then."""
        before, slopes = objective.slopes(self.points, self.rates.difference)
        temperature = self.rates.temperature * self.rates.cooling**self.epoch
        moves = self._descent(slopes) + self._noise(temperature, slopes != 0) + self._pull(before)
        proposed = np.clip(self.points + moves, 0, 1)
        after = objective.values(proposed)
        rises = after - before
        # Metropolis: uphill with probability exp(-rise / (temperature * value)).
        allowed = temperature * np.maximum(np.abs(before), 1e-300)
        chance = np.exp(-np.maximum(rises, 0) / allowed) if temperature else rises <= 0
        accepted = self.random.random(len(before)) < chance
        self.points[accepted] = proposed[accepted]
        if self.rates.by_axis:
            self.axis_rates[~accepted] *= SLOWER
            np.clip(self.axis_rates, *AXIS_RATES, out=self.axis_rates)
        self._slopes = slopes
        self.uphill = float((accepted & (rises > 0)).mean())
        self.epoch += 1
        return np.where(accepted, after, before)

    def _descent(self, slopes: Array) -> Array:
        """The step down along the difference quotients."""
        rates = self.rates
        if rates.by_axis:
            kept = slopes * self._slopes
            self.axis_rates *= np.where(kept > 0, FASTER, np.where(kept < 0, SLOWER, 1))
            np.clip(self.axis_rates, *AXIS_RATES, out=self.axis_rates)
        direction = slopes
        if rates.normalised and rates.by_axis:
            direction = np.sign(slopes)
        elif rates.normalised:
            size = np.sqrt(np.square(slopes).mean(axis=1, keepdims=True))
            direction = slopes / np.where(size > 0, size, 1)
        return -rates.rate * rates.decay**self.epoch * self.axis_rates * direction

    def _noise(self, temperature: float, moving: Array) -> Array:
        """Random steps on the axes that move."""
        if not temperature:
            return np.zeros_like(self.points)
        return temperature * self.rates.rate * self.random.standard_normal(self.points.shape) * moving

    def _pull(self, values: Array) -> Array:
        """For some particles the step towards a random neighbour that is better, part of the way."""
        m = len(values)
        others = self.random.integers(m, size=m)
        drawn = (values[others] < values) & (self.random.random(m) < self.rates.neighbour)
        share = self.random.random(m) * drawn
        return share[:, None] * (self.points[others] - self.points)


def minimise(objective: Objective, points: Array, rates: Rates, epochs: int, random: np.random.Generator) -> Descent:
    """Let particles that begin at points (m, axes) descend; what was best, and how it went."""
    swarm = Swarm(points, rates, random)
    best, point, lowest, uphill = np.inf, points[0], [], []
    for _ in range(epochs):
        values = swarm.step(objective)
        if values.min() < best:
            best, point = float(values.min()), swarm.points[values.argmin()].copy()
        lowest.append(best)
        uphill.append(swarm.uphill)
    return Descent(point, best, np.array(lowest), np.array(uphill))


@dataclass(frozen=True, slots=True)
class Descent:
    """The best point (axes,) and its value; epoch by epoch the best value so far and the share of steps uphill."""

    point: Array
    value: float
    values: Array
    uphill: Array


def entropy(share: Array) -> Array:
    """Of a choice made with these probabilities, in bits: 1 where up and down are equally likely, 0 for descent."""
    p = np.clip(share, 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
