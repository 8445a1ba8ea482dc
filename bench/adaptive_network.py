"""What adaptive loss and equalisation do in the standard network's training loop: two studies with their figures.

As bench/adaptive_studies.py, whose curves and panels they are made of: seeds are fixed, the figures come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.adaptive_studies import DASHES, LINE, Curve, Panel, Study
from datasets import load, synthetic
from impls.nn.network import Network
from impls.nn.optimizers import SGD, Adam
from impls.nn.training import Callback, Data, Settings, Trainer

Array = npt.NDArray[Any]

SEEDS = 5
EPOCHS = 60
MSE, CROSS_ENTROPY = "mean_squared_error", "categorical_crossentropy"


def network_loss() -> Study:
    """Digits judged by the squares of their probabilities' errors: descended alone, and behind a cross-entropy."""
    digits = load("digits")
    train, test = (
        Data(x, np.eye(10, dtype=np.float32)[y])
        for x, y in ((digits.x_train, digits.y_train), (digits.x_test, digits.y_test))
    )
    panels: list[Panel] = []
    findings: list[tuple[str, str]] = []
    for title, optimizer in (("SGD 0.5", SGD(learning_rate=0.5)), ("Adam 0.01", Adam(learning_rate=0.01))):
        curves = []
        for name, first in (("squares alone", ()), ("cross-entropy first", (CROSS_ENTROPY,))):
            settings = Settings(epochs=EPOCHS, loss=MSE, optimizer=optimizer, first_losses=first)
            errors = [_errors("F();D(64,s);D(64,s);D(10,sm)", train, test, settings, seed) for seed in range(SEEDS)]
            curves.append(_median(name, errors, LINE if first else DASHES))
            findings.append((f"mean square on test images, {title}, {name}", _quartiles(errors)))
        panels.append(
            Panel(title, "epoch", f"mean square on test images, median of {SEEDS}", tuple(curves), log_y=True)
        )
    return Study("network-loss", "Adaptive loss in a network's training", tuple(panels), tuple(findings))


def network_equalisation() -> Study:
    """A response of 1000 + 50 f as it is, brought to mean 0 and deviation 1, and equalised."""
    errors: dict[str, list[Array]] = {"as it is": [], "standardised": [], "equalised": []}
    units: list[list[float]] = []
    for seed in range(SEEDS):
        problem = synthetic.bumps(n=400, d=2, seed=seed)
        x = ((problem.x - problem.x.mean(axis=0)) / problem.x.std(axis=0)).astype(np.float32)[:, None, None, :]
        y = 1000 + 50 * problem.y[:, None]
        mean, deviation = y.mean(), float(y.std())
        own: list[float] = []
        for name, found in errors.items():
            targets = (y - mean) / deviation if name == "standardised" else y
            data = Data(x, targets.astype(np.float32))
            settings = Settings(
                epochs=EPOCHS, loss=MSE, optimizer=Adam(learning_rate=0.01), equalise=name == "equalised"
            )
            callbacks = [_noting_units(own, deviation)] if settings.equalise else []
            squares = _errors("F();D(16,t);D(16,t);D(1)", data, data, settings, seed, callbacks)
            found.append(np.sqrt(squares) / targets.std())
        units.append(own)
    curves = tuple(_median(name, found, DASHES if name == "as it is" else LINE) for name, found in errors.items())
    fixed = Curve("standardised", np.array([1, EPOCHS]), np.ones(2), DASHES)
    return Study(
        "network-equalisation",
        "Equalisation in a network's training",
        (
            Panel("y = 1000 + 50 f", "epoch", f"error / deviation, median of {SEEDS}", curves, log_y=True),
            Panel("what an answer of 1 is", "epoch", "deviations of y", (_median("equalised", units), fixed)),
        ),
        tuple((f"error, {name}", _quartiles(found)) for name, found in errors.items()),
    )


def _noting_units(units: list[float], deviation: float) -> Callback:
    """After every epoch what a change of 1 in the network's answer is, in deviations of y."""

    def note(trainer: Trainer, _: Any) -> None:
        assert trainer.response is not None
        units.append(float(1 / trainer.response.map.scale) / deviation)

    return note


def _errors(
    text: str, train: Data, test: Data, settings: Settings, seed: int, callbacks: Sequence[Callback] = ()
) -> Array:
    """The mean square on ``test`` after every epoch (epochs,), of a network that is drawn from ``seed``."""
    network = Network(text, train.x.shape[1:], seed=seed)
    history = Trainer(network, train, replace(settings, seed=seed), test).fit(callbacks)
    return np.array([record["val_loss"] for record in history])


def _median(label: str, found: Sequence[npt.ArrayLike], look: str = LINE) -> Curve:
    """The median over the seeds of what was found epoch by epoch (seeds, epochs)."""
    middle = np.median(np.asarray(found), axis=0)
    return Curve(label, np.arange(1, len(middle) + 1), middle, look)


def _quartiles(found: Sequence[Array]) -> str:
    """Of the seeds' last epochs: the median and the quartiles."""
    low, middle, high = np.quantile([each[-1] for each in found], (0.25, 0.5, 0.75))
    return f"{middle:.4f} [{low:.4f}, {high:.4f}]"


STUDIES: Mapping[str, Callable[[], Study]] = MappingProxyType(
    {"network-loss": network_loss, "network-equalisation": network_equalisation}
)
