"""What a data set is: its record, the files it is read from, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

OK = "ok"
INEXACT = "inexact"
ALTERED = "altered"
MISSING = "missing"


class DatasetError(RuntimeError):
    """A data set that is missing, altered or unreadable; one sentence that names it, the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Split:
    """A training and a test part. x: float32, (N, H, W, C) or (rows, features); y: int64 (rows,), housing: float32.

    ``classes[label]`` is a label's name; without classes, y is a target to be predicted.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Half of a set before scaling: all labels, and ``take(rows)``, which reads the inputs of the rows asked for."""

    y: np.ndarray
    take: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Part:
        """A part whose inputs are in memory already."""
        return cls(y, x.__getitem__)


@dataclass(frozen=True, slots=True)
class Content:
    """What a gzip file must hold: its SHA-256 and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class File:
    """One file of a data set.

    ``hashes``: each accepted SHA-256, the published one first, and what a file with it is called. With ``content``
    the file is a gzip file and judged by what it holds; whoever compressed it again changed only its own hash.
    """

    name: str
    hashes: Mapping[str, str]
    max_bytes: int
    content: Content | None = None
    addresses: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """The SHA-256 that decides: of the content, or else the published one of the file."""
        return self.content.sha256 if self.content else next(iter(self.hashes))


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which a whole data set is kept: a name for people, and its files (none: bundled or computed)."""

    name: str
    files: tuple[File, ...]


class Found(Protocol):
    """A form of a data set on this machine."""

    @property
    def form(self) -> Form:
        """Which form it is."""

    def read(self, name: str) -> bytes:
        """The content of one file, after its hash was checked. Raises DatasetError."""


@dataclass(frozen=True, slots=True)
class Check:
    """One file judged by its SHA-256. ``status``: ok, inexact, altered or missing; ``form``: what the file is."""

    dataset: str
    file: str
    path: Path | None
    form: str
    expected: str
    found: str
    status: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the inventory. ``missing``: files that an incomplete form lacks.

    ``path`` is the folder of the files, the first of several; None where there are none.
    """

    name: str
    present: bool
    form: str
    path: Path | None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set: its forms (one that can be downloaded stands first), how it is read, its classes and splits.

    ``read(found, split)`` gives the training and the test part; splits are 0 .. splits - 1. A set that is bundled or
    computed has one form without files. ``rebuilt(found)`` judges published files that are remade from a form.
    """

    forms: tuple[Form, ...]
    read: Callable[[Found, int], tuple[Part, Part]]
    classes: tuple[str, ...]
    splits: int = 1
    rebuilt: Callable[[Found], Iterable[Check]] | None = None
