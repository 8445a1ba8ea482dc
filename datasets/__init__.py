"""Data sets: arrays in, nothing else known.

    split = datasets.load("mnist", limit_per_class=100)
    split.x_train.shape, split.classes

A set is one module of this package with a record named DATASET. What is not on this machine is downloaded from the
published addresses; ``datasets.cache`` says where files are looked for and how they are checked.
"""

from __future__ import annotations

import importlib
import operator

import numpy as np

from datasets import cache
from datasets.contract import ALTERED, INEXACT, MISSING, OK, Check, Dataset, DatasetError, Entry, Part, Split
from datasets.prepare import SCALINGS, first_per_class

__all__ = [
    "ALTERED",
    "INEXACT",
    "MISSING",
    "OK",
    "Check",
    "DatasetError",
    "Entry",
    "Split",
    "fetch",
    "inventory",
    "load",
    "names",
    "splits",
    "verify",
]

_NAMES = ("digits", "mnist", "cifar10", "olivetti", "titanic", "housing")


def names() -> tuple[str, ...]:
    """Every data set."""
    return _NAMES


def splits(name: str) -> int:
    """How many splits a set has; they are numbered from 0. Raises ValueError for an unknown set."""
    return _dataset(name).splits


def load(name: str, split: int = 0, limit_per_class: int | None = None, scaling: str | None = "uniform") -> Split:
    """Read a data set, and download it first if it is nowhere on this machine.

    ``split`` selects one of the set's splits. ``limit_per_class`` keeps the first so many rows of every class, in
    both parts. ``scaling``: "uniform" (to [-1, 1]) or "standard" (mean 0, deviation 1), learned from the training
    part that is returned, or None for the values as stored. Raises ValueError for an argument that cannot be, and
    DatasetError for a set that cannot be had or is not what it should be.
    """
    dataset = _dataset(name)
    _require_arguments(name, dataset, split, limit_per_class, scaling)
    parts = dataset.read(cache.obtain(name, dataset.forms), split)
    (x_train, y_train), (x_test, y_test) = (_arrays(part, limit_per_class) for part in parts)
    if scaling is not None:
        SCALINGS[scaling](x_train, x_test)
    return Split(x_train, y_train, x_test, y_test, dataset.classes)


def inventory() -> tuple[Entry, ...]:
    """What is on this machine, by the names of the files; ``verify`` reads them."""
    return tuple(_entry(cache.locate(name, _dataset(name).forms)) for name in _NAMES)


def fetch(name: str) -> Entry:
    """Make sure that a set is on this machine and sound; files that are missing are downloaded.

    Raises ValueError for an unknown set, DatasetError if a file can neither be found nor downloaded, or is altered.
    """
    local = cache.obtain(name, _dataset(name).forms)
    for file in local.form.files:
        local.read(file.name)
    return _entry(local)


def verify(name: str | None = None) -> tuple[Check, ...]:
    """Judge every file of a set, or of all, by its SHA-256; nothing is changed or downloaded.

    Sets that are bundled or computed have no files. Where all files of a set are there, the published files that can
    be remade from them are judged too. Raises ValueError for an unknown set.
    """
    return tuple(check for each in (_NAMES if name is None else (name,)) for check in _checks(each))


def _dataset(name: str) -> Dataset:
    if name not in _NAMES:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(_NAMES)}")
    dataset: Dataset = importlib.import_module(f"datasets.{name}").DATASET
    return dataset


def _require_arguments(name: str, dataset: Dataset, split: int, limit: int | None, scaling: str | None) -> None:
    if _not_whole(split) or not 0 <= split < dataset.splits:
        known = "0" if dataset.splits == 1 else f"0 .. {dataset.splits - 1}"
        raise ValueError(f"{name} has no split {split!r}; known: {known}")
    if limit is not None and (_not_whole(limit) or limit < 1):
        raise ValueError(f"limit_per_class={limit!r} must be a positive whole number, or None for all rows")
    if limit is not None and not dataset.classes:
        raise ValueError(f"{name} has no classes, so limit_per_class must be None, not {limit!r}")
    if scaling is not None and scaling not in SCALINGS:
        raise ValueError(f"unknown scaling {scaling!r}; known: {', '.join(map(str, SCALINGS))}, None")


def _not_whole(value: object) -> bool:
    try:
        operator.index(value)  # type: ignore[arg-type]  # that it raises for anything else is what is asked
    except TypeError:
        return True
    return isinstance(value, bool)


def _arrays(part: Part, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the rows that are kept: new C-contiguous arrays; x float32, y int64, or float32 for targets."""
    rows = np.arange(len(part.y)) if limit is None else first_per_class(part.y, limit)
    kind = np.float32 if part.y.dtype.kind == "f" else np.int64
    return part.take(rows).astype(np.float32, order="C"), part.y[rows].astype(kind)


def _entry(local: cache.Local) -> Entry:
    folders = {path.parent for path in local.paths.values()}
    path = min(folders, default=None)
    missing = tuple(file.name for file in local.missing)
    return Entry(local.dataset, not missing, local.form.name, path, missing)


def _checks(name: str) -> list[Check]:
    dataset = _dataset(name)
    local = cache.locate(name, dataset.forms)
    checks = [local.check(file) for file in local.form.files]
    if dataset.rebuilt and all(check.status == OK for check in checks):
        checks += dataset.rebuilt(local)
    return checks
