"""Fitting a model: all layers at once or in turns, by a swarm, with a loss and a response that adapt.

flat         every epoch moves the parameters of all layers
sub-layers   the layers take turns, each fitted to what the others leave, as blocks in an EM algorithm
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.nn.adaptive.descent import Rates, Swarm
from impls.nn.adaptive.equalisation import ScaleLocation, equalising, least_squares
from impls.nn.adaptive.errors import AdaptiveLoss, error_of
from impls.nn.adaptive.model import Fit, Model
from impls.specs import SpecError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a model is fitted. ``losses`` follow each other as descent stalls; the last one is the evaluation metric.

    ``turn``: epochs of a layer's turn where the layers are not ``flat``. ``equalise``: the response adapts.
    """

    epochs: int = 400
    particles: int = 4
    losses: tuple[str, ...] = ("rmse",)
    patience: int = 25
    flat: bool = True
    turn: int = 20
    equalise: bool = True
    rates: Rates = field(default_factory=Rates)

    def __post_init__(self) -> None:
        """Raises SpecError for a setting outside its range or an unknown loss, naming it."""
        for name in ("epochs", "particles", "turn"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}={getattr(self, name)} must be at least 1")
        AdaptiveLoss(self.losses, self.patience)
        for name in self.losses:
            error_of(name)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch came to: the best particle's metric, in deviations of y, the loss descended, its layer (-1: all).

    ``uphill``: the share of the particles whose step went uphill; ``response``: the map that y had been through.
    """

    metric: float
    loss: str
    layer: int
    uphill: float
    response: ScaleLocation


@dataclass(frozen=True, slots=True)
class Fitted:
    """The best point (parameters,), the map from the model's response to y, and the epochs."""

    point: Array
    output: ScaleLocation
    epochs: tuple[Epoch, ...]


def fit(model: Model, x: Array, y: Array, plan: Plan, random: np.random.Generator) -> Fitted:
    """Fit a model to y (n,) at samples x (n, d); what was best by the metric in any epoch is returned."""
    metric, losses = error_of(plan.losses[-1]), AdaptiveLoss(plan.losses, plan.patience)
    unit = float(y.std()) or 1.0
    # Every particle has a response of its own, at first y with mean 0 and deviation 1.
    standard = ScaleLocation(-float(y.mean()) / unit, 1 / unit)
    responses = np.broadcast_to(standard(y), (plan.particles, len(y)))
    done = ScaleLocation(np.full((plan.particles, 1), standard.location), np.full((plan.particles, 1), standard.scale))
    swarm = Swarm(np.stack([model.first_point(x, own, random) for own in responses]), plan.rates, random)
    best, point, output, epochs = np.inf, swarm.points[0].copy(), standard.inverse(), []
    for epoch in range(plan.epochs):
        number = -1 if plan.flat else epoch // plan.turn % len(model.layers)
        moving = model.layers if plan.flat else model.layers[number : number + 1]
        others = _others(model, number, x, swarm.points)
        values = swarm.step(Fit(model, moving, x, responses, error_of(losses.name), others))
        fitted = model.response(x, swarm.points)
        if plan.equalise:
            done = done.then(equalising(responses, fitted))
            responses = done(y)
        found = metric(done.inverse()(fitted) - y, -1) / unit
        leader = int(found.argmin())
        if found[leader] < best:
            best, point, output = found[leader], swarm.points[leader].copy(), done.of(leader).inverse()
        epochs.append(Epoch(float(found[leader]), losses.name, number, swarm.uphill, done.of(leader)))
        losses.watch(float(values.min()), 1 - (epoch + 1) / plan.epochs)
    if plan.equalise and plan.losses[-1] == "rmse":
        output = least_squares(model.response(x, point[None]), y[None]).of(0)
    return Fitted(point, output, tuple(epochs))


def _others(model: Model, number: int, x: Array, points: Array) -> Array | float:
    """What the layers add (m, n) that are not at their turn."""
    fixed = [layer for k, layer in enumerate(model.layers) if number not in (-1, k)]
    return np.sum([model.layer_response(layer, x, points) for layer in fixed], axis=0) if fixed else 0.0
