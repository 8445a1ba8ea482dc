"""Optimizers as Keras defines them: what they keep for each weight, and one fused pass that moves the weights.

An optimizer is a frozen value with two functions. ``init(count)`` gives its state: arrays of one value per weight.
``update(w, g, state, rate, step)`` moves the weights in place, reading each array once; step 0 is the first. Weights
and gradients are flat float32 arrays. Coefficients that depend on the step are computed
once, in float32 and in Keras' order: at the first steps 1 - beta_2^step is small, and its rounding error moves weights.

    SGD      momentum: B. Polyak 1964; Nesterov's form: I. Sutskever et al., ICML 2013
    AdaGrad  J. Duchi, E. Hazan, Y. Singer, JMLR 12 (2011)
    RMSProp  T. Tieleman, G. Hinton, Coursera lecture 6.5 (2012)
    Adam, AdaMax  D. Kingma, J. Ba, ICLR 2015, algorithms 1 and 2
    Nadam    T. Dozat, ICLR workshop 2016
    AMSGrad  S. Reddi, S. Kale, S. Kumar, ICLR 2018
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from impls.nn.schedules import Schedule
from impls.numba_setup import prange
from impls.parts import cut, parts_for, shared
from impls.specs import SpecError

Array = npt.NDArray[Any]
State: TypeAlias = tuple[Array, ...]

SERIAL_BELOW = 1 << 16
"""Weights: fewer take less time than waking a second thread."""

NEGLIGIBLE = 1e-20

NADAM_DECAY = 0.96
"""Dozat's decay of the momentum's warming up, over 250 steps there, per step in Keras."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """What all have in common. ``arrays``: how many values it keeps for each weight."""

    arrays: ClassVar[int] = 0
    learning_rate: float | Schedule = 0.001

    def __post_init__(self) -> None:
        """Raises SpecError for a setting outside its range, naming it."""
        if isinstance(self.learning_rate, int | float) and not (
            self.learning_rate >= 0 and math.isfinite(self.learning_rate)
        ):
            raise SpecError(f"learning_rate={self.learning_rate} must be a finite number of at least 0")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("momentum", "rho", "beta_1", "beta_2") and not 0 <= value < 1:
                raise SpecError(f"{field.name}={value} must be at least 0 and below 1")
            if field.name in ("epsilon", "initial_accumulator") and not (value >= 0 and math.isfinite(value)):
                raise SpecError(f"{field.name}={value} must be a finite number of at least 0")

    def init(self, count: int) -> State:
        """The state before the first step, for this many weights."""
        return tuple(np.zeros(count, np.float32) for _ in range(self.arrays))

    def update(self, w: Array, g: Array, state: State, rate: float, step: int) -> None:
        """Move the weights."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD(Optimizer):
    """Gradient descent; with momentum m <- momentum m - rate g, w <- w + m."""

    arrays: ClassVar[int] = 1
    learning_rate: float | Schedule = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    def init(self, count: int) -> State:
        """The velocities; none without momentum."""
        return Optimizer.init(self, count if self.momentum else 0)

    def update(self, w: Array, g: Array, state: State, rate: float, step: int) -> None:
        """One step."""
        if self.momentum:
            _momentum(w, g, *state, *_float32(rate, self.momentum), self.nesterov, _parts(w))
        else:
            _descend(w, g, *_float32(rate), _parts(w))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaGrad(Optimizer):
    """Divides by the root of all squared gradients so far."""

    arrays: ClassVar[int] = 1
    initial_accumulator: float = 0.1
    epsilon: float = 1e-7

    def init(self, count: int) -> State:
        """The sums of squares, which do not start at zero."""
        return (np.full(count, self.initial_accumulator, np.float32),)

    def update(self, w: Array, g: Array, state: State, rate: float, step: int) -> None:
        """One step."""
        _adagrad(w, g, *state, *_float32(rate, self.epsilon), _parts(w))


