"""Studies of fine-tuning: one thing is varied, all else stays at a baseline, and a validation part judges.

The baseline is a network 64-64-10 with a sigmoid (on the digits; one hidden layer of 64 units on any data set), trained
by descent on the whole training part at once. A study is a list of arms, and every arm is trained by the one training
loop that there is. What signals do before the first step is in ``bench.signals``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.holdout import EVALUATED, Holdout
from impls.nn.initializers import Initializer
from impls.nn.network import EVERY, Network, Options
from impls.nn.optimizers import SGD, Adam
from impls.nn.schedules import CosineDecay, InverseTimeDecay, Schedule, StepDecay, rate_at
from impls.nn.structure import Dense
from impls.nn.training import Callback, EarlyStopping, Record, Settings, Trainer, TrainingError, evaluate, norm_of

Array = npt.NDArray[Any]

HIDDEN = "D(64,s);"
"""The baseline's hidden layer."""
EPOCHS, RATE = 1000, 0.5

LOG_EVERY = 50
"""Epochs between two lines of a log."""
SMOOTHING = 0.9
"""The share of the average before in a smoothed value."""
PATIENCES = (10, 50)
CLIP_AT = 5.0
DROPOUTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
DEPTHS = tuple(range(1, 11))
"""Hidden layers."""

LOWEST_RATE, HIGHEST_RATE, RANGE_STEPS = 1e-3, 1e2, 200
GIVEN_UP = 4.0
"""A range test ends where the loss is so many times the lowest (L. Smith, WACV 2017)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way of training: hidden layers, how they begin, and the settings.

    ``group`` and ``x`` place it in a figure, among others like it and along the axis of what is varied.
    """

    label: str
    settings: Settings
    hidden: str = HIDDEN
    initializer: Initializer | None = None
    group: str = ""
    x: float = math.nan

    @property
    def name(self) -> str:
        """The label, after its group's."""
        return f"{self.group}: {self.label}" if self.group else self.label

    @property
    def is_range_test(self) -> bool:
        """Whether its learning rate grows."""
        rate = self.settings.optimizer.learning_rate
        return isinstance(rate, StepDecay) and rate.factor > 1

    def network(self, data: Holdout, seed: int) -> Network:
        """The network before its first step: the hidden layers on flattened images, then softmax units."""
        structure = f"F();{self.hidden}{Dense(data.classes, 'softmax')}"
        options = {EVERY: Options(initializer=self.initializer)}
        return Network(structure, data.image_shape, options=options, seed=seed)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an arm: the record of every epoch; of every step the gradient's norm and the learning rate.

    ``norms`` are taken before clipping, ``clipped`` after it. ``ends``: the steps taken when each epoch ended.
    ``kept``: the validation part's figures of the weights that are left. ``failure``: why training ended before its
    time, empty if it did not.
    """

    arm: Arm
    history: tuple[Record, ...]
    norms: tuple[float, ...]
    clipped: tuple[float, ...]
    rates: tuple[float, ...]
    ends: tuple[int, ...]
    kept: Record
    failure: str = ""

    @property
    def best_epoch(self) -> int:
        """The epoch, from 1, with the lowest validation loss; 0 where there is none."""
        found = [record["val_loss"] for record in self.history]
        return 1 + found.index(min(found)) if found else 0


Watch: TypeAlias = Callable[[Arm, int, Record], object]
"""Called every LOG_EVERY epochs, and after the last one, with the arm, the epoch from 1, and its record."""


class _Noting(Trainer):
    """A trainer that notes of each step the gradient's norm before and after clipping, and the learning rate.

    Of each epoch it notes how many steps had been taken when it ended.
    """

    def reset(self) -> None:
        """Forget the notes too."""
        super().reset()
        self.norms: list[float] = []
        self.clipped: list[float] = []
        self.rates: list[float] = []
        self.ends: list[int] = []

    def epoch(self) -> Record:
        """One pass over the data, and note where it ended."""
        record = super().epoch()
        self.ends.append(self.steps)
        return record

    def update(self) -> float:
        """Move the weights, and take notes."""
        self.rates.append(rate_at(self.settings.optimizer.learning_rate, self.steps))
        self.norms.append(norm_of([self.network.gradients]))
        penalty = super().update()
        self.clipped.append(norm_of([self.network.gradients]))
        return penalty


def train(arm: Arm, data: Holdout, seed: int = 0, watch: Watch | None = None, *callbacks: Callback) -> Outcome:
    """Train one arm; a loss that stops being finite ends it, and is told."""
    trainer = _Noting(arm.network(data, seed), data.train, arm.settings, data.validation)

    def log(_: Trainer, record: Record) -> None:
        epoch = len(trainer.history)
        if watch and (epoch % LOG_EVERY == 0 or epoch == arm.settings.epochs):
            watch(arm, epoch, record)

    failure = ""
    try:
        trainer.fit([log, *callbacks])
    except TrainingError as error:
        failure = str(error)
    kept = evaluate(trainer.network, data.validation, arm.settings.loss, arm.settings.batch)
    norms, clipped, rates = map(tuple, (trainer.norms, trainer.clipped, trainer.rates))
    return Outcome(arm, tuple(trainer.history), norms, clipped, rates, tuple(trainer.ends), kept, failure)


def exponential_average(values: Sequence[float], weight: float = SMOOTHING) -> Array:
    """Exponential averages s <- weight s + (1 - weight) v, each divided by the sum of its weights.

    The first one is therefore the first value (as in Adam: D. Kingma, J. Ba, ICLR 2015, section 3).
    """
    found, average = np.empty(len(values)), 0.0
    for i, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        found[i] = average / (1 - weight ** (i + 1))
    return found


def best_rate(outcome: Outcome) -> float:
    """What a range test recommends: the rate whose step brings the loss furthest below what it had been so far.

    Rates are a constant factor apart. What falls back after it had risen counts below the old lowest value only.
    """
    falls = -np.diff(np.minimum.accumulate([record["loss"] for record in outcome.history]))
    return outcome.rates[int(falls.argmax())]


def descent(epochs: int, learning_rate: float | Schedule = RATE, **changes: Any) -> Settings:
    """The baseline's settings, a step an epoch on the whole training part; ``changes`` go before them."""
    own: dict[str, Any] = {"batches": 1, "batch": EVALUATED, "optimizer": SGD(learning_rate=learning_rate)}
    return Settings(epochs=epochs, **own | changes)


