"""Searching for a network and its settings: what is searched, and how a choice is trained and judged.

A validation part judges; the test part is looked at once, with the network that was chosen. Which choices are tried,
and where that is kept, is the business of ``bench.optuna_study``: nothing here knows Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.contestant import options_for
from bench.holdout import EVALUATED, Holdout
from bench.timing import CLOCK, Clock, lapped
from impls import Unavailable, names, registry
from impls.auto import AUTO
from impls.devices import CPU
from impls.nn import optimizers
from impls.nn.initializers import FAMILIES, Initializer
from impls.nn.network import EVERY, Network, Options
from impls.nn.structure import Dense, Dropout, Flatten, Layer, Structure
from impls.nn.training import Data, EarlyStopping, Record, Settings, Trainer, TrainingError, evaluate
from impls.specs import Shape, SpecError

Array = npt.NDArray[Any]

EPOCHS = 30


@dataclass(frozen=True, slots=True)
class Objective:
    """What is searched for: the figure of the validation part that judges, and whether time is judged beside it."""

    metric: str
    timed: bool = False

    @property
    def directions(self) -> tuple[str, ...]:
        """As Optuna names them, one for every value of a trial."""
        return ("maximize" if self.metric.endswith("accuracy") else "minimize", *(["minimize"] if self.timed else []))

    def best(self, history: Sequence[Record]) -> tuple[float, int]:
        """(the best value, its epoch from 1); the worst there is, and 0, where no epoch was finished."""
        found = [record[self.metric] for record in history]
        value = max(found, default=0.0) if self.metric.endswith("accuracy") else min(found, default=math.inf)
        return value, found.index(value) + 1 if found else 0


OBJECTIVES: Mapping[str, Objective] = {
    "accuracy": Objective("val_accuracy"),
    "loss": Objective("val_loss"),
    "time": Objective("val_accuracy", timed=True),
}
"""By name; ``time`` is time to accuracy: a front of the best accuracy against the seconds of training until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What all trials of a study have in common; ``place`` is the machine and its threads, where time is judged."""

    dataset: str
    objective: str = "accuracy"
    epochs: int = EPOCHS
    activation: str = "relu"
    optimizer: str = "adam"
    seed: int = 0
    place: str = ""

    def __post_init__(self) -> None:
        """Raises SpecError for an objective, activation or optimizer that does not exist."""
        if self.objective not in OBJECTIVES:
            raise SpecError(f"unknown objective {self.objective!r}; known: {', '.join(OBJECTIVES)}")
        Dense(1, self.activation)
        optimizers.named(self.optimizer)

    @property
    def name(self) -> str:
        """What its study is called where nobody says otherwise."""
        return f"{self.dataset}-{self.objective}"


@dataclass(frozen=True, slots=True)
class Space:
    """What is searched: ranges with both ends, and lists. A clip at 0 would let nothing move."""

    layers: tuple[int, int] = (1, 10)
    widths: tuple[int, int] = (32, 128)
    dropout: tuple[float, float] = (0.0, 0.5)
    rates: tuple[float, float] = (1e-3, 1e-1)
    clip_at: tuple[float, float] = (0.01, 1.0)
    clips: tuple[str, ...] = ("none", "value", "norm")
    initializers: tuple[str, ...] = tuple(name for name in FAMILIES if name != "zeros")
    batches: tuple[int, ...] = (16, 32, 64, 128, 256)
    implementations: tuple[str, ...] = (AUTO,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A point of the space: a network's hidden layers and how it is trained."""

    widths: tuple[int, ...]
    dropout: float
    rate: float
    initializer: str
    clip: str
    clip_at: float | None
    batch: int
    implementation: str = AUTO

    def structure(self, classes: int, activation: str) -> Structure:
        """Flattened images, hidden layers with dropout behind each, softmax units."""
        hidden: list[Layer] = []
        for width in self.widths:
            hidden += [Dense(width, activation), *([Dropout(self.dropout)] if self.dropout else [])]
        return Structure((Flatten(), *hidden, Dense(classes, "softmax")))

    def network(self, search: Search, image_shape: Shape, classes: int) -> Network:
        """Before its first step."""
        structure, initializer = self.structure(classes, search.activation), Initializer(self.initializer)
        options = {EVERY: Options()} | options_for(self.implementation, structure, image_shape)
        options = {name: replace(each, initializer=initializer) for name, each in options.items()}
        return Network(structure, image_shape, options=options, seed=search.seed)

    def settings(self, search: Search, samples: int) -> Settings:
        """How it is trained on so many samples; batches are no larger than these."""
        return Settings(
            epochs=search.epochs,
            batch=min(self.batch, samples),
            optimizer=optimizers.named(search.optimizer, learning_rate=self.rate),
            clip_value=self.clip_at if self.clip == "value" else None,
            clip_global_norm=self.clip_at if self.clip == "norm" else None,
            seed=search.seed,
        )


