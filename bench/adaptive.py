"""Adaptive models against a Keras network and scikit-learn's regressors: held-out error, parameters, epochs, time.

Every contestant gets the same samples. Networks have one hidden layer of tanh units: one has at least as many
parameters as the adaptive model, as few as that takes, and one has LARGE units. scikit-learn's regressors have their
default sizes; its perceptron learns by L-BFGS, as its documentation advises for so few samples, and kernel ridge, which
has no width that would do for every problem, finds its own and its penalty by cross-validation, as part of its fit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bench.timing import CLOCK, Clock, lapped
from datasets import synthetic
from datasets.synthetic import Problem
from impls import registry

Array = npt.NDArray[Any]

ADAPTIVE = "adaptive"
EPOCHS = 200
BATCH = 32
LARGE = 100
LEARNING_RATE = 0.01
TEST_SHARE = 0.3
PARTICLES = 8
"""Of the adaptive model's swarm: each is at another place, and every epoch moves them all."""
OUTPUT_PARAMETERS = 2
"""Location and scale of the adaptive model's map from the sum of its functions to y."""
GRID = {"kernelridge__gamma": np.logspace(-2, 2.5, 10), "kernelridge__alpha": np.logspace(-4, 0, 5)}
"""What kernel ridge chooses from: exp(-gamma |x - x'|^2) of standardised samples, and the penalty."""
FOLDS = 5


class Regressor(Protocol):
    """What takes part: fitted to samples and responses, then asked for responses."""

    def fit(self, x: Array, y: Array) -> Any:
        """Learn from samples x (n, d) and y (n,)."""

    def predict(self, x: Array) -> Array:
        """Responses (n,)."""


@dataclass(frozen=True, slots=True)
class Result:
    """One contestant on one problem.

    ``error``: root mean square on held-out samples, in deviations of their y; ``floor``: that of the truth without
    noise. ``epochs``: None where there are none. ``seconds``: of ``fit``, once, choices by cross-validation included.
    """

    problem: str
    contestant: str
    error: float
    floor: float
    parameters: int
    epochs: int | None
    seconds: float


PROBLEMS: Mapping[str, tuple[Callable[[], Problem], str]] = MappingProxyType(
    {
        "bumps in 1 dimension": (lambda: synthetic.bumps(n=400), "kernel(3)"),
        "bumps in 5 dimensions": (lambda: synthetic.bumps(n=800, d=5, count=4), "kernel(4)"),
        "singularities": (lambda: synthetic.singular(n=500), "kernel(10)"),
        "clusters": (lambda: synthetic.clusters(n=800), "mixture(3)"),
        "orbit": (lambda: synthetic.orbit(n=400), "skewed(8)"),
        "rare events": (lambda: synthetic.rare(n=2000), "kernel(4)"),
    }
)
"""Problems, and the layers of the adaptive model."""


class KerasRegressor:
    """A Keras network with one hidden layer of tanh units, on inputs and responses of mean 0 and deviation 1."""

    def __init__(self, units: int, seed: int = 0) -> None:
        """``units``: of the hidden layer. Keras is imported here: no fit's time has it in it."""
        from impls.competitors._library import quiet_import

        self.units, self.seed, self._keras = units, seed, quiet_import("keras")

    def fit(self, x: Array, y: Array) -> KerasRegressor:
        """EPOCHS epochs of Adam in batches of BATCH."""
        from impls.competitors._library import quiet

        keras = self._keras
        keras.utils.set_random_seed(self.seed)
        self._mean, self._deviation = x.mean(axis=0), x.std(axis=0)
        self._offset, self._unit = y.mean(), y.std()
        layers = [keras.layers.Dense(self.units, activation="tanh"), keras.layers.Dense(1)]
        with quiet():
            self.model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
            self.model.compile(keras.optimizers.Adam(LEARNING_RATE), loss="mean_squared_error")
            self.model.fit(self._scaled(x), (y - self._offset) / self._unit, batch_size=BATCH, epochs=EPOCHS, verbose=0)
        return self

    def predict(self, x: Array) -> Array:
        """Responses (n,)."""
        answers = np.asarray(self.model.predict(self._scaled(x), verbose=0))[:, 0]
        return np.asarray(answers * self._unit + self._offset)

    def _scaled(self, x: Array) -> Array:
        return np.asarray((x - self._mean) / self._deviation, np.float32)