def _initializers(epochs: int) -> Iterator[Arm]:
    ways = {
        "zeros": Initializer("zeros"),
        "normal, deviation 0.05": Initializer("normal"),
        "normal, deviation 1": Initializer("normal", stddev=1),
        "Glorot uniform": Initializer("glorot_uniform"),
        "Glorot normal": Initializer("glorot_normal"),
        "He uniform": Initializer("he_uniform"),
        "He normal": Initializer("he_normal"),
    }
    for label, initializer in ways.items():
        yield Arm(label=label, settings=descent(epochs), initializer=initializer)


def _dropout(epochs: int) -> Iterator[Arm]:
    for rate in DROPOUTS:
        yield Arm(label=f"rate {rate:g}", settings=descent(epochs), hidden=f"{HIDDEN}DR({rate:g});", x=rate)


def _clipping(epochs: int) -> Iterator[Arm]:
    ways: Mapping[str, Mapping[str, float]] = {
        "not clipped": {},
        f"values to {CLIP_AT:g}": {"clip_value": CLIP_AT},
        f"norm to {CLIP_AT:g}": {"clip_global_norm": CLIP_AT},
    }
    for label, clip in ways.items():
        yield Arm(label=label, settings=descent(epochs, **clip), group="baseline")
    wild = Initializer("normal", stddev=0.3)
    for label, clip in ways.items():
        settings = descent(epochs, 0.01, **clip)
        yield Arm(label=label, settings=settings, hidden="D(64,r)x8;", initializer=wild, group="8 layers of relu")


