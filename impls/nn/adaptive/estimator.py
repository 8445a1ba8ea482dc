"""The adaptive model for scikit-learn: a regressor whose parameters have names, values, units and errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from impls.nn.adaptive.confidence import confidence
from impls.nn.adaptive.descent import Rates
from impls.nn.adaptive.fitting import Plan, fit
from impls.nn.adaptive.model import AMPLITUDE, Model
from impls.nn.adaptive.polish import polish
from impls.nn.adaptive.scales import RECIPROCAL
from impls.nn.adaptive.watermark import Claim, embed, verify

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of one function: its value and standard error in the units of the data.

    The error is infinite where the response does not depend on it, NaN where there were too few samples or where it
    ended at a bound of its interval.
    """

    layer: int
    function: int
    family: str
    name: str
    value: float
    error: float
    at_bound: bool = False

    def __str__(self) -> str:
        """``kernel 2: centre[0] = 0.25 +- 0.003``."""
        error = "undetermined" if np.isinf(self.error) else f"+- {self.error:.2g}"
        error = "at its bound" if self.at_bound else error
        return f"layer {self.layer}, {self.family} {self.function}: {self.name} = {self.value:.4g} {error}"


class AdaptiveRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """y as a sum of parametric functions: ``layers`` such as "kernel(8);trigonometric(3)".

    Families: kernel, skewed, mixture, trigonometric, zeta. ``losses``: descended one after the other as descent
    stalls, the last one is the evaluation metric. ``flat``: all layers at once, else in turns. ``equalise``: the
    response adapts by scale and location. ``ghosts``: a redundant parameter for every function, which can carry a
    watermark. ``widths``: how kernels' widths are reparameterised: linear, square, reciprocal. ``tables``: functions
    from tables in steps of 1e-4. ``polish``: the swarm's best is brought to its minimum, where the metric is rmse.
    ``amplitude``: the largest, in deviations of y. ``rates``: Rates, for the rest.
    """

    def __init__(
        self,
        layers: str = "kernel(8)",
        *,
        epochs: int = 400,
        particles: int = 8,
        losses: tuple[str, ...] = ("rmse",),
        patience: int = 25,
        flat: bool = True,
        equalise: bool = True,
        ghosts: bool = False,
        widths: str = RECIPROCAL,
        tables: bool = False,
        polish: bool = True,
        amplitude: float = AMPLITUDE,
        rates: Rates | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.layers = layers
        self.epochs = epochs
        self.particles = particles
        self.losses = losses
        self.patience = patience
        self.flat = flat
        self.equalise = equalise
        self.ghosts = ghosts
        self.widths = widths
        self.tables = tables
        self.polish = polish
        self.amplitude = amplitude
        self.rates = rates
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> AdaptiveRegressor:
        """Fit to samples X (n, d) and y (n,). Raises SpecError for a setting that cannot be, naming it."""
        x, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        plan = Plan(
            epochs=self.epochs,
            particles=self.particles,
            losses=tuple(self.losses),
            patience=self.patience,
            flat=self.flat,
            equalise=self.equalise,
            rates=self.rates or Rates(),
        )
        seed = int(check_random_state(self.random_state).randint(2**31))
        y = np.asarray(y, np.float64)
        self.model_ = Model(
            self.layers,
            x.min(axis=0),
            x.max(axis=0),
            ghosts=self.ghosts,
            widths=self.widths,
            amplitude=self.amplitude,
            tables=self.tables,
        )
        fitted = fit(self.model_, x, y, plan, np.random.default_rng(seed))
        self.point_, self.output_, self.history_ = fitted.point, fitted.output, fitted.epochs
        if self.polish and plan.losses[-1] == "rmse":
            self.point_, self.output_ = polish(self.model_, x, y, self.point_, self.output_)
        self.n_iter_ = len(self.history_)
        self.confidence_ = confidence(self.model_, x, y, self.point_, self.output_)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The predicted y (n,); with ``return_std`` the standard errors (n,) of these means, a pair."""
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=np.float64)
        mean = self.output_(self.model_.response(x, self.point_[None])[0])
        if not return_std:
            return mean
        return mean, self.confidence_.of_responses(self.model_, x, self.point_, self.output_)

    def parameters(self) -> tuple[Parameter, ...]:
        """What was found, function by function: amplitudes in units of y, centres in those of X."""
        check_is_fitted(self)
        layers = self.model_.layers
        values = np.concatenate([self.model_.natural(layer, self.point_[None]).ravel() for layer in layers])
        errors = self.confidence_.of_parameters(self.model_, self.point_)
        columns = zip(self.model_.meaning(), values, errors, self.confidence_.at_bound, strict=True)
        found = []
        for (layer, function, name), value, error, at_bound in columns:
            family, unit = layers[layer].family.name, self.output_.scale if name == "amplitude" else 1.0
            own = float(value * unit), float(error * abs(unit)), bool(at_bound)
            found.append(Parameter(layer, function, family, name, *own))
        return tuple(found)

    def embed_watermark(self, key: bytes) -> AdaptiveRegressor:
        """Put the key's bits into the ghosts; predictions stay as they are. Raises SpecError without ghosts."""
        check_is_fitted(self)
        self.point_ = embed(self.model_, self.point_, key)
        return self

    def verify_watermark(self, key: bytes) -> Claim:
        """How much of the key's bits is in the ghosts, and how likely that is by chance."""
        check_is_fitted(self)
        return verify(self.model_, self.point_, key)
