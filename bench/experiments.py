"""What is trained: the paper's 33 experiments by their numbers, or any structure on any data set.

0979993065, olivetti:1    one experiment, by its published number or its place in the list of its data set
olivetti, mnist, cifar10  the experiments of a data set
all                       all 33
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

import datasets
from impls.nn.initializers import Initializer
from impls.nn.optimizers import Adam, Optimizer, described, named
from impls.nn.published_ids import experiment_id
from impls.nn.structure import PUBLISHED, Dense, Published, Structure, parse, steps
from impls.nn.training import INDEPENDENT, PERMUTATION, Settings, steps_per_epoch
from impls.specs import Shape, SpecError

Array = npt.NDArray[np.float32]

ALL = "all"

DIGITS = "C(3,8,r);M(2);DR(0.25);F();D(32,r);DR(0.25);D(10,sm);"
"""For the bundled 8x8 images where no structure is given: trained in seconds."""

_THERE = {"olivetti": ("olivetti", 10, 10), "mnist": ("mnist", 20, 1), "cifar10": ("cifar-10", 50, 1)}
"""A data set's name in the paper's system, batches per epoch, repetitions."""

SCALING = "uniform"
"""To [-1, 1], as in the paper."""

OF_CLASSES, OF_TWO, OF_NUMBERS = "categorical_crossentropy", "binary_crossentropy", "mean_squared_error"
"""The losses that a contest is judged by: one unit for each class, one unit for the second of two, one number."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What is timed as one: the batches first, ..., last - 1 of an epoch, and of those after it in ``epochs``."""

    epoch: int
    first: int
    last: int
    epochs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A network, its data, and how it is trained; ``id``: the published number, a preset's or the data set's name.

    ``batches`` (a number per epoch, sizes differing by one at most) goes before ``batch``. With ``steps`` training
    ends after so many, and each is timed by itself. ``turn_epochs`` are timed as one, where an epoch takes less time
    than a turn's beginning. ``sampling`` is that of Settings. Without ``initializer`` every layer has its activation's.
    """

    id: str
    dataset: str
    structure: Structure
    image_shape: Shape
    epochs: int
    repetitions: int
    batch: int = 32
    batches: int | None = None
    steps: int | None = None
    turn_epochs: int = 1
    loss: str = OF_CLASSES
    optimizer: Optimizer = field(default_factory=Adam)
    sampling: str = PERMUTATION
    scaling: str = SCALING
    initializer: Initializer | None = None

    @property
    def plan(self) -> str:
        """How it is trained, in words; of what goes without saying, Adam's defaults first of all, nothing."""
        size = f"{self.batches} batch{'es' * (self.batches > 1)}" if self.batches else f"batches of {self.batch}"
        parts = [
            f"{self.steps} steps" if self.steps else f"{self.epochs} epochs{self._in_turns}",
            f"{size} drawn independently" if self.sampling == INDEPENDENT else size,
            *_in_words(self.optimizer),
            *([] if self.scaling == SCALING else [f"{self.scaling} scaling"]),
            *([] if self.initializer is None else [str(self.initializer)]),
        ]
        return ", ".join(parts)

    @property
    def _in_turns(self) -> str:
        return "" if self.turn_epochs == 1 else f" in turns of {self.turn_epochs}"

    @property
    def settings(self) -> Settings:
        """How each contestant trains."""
        return Settings(
            batch=self.batch, batches=self.batches, sampling=self.sampling, loss=self.loss, optimizer=self.optimizer
        )

    def steps_per_epoch(self, samples: int) -> int:
        """Batches of an epoch over so many samples."""
        return steps_per_epoch(samples, self.settings)

    def largest_batch(self, samples: int) -> int:
        """Samples in the largest batch."""
        return math.ceil(samples / self.batches) if self.batches else min(self.batch, samples)

    def turns(self, samples: int) -> Iterator[Turn]:
        """Epochs, one or several at a time, or single steps."""
        each = self.steps_per_epoch(samples)
        if self.steps is None:
            for epoch in range(0, self.epochs, self.turn_epochs):
                yield Turn(epoch, 0, each, min(self.turn_epochs, self.epochs - epoch))
        else:
            yield from (Turn(k // each, k % each, k % each + 1) for k in range(self.steps))

    def memory(self, samples: int) -> int:
        """Bytes that training takes at the least: each layer's values and their errors for one batch, and weights.

        Weights stand beside their gradients and two averages of the optimizer. Scratch of the layers is not counted.
        """
        chain = steps(self.structure, self.image_shape)
        values = math.prod(self.image_shape) + sum(math.prod(step.output_shape) for step in chain)
        return 4 * (2 * self.largest_batch(samples) * values + 4 * sum(step.parameters for step in chain))


def published(which: Published) -> Experiment:
    """One of the paper's experiments, as it was done there."""
    name, batches, repetitions = _THERE[which.dataset]
    number = experiment_id(name, which.structure, which.image_shape, batches=batches, repetitions=repetitions)
    return Experiment(
        id=number,
        dataset=which.dataset,
        structure=which.structure,
        image_shape=which.image_shape,
        epochs=100,
        repetitions=repetitions,
        batches=batches,
    )


def find(names: Sequence[str]) -> tuple[Published, ...]:
    """The paper's networks of these names, in its order. Raises SpecError for an unknown one, listing all."""
    known = {p: (published(p).id, f"{p.dataset}:{p.number}", p.dataset, ALL) for p in PUBLISHED}
    for name in names:
        if not any(name in called for called in known.values()):
            listed = "\n".join(f"  {number}  {place:<12}{p.structure}" for p, (number, place, *_) in known.items())
            raise SpecError(f"unknown experiment {name!r}; give all, olivetti, mnist, cifar10, or one of\n{listed}")
    return tuple(p for p, called in known.items() if set(names) & set(called))


def select(names: Sequence[str]) -> tuple[Experiment, ...]:
    """The experiments of these names, in the order of the paper. Raises SpecError for an unknown one, listing all."""
    return tuple(map(published, find(names)))


def own(dataset: str, text: str | None = None) -> Experiment:
    """A structure on a data set, 10 epochs in batches of 32, once; the digits have a structure of their own.

    The loss follows from the data and the last layer. Raises SpecError for an unknown data set, and for a structure
    that is missing or does not fit.
    """
    if dataset not in datasets.names():
        raise SpecError(f"unknown data set {dataset!r}; known: {', '.join(datasets.names())}")
    if text is None and dataset != "digits":
        raise SpecError(f"give --structure for {dataset}, or one of the paper's networks with --experiment")
    structure = parse(text or DIGITS)
    _, classes, shape = images(dataset, 0)
    loss = OF_CLASSES if classes else OF_NUMBERS
    if classes == 2 and structure.layers[-1] == last_layer(OF_TWO, classes):
        loss = OF_TWO
    return Experiment(
        id=dataset, dataset=dataset, structure=structure, image_shape=shape, epochs=10, repetitions=1, loss=loss
    )


def images(dataset: str, repetition: int, scaling: str = SCALING) -> tuple[datasets.Split, int, Shape]:
    """The split for a repetition, with rows as images of one pixel; how many classes (0: numbers); the images' shape.

    Repetitions beyond the last split begin again with the first.
    """
    split = datasets.load(dataset, split=repetition % datasets.splits(dataset), scaling=scaling)
    if split.x_train.ndim == 2:
        x_train, x_test = (x.reshape(len(x), 1, 1, -1) for x in (split.x_train, split.x_test))
        split = replace(split, x_train=x_train, x_test=x_test)
    return split, len(split.classes), split.x_train.shape[1:]


def last_layer(loss: str, classes: int) -> Dense:
    """What a network must end with for its answers to be judged by this loss."""
    units, activation = {OF_CLASSES: (classes, "softmax"), OF_TWO: (1, "sigmoid"), OF_NUMBERS: (1, "linear")}[loss]
    return Dense(units, activation)


def targets(loss: str, y: npt.NDArray[Any], classes: int) -> npt.NDArray[Any]:
    """What a network should answer, (n, units) in float32: one-hot labels, or y itself as a column."""
    if loss == OF_CLASSES:
        y = np.eye(classes, dtype=np.float32)[y]
    return y.reshape(len(y), -1).astype(np.float32, copy=False)


def to_plain(settings: Settings) -> dict[str, Any]:
    """An experiment's settings as values that JSON takes, for ``from_plain``.

    Raises SpecError for a learning rate that changes.
    """
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return values | {"optimizer": described(settings.optimizer)}


def from_plain(values: Mapping[str, Any]) -> Settings:
    """The settings that ``to_plain`` was given."""
    return Settings(**{**values, "optimizer": named(**values["optimizer"])})


def require_fit(experiment: Experiment, samples: int, classes: int, free: float, contestants: int) -> None:
    """Raises SpecError where outputs do not match labels, a batch exceeds the data, or memory would not do.

    ``free``: bytes that may be taken by all contestants together.
    """
    last, wanted = steps(experiment.structure, experiment.image_shape)[-1].layer, last_layer(experiment.loss, classes)
    if last != wanted:
        found = f"{experiment.dataset} has {classes or 'no'} classes"
        raise SpecError(f"{found}: the last layer must be {wanted}, not {last}")
    size = experiment.batches or experiment.batch
    if size > samples:
        raise SpecError(f"{experiment.plan}: there are only {samples} samples to train on")
    needed = contestants * experiment.memory(samples)
    if needed > free:
        raise SpecError(
            f"a batch of {experiment.largest_batch(samples)} needs at least {needed / 1e9:.1f} GB for {contestants} "
            f"contestants, {free / 1e9:.1f} GB are free: give a smaller --batch, or more --batches"
        )


def _in_words(optimizer: Optimizer) -> Iterator[str]:
    """Its name, unless it is Adam, its learning rate, and the settings that are not its class's own."""
    values, usual = described(optimizer), described(type(optimizer)())
    name, rate = values.pop("name"), values.pop("learning_rate")
    if not isinstance(optimizer, Adam):
        yield name
    yield f"learning rate {rate:g}"
    yield from (f"{key} {value:g}" for key, value in values.items() if value != usual[key])
