"""Learning rates that change with the step: step 0 is the first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from impls.specs import SpecError


@dataclass(frozen=True, slots=True)
class InverseTimeDecay:
    """initial / (1 + rate * step / steps)."""

    initial: float
    rate: float
    steps: int = 1

    def __post_init__(self) -> None:
        _require_positive(initial=self.initial, steps=self.steps)

    def __call__(self, step: int) -> float:
        """The learning rate of a step."""
        return self.initial / (1.0 + self.rate * step / self.steps)


@dataclass(frozen=True, slots=True)
class StepDecay:
    """initial * factor for every full ``steps`` steps that have passed."""

    initial: float
    factor: float
    steps: int

    def __post_init__(self) -> None:
        _require_positive(initial=self.initial, factor=self.factor, steps=self.steps)

    def __call__(self, step: int) -> float:
        """The learning rate of a step."""
        return self.initial * self.factor ** (step // self.steps)


@dataclass(frozen=True, slots=True)
class CosineDecay:
    """From initial to final along half a cosine in ``steps`` steps (I. Loshchilov, F. Hutter, ICLR 2017)."""

    initial: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _require_positive(initial=self.initial, steps=self.steps)

    def __call__(self, step: int) -> float:
        """The learning rate of a step."""
        part = min(step / self.steps, 1.0)
        return self.final + (self.initial - self.final) * 0.5 * (1.0 + math.cos(math.pi * part))


Schedule: TypeAlias = InverseTimeDecay | StepDecay | CosineDecay


def rate_at(learning_rate: float | Schedule, step: int) -> float:
    """The learning rate of a step, whether it changes or not."""
    return learning_rate if isinstance(learning_rate, int | float) else learning_rate(step)


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise SpecError(f"{name}={value} must be a finite number above 0")