def contestants(layers: str, least_parameters: int, features: int, seed: int) -> dict[str, Regressor]:
    """Everyone by name; the networks are ours where Keras cannot compute."""
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from impls.nn.adaptive.estimator import AdaptiveRegressor

    units = math.ceil((least_parameters - 1) / (features + 2))
    perceptron = MLPRegressor(activation="tanh", solver="lbfgs", max_iter=EPOCHS, random_state=seed)
    ridge = make_pipeline(StandardScaler(), KernelRidge(kernel="rbf"))
    return {
        ADAPTIVE: AdaptiveRegressor(layers, epochs=EPOCHS, particles=PARTICLES, random_state=seed),
        **_networks((units, LARGE), seed),
        "random forest": RandomForestRegressor(random_state=seed),
        "gradient boosting": GradientBoostingRegressor(random_state=seed),
        "kernel ridge": GridSearchCV(ridge, GRID, cv=FOLDS),
        "MLP": make_pipeline(StandardScaler(), perceptron),
    }


def _networks(sizes: Sequence[int], seed: int) -> dict[str, Regressor]:
    """Keras' networks of so many hidden units, or our own where Keras cannot compute."""
    if registry.get("dense", "keras").missing() is None:
        return {f"Keras, {units} units": KerasRegressor(units, seed) for units in sizes}
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from impls.nn.estimators import NetworkRegressor

    plan: dict[str, Any] = {"learning_rate": LEARNING_RATE, "epochs": EPOCHS, "batch": BATCH, "random_state": seed}
    return {
        f"our network, {units} units": make_pipeline(StandardScaler(), NetworkRegressor(f"D({units},t)", **plan))
        for units in sizes
    }


def compete(name: str, seed: int = 0, clock: Clock = CLOCK) -> Iterator[Result]:
    """Every contestant on a problem of PROBLEMS. Raises KeyError for another name."""
    from sklearn.exceptions import ConvergenceWarning

    from impls.nn.adaptive.model import Model

    make, layers = PROBLEMS[name]
    problem = make()
    order = np.random.default_rng(seed).permutation(len(problem.y))
    test, train = np.split(order, [int(TEST_SHARE * len(order))])
    x, y = problem.x[train], problem.y[train]
    least = Model(layers, x.min(axis=0), x.max(axis=0)).parameters + OUTPUT_PARAMETERS
    deviation = problem.y[test].std()
    floor = _rmse(problem.clean[test], problem.y[test]) / deviation
    for contestant, regressor in contestants(layers, least, x.shape[1], seed).items():
        laps: list[float] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the perceptron's epochs are over: its row says so
            lapped(regressor.fit, laps, clock)(x, y)
        error = _rmse(regressor.predict(problem.x[test]), problem.y[test]) / deviation
        yield Result(name, contestant, error, floor, parameters_of(regressor), epochs_of(regressor), laps[0])


def parameters_of(regressor: Any) -> int:
    """Numbers that were learned: weights, dual coefficients, and of trees one per node (threshold or answer)."""
    last = _last(regressor)
    if hasattr(last, "model_"):
        return int(last.model_.parameters) + OUTPUT_PARAMETERS
    if hasattr(last, "network_"):
        return int(last.network_.weights.size)
    if hasattr(last, "model"):
        return int(last.model.count_params())
    if hasattr(last, "coefs_"):
        return int(sum(array.size for array in (*last.coefs_, *last.intercepts_)))
    if hasattr(last, "dual_coef_"):
        return int(last.dual_coef_.size)
    return int(sum(tree.tree_.node_count for tree in np.ravel(last.estimators_)))


def epochs_of(regressor: Any) -> int | None:
    """Passes over the data, where there are such."""
    last = _last(regressor)
    if isinstance(last, KerasRegressor):
        return EPOCHS
    found = getattr(last, "n_iter_", None)
    return None if found is None else int(found)


def _last(regressor: Any) -> Any:
    """What answers: the last step of a pipeline, of a search that with the best choice."""
    chosen = getattr(regressor, "best_estimator_", regressor)
    return chosen[-1] if hasattr(chosen, "steps") else chosen


def _rmse(one: Array, other: Array) -> float:
    return float(np.sqrt(np.square(one - other).mean()))