@dataclass(frozen=True, slots=True, kw_only=True)
class RMSProp(Optimizer):
    """Divides by the root of a moving average of squared gradients (about their mean, if centered)."""

    arrays: ClassVar[int] = 3
    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-7
    centered: bool = False

    def init(self, count: int) -> State:
        """Averages of squares, of gradients (where centered), and velocities (where there is momentum)."""
        sizes = count, count if self.centered else 0, count if self.momentum else 0
        return tuple(np.zeros(size, np.float32) for size in sizes)

    def update(self, w: Array, g: Array, state: State, rate: float, step: int) -> None:
        """One step."""
        numbers = _float32(rate, self.rho, 1 - self.rho, self.momentum, self.epsilon)
        _rmsprop(w, g, *state, *numbers, _parts(w))


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(Optimizer):
    """Moving averages of gradients and of their squares, both corrected for starting at zero.

    ``amsgrad`` divides by the largest average of squares so far.
    """

    arrays: ClassVar[int] = 3
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    amsgrad: bool = False

    def init(self, count: int) -> State:
        """Averages of gradients, of squares, and the largest of these (where it is AMSGrad)."""
        return tuple(np.zeros(size, np.float32) for size in (count, count, count if self.amsgrad else 0))

    def update(self, w: Array, g: Array, state: State, rate: float, step: int) -> None:
        """One step."""
        rest_1, rest_2 = (1 - _power(beta, step + 1) for beta in (self.beta_1, self.beta_2))
        alpha = np.float32(rate) * np.sqrt(rest_2) / rest_1
        _adam(w, g, *state, *_float32(alpha, 1 - self.beta_1, 1 - self.beta_2, self.epsilon), _parts(w))


