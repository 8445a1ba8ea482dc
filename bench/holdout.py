"""Data to choose by: a part of what is there for training is held out, and choices are judged on that part alone.

The test part is for one last look at what was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import datasets
from bench import experiments
from impls.nn.training import Data
from impls.specs import Shape, SpecError

FRACTION = 0.2
"""Of every class that is held out."""

EVALUATED = 256
"""Samples in a pass where a network is only asked."""


@dataclass(frozen=True, slots=True, eq=False)
class Holdout:
    """A data set in three parts: samples (n, H, W, C), one-hot targets (n, classes)."""

    dataset: str
    train: Data
    validation: Data
    test: Data

    @property
    def image_shape(self) -> Shape:
        """(H, W, C); rows are images of one pixel."""
        shape: Shape = self.train.x.shape[1:]
        return shape

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.train.targets.shape[1])

    @property
    def given(self) -> Data:
        """All that is there for training, the part that was held out last."""
        x, targets = (
            np.concatenate([getattr(part, name) for part in (self.train, self.validation)]) for name in ("x", "targets")
        )
        return Data(x, targets)


def hold_out(dataset: str, seed: int = 0, fraction: float = FRACTION) -> Holdout:
    """Hold out a share of every class of the training part, drawn by ``seed``.

    Raises SpecError for an unknown data set, one without classes, and where a part would have none of a class.
    """
    if dataset not in datasets.names():
        raise SpecError(f"unknown data set {dataset!r}; known: {', '.join(datasets.names())}")
    split, classes, _ = experiments.images(dataset, 0)
    order = np.random.default_rng(seed).permutation(len(split.y_train))
    held = np.zeros(len(order), bool)
    for label in range(classes):
        rows = order[split.y_train[order] == label]
        count = round(fraction * len(rows))
        if not 0 < count < len(rows):
            raise SpecError(f"{dataset}: {fraction:g} of the {len(rows)} samples of class {label} cannot be held out")
        held[rows[:count]] = True
    targets = np.eye(classes, dtype=np.float32)
    parts = ((split.x_train[rows], split.y_train[rows]) for rows in (order[~held[order]], order[held[order]]))
    (x, y), (x_held, y_held) = parts
    train, validation = Data(x, targets[y]), Data(x_held, targets[y_held])
    return Holdout(dataset, train, validation, Data(split.x_test, targets[split.y_test]))