def implementations() -> tuple[str, ...]:
    """Who can compute dense layers here, in the computer's memory, beside the automatic choice."""
    found = [AUTO]
    for name in names("dense"):
        try:
            record = registry.get("dense", name)
        except Unavailable:
            continue
        if record.device is CPU and not record.missing():
            found.append(name)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Trained:
    """A network after its training: the records of its epochs, the seconds after each, and why it ended early."""

    network: Network
    history: list[Record]
    seconds: list[float]
    failure: str = ""


Judge: TypeAlias = Callable[[int, Record], object]
"""Called after every epoch with its number from 1 and its record; True ends the training."""


class _Timed(Trainer):
    """A trainer that notes the seconds of each epoch's steps, by a clock."""

    def __init__(self, network: Network, data: Data, settings: Settings, validation: Data, clock: Clock) -> None:
        self.clock = clock
        super().__init__(network, data, settings, validation)

    def reset(self) -> None:
        """Forget the seconds too."""
        super().reset()
        self.laps: list[float] = []

    def train(self, parts: Iterable[Array]) -> Record:
        """The steps of an epoch, timed."""
        return lapped(super().train, self.laps, self.clock)(parts)


def train(
    search: Search,
    choice: Choice,
    data: Data,
    validation: Data,
    judge: Judge | None = None,
    clock: Clock = CLOCK,
) -> Trained:
    """Train one choice, and leave it with the weights of its best epoch.

    Seconds are those of training alone, after a first step that compiles and is forgotten.
    """
    network = choice.network(search, data.x.shape[1:], data.targets.shape[1])
    stopping = EarlyStopping(monitor=OBJECTIVES[search.objective].metric, patience=search.epochs)
    settings = replace(choice.settings(search, len(data)), early_stopping=stopping)
    trainer = _Timed(network, data, settings, validation, clock)
    failure = ""
    try:
        for size in {settings.batch, len(data) % settings.batch or settings.batch}:
            trainer.step(np.arange(size))
        network.initialize(search.seed)
        trainer.reset()
        trainer.fit([lambda _, record: judge and judge(len(trainer.history), record)])
    except TrainingError as error:
        failure = str(error)
    return Trained(network, trainer.history, np.cumsum(trainer.laps).tolist(), failure)


def retrain(search: Search, choice: Choice, data: Data, epochs: int) -> Network:
    """Train one choice for so many epochs on these data, nothing held out. Raises TrainingError."""
    network = choice.network(search, data.x.shape[1:], data.targets.shape[1])
    Trainer(network, data, replace(choice.settings(search, len(data)), epochs=epochs)).fit()
    return network


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """What a search comes to: the best network as it was judged, and the same trained anew on all that was given.

    ``validation`` are the figures of the first; ``test`` those of the second, taken once.
    """

    choice: Choice
    epoch: int
    judged: Network
    retrained: Network
    validation: Record
    test: Record


def finish(search: Search, choice: Choice, data: Holdout) -> Chosen:
    """Train the best choice as it was judged, then for as many epochs on all data that are not the test's."""
    judged = train(search, choice, data.train, data.validation)
    _, epoch = OBJECTIVES[search.objective].best(judged.history)
    retrained = retrain(search, choice, data.given, max(1, epoch))
    loss, batch = Settings().loss, max(choice.batch, EVALUATED)
    validation = evaluate(judged.network, data.validation, loss, batch)
    return Chosen(choice, epoch, judged.network, retrained, validation, evaluate(retrained, data.test, loss, batch))