def AMSGrad(**settings: Any) -> Adam:
    """Adam that never forgets the largest average of squares."""
    return Adam(amsgrad=True, **settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaMax(Optimizer):
    """Adam with the decaying largest gradient in place of the average of squares."""

    arrays: ClassVar[int] = 2
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def update(self, w: Array, g: Array, state: State, rate: float, step: int) -> None:
        """One step."""
        rest = 1 - _power(self.beta_1, step + 1)
        _adamax(w, g, *state, *_float32(rate, rest, 1 - self.beta_1, self.beta_2, self.epsilon), _parts(w))


@dataclass(frozen=True, slots=True, kw_only=True)
class Nadam(Optimizer):
    """Adam with Nesterov's look ahead and a momentum that warms up."""

    arrays: ClassVar[int] = 2
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def update(self, w: Array, g: Array, state: State, rate: float, step: int) -> None:
        """One step."""
        now, following = self._momentum(step), self._momentum(step + 1)
        product = self.momentum_product(step + 1)
        rests = 1 - product * following, 1 - product, 1 - _power(self.beta_2, step + 1)
        rest_1, rest_2 = (1 - np.float32(beta) for beta in (self.beta_1, self.beta_2))
        numbers = _float32(rate, following, 1 - now, *rests, rest_1, rest_2, self.epsilon)
        _nadam(w, g, *state, *numbers, _parts(w))

    def momentum_product(self, steps: int) -> np.float32:
        """Of the momenta of so many steps; what is far below the rounding of 1 - product need not be exact."""
        product = np.float32(1)
        for i in range(steps):
            product *= self._momentum(i)
            if product < NEGLIGIBLE:
                break
        return product

    def _momentum(self, step: int) -> np.float32:
        return np.float32(self.beta_1) * (1 - np.float32(0.5) * _power(NADAM_DECAY, step + 1))


OPTIMIZERS: dict[str, Any] = {
    "sgd": SGD,
    "adagrad": AdaGrad,
    "rmsprop": RMSProp,
    "adam": Adam,
    "adamax": AdaMax,
    "nadam": Nadam,
    "amsgrad": AMSGrad,
}
"""Every optimizer by its name."""


def named(name: str, **settings: Any) -> Optimizer:
    """The optimizer of this name. Raises SpecError for an unknown name or setting, listing the known ones."""
    if name not in OPTIMIZERS:
        raise SpecError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    made = OPTIMIZERS[name]
    known = [field.name for field in fields(Adam if name == "amsgrad" else made)]
    for setting in settings:
        if setting not in known:
            raise SpecError(f"{name} has no setting {setting!r}; known: {', '.join(known)}")
    optimizer: Optimizer = made(**settings)
    return optimizer


def described(optimizer: Optimizer) -> dict[str, Any]:
    """The settings of an optimizer with its ``name``: ``named`` makes it again. Raises SpecError for a schedule."""
    if not isinstance(optimizer.learning_rate, int | float):
        raise SpecError(f"a learning rate that changes cannot be written as a number: {optimizer.learning_rate}")
    name = next(name for name, made in OPTIMIZERS.items() if made is type(optimizer))
    return {"name": name} | {field.name: getattr(optimizer, field.name) for field in fields(optimizer)}


def _parts(w: Array) -> int:
    return parts_for(len(w), SERIAL_BELOW)


def _power(base: float, exponent: int) -> np.float32:
    return np.float32(np.float32(base) ** np.float32(exponent))


def _float32(*values: float | np.floating[Any]) -> tuple[np.float32, ...]:
    return tuple(map(np.float32, values))


@shared
def _descend(all_w, all_g, rate, parts):
    for part in prange(parts):
        w, g = cut(all_w, part, parts), cut(all_g, part, parts)
        for i in range(len(w)):
            w[i] -= rate * g[i]


@shared
def _momentum(all_w, all_g, all_m, rate, momentum, nesterov, parts):
    for part in prange(parts):
        w, g, m = cut(all_w, part, parts), cut(all_g, part, parts), cut(all_m, part, parts)
        for i in range(len(w)):
            step = rate * g[i]
            m[i] = momentum * m[i] - step
            w[i] += momentum * m[i] - step if nesterov else m[i]


@shared
def _adagrad(all_w, all_g, all_squares, rate, epsilon, parts):
    for part in prange(parts):
        w, g, squares = cut(all_w, part, parts), cut(all_g, part, parts), cut(all_squares, part, parts)
        for i in range(len(w)):
            squares[i] += g[i] * g[i]
            w[i] -= rate * g[i] / np.sqrt(squares[i] + epsilon)


@shared
def _rmsprop(all_w, all_g, all_squares, all_means, all_m, rate, rho, rest, momentum, epsilon, parts):
    for part in prange(parts):
        w, g, squares, means, m = (
            cut(all_w, part, parts),
            cut(all_g, part, parts),
            cut(all_squares, part, parts),
            cut(all_means, part, parts),
            cut(all_m, part, parts),
        )
        for i in range(len(w)):
            squares[i] = rho * squares[i] + rest * (g[i] * g[i])
            spread = squares[i]
            if len(means):
                means[i] = rho * means[i] + rest * g[i]
                spread -= means[i] * means[i]
            step = rate * g[i] / np.sqrt(spread + epsilon)
            if len(m):
                m[i] = momentum * m[i] + step
                step = m[i]
            w[i] -= step


@shared
def _adam(all_w, all_g, all_m, all_v, all_largest, alpha, rest_1, rest_2, epsilon, parts):
    for part in prange(parts):
        w, g, m, v, largest = (
            cut(all_w, part, parts),
            cut(all_g, part, parts),
            cut(all_m, part, parts),
            cut(all_v, part, parts),
            cut(all_largest, part, parts),
        )
        for i in range(len(w)):
            m[i] += (g[i] - m[i]) * rest_1
            v[i] += (g[i] * g[i] - v[i]) * rest_2
            square = v[i]
            if len(largest):
                square = max(largest[i], square)
                largest[i] = square
            w[i] -= m[i] * alpha / (np.sqrt(square) + epsilon)


@shared
def _adamax(all_w, all_g, all_m, all_u, rate, rest, rest_1, beta_2, epsilon, parts):
    for part in prange(parts):
        w, g, m, u = cut(all_w, part, parts), cut(all_g, part, parts), cut(all_m, part, parts), cut(all_u, part, parts)
        for i in range(len(w)):
            m[i] += (g[i] - m[i]) * rest_1
            u[i] = max(beta_2 * u[i], abs(g[i]))
            w[i] -= rate * m[i] / (rest * (u[i] + epsilon))


@shared
def _nadam(all_w, all_g, all_m, all_v, rate, following, of_g, rest_m, rest_g, rest_v, rest_1, rest_2, epsilon, parts):
    for part in prange(parts):
        w, g, m, v = cut(all_w, part, parts), cut(all_g, part, parts), cut(all_m, part, parts), cut(all_v, part, parts)
        for i in range(len(w)):
            m[i] += (g[i] - m[i]) * rest_1
            v[i] += (g[i] * g[i] - v[i]) * rest_2
            ahead = following * m[i] / rest_m + of_g * g[i] / rest_g
            w[i] -= ahead * rate / (np.sqrt(v[i] / rest_v) + epsilon)