def _stopping(epochs: int) -> Iterator[Arm]:
    how: dict[str, Any] = {"batches": None, "batch": 32, "optimizer": Adam(learning_rate=0.003)}
    yield Arm(label="not stopped", settings=descent(epochs, **how))
    for patience in PATIENCES:
        stopping = EarlyStopping(patience=patience)
        yield Arm(label=f"patience {patience}", settings=descent(epochs, early_stopping=stopping, **how))


def _range(epochs: int) -> Iterator[Arm]:
    growth = (HIGHEST_RATE / LOWEST_RATE) ** (1 / (epochs - 1 or 1))
    for label, hidden in (("baseline", HIDDEN), ("normalised", f"{HIDDEN}BN();"), ("8 layers of relu", "D(64,r)x8;")):
        yield Arm(label=label, settings=descent(epochs, StepDecay(LOWEST_RATE, growth, 1)), hidden=hidden)


def _schedules(epochs: int) -> Iterator[Arm]:
    ways: Mapping[str, float | Schedule] = {
        "constant": RATE,
        "inverse time": InverseTimeDecay(RATE, 9.0, epochs),
        "halved five times": StepDecay(RATE, 0.5, math.ceil(epochs / 6)),
        "cosine": CosineDecay(RATE, epochs),
    }
    for label, rate in ways.items():
        yield Arm(label=label, settings=descent(epochs, rate))


def _depth(epochs: int) -> Iterator[Arm]:
    layers = {"sigmoid": HIDDEN, "sigmoid, normalised": f"{HIDDEN}BN();", "relu": "D(64,r);"}
    layers["relu, normalised"] = "D(64,r);BN();"
    for (group, layer), depth in product(layers.items(), DEPTHS):
        settings = descent(epochs, 0.1)
        yield Arm(label=f"{depth} layers", settings=settings, hidden=layer * depth, group=group, x=depth)


def _smoothing(epochs: int) -> Iterator[Arm]:
    for batch in (4, 32):
        yield Arm(label=f"batches of {batch}", settings=descent(epochs, batches=None, batch=batch))
    yield Arm(label="the whole training part", settings=descent(epochs))


def _given_up(trainer: Trainer, record: Record) -> bool:
    """Whether the loss has left its lowest value far behind."""
    return record["loss"] > GIVEN_UP * min(each["loss"] for each in trainer.history)


@dataclass(frozen=True, slots=True)
class Study:
    """A question, the arms that answer it in a number of epochs, and the number where nobody gives one."""

    question: str
    arms: Callable[[int], Iterator[Arm]]
    epochs: int = EPOCHS
    callbacks: tuple[Callback, ...] = ()


STUDIES: Mapping[str, Study] = MappingProxyType(
    {
        "initializers": Study("How do weights begin?", _initializers),
        "dropout": Study("Which fraction of the hidden values is dropped?", _dropout),
        "clipping": Study("What does a bound on the gradient change?", _clipping, 200),
        "stopping": Study("When has training gone on for long enough?", _stopping, 200),
        "range": Study("Which learning rates train at all?", _range, RANGE_STEPS, (_given_up,)),
        "schedules": Study("How does the learning rate fall?", _schedules),
        "depth": Study("How many hidden layers?", _depth, 300),
        "smoothing": Study("How noisy is a learning curve?", _smoothing, 100),
    }
)
"""Every study that trains, by its name."""


def run(
    name: str, data: Holdout, epochs: int | None = None, seed: int = 0, watch: Watch | None = None
) -> tuple[Outcome, ...]:
    """Train every arm of a study. Raises KeyError for an unknown one."""
    study = STUDIES[name]
    return tuple(train(arm, data, seed, watch, *study.callbacks) for arm in study.arms(epochs or study.epochs))
