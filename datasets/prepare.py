"""Between the stored values and a network: limits per class, seeded splits, scaling.

Scaling learns from the training part and changes both parts in place: CIFAR-10 takes 0.7 GB as float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

_BLOCK = 1024
"""Rows that are held in float64 at a time."""


def uniform(x_train: np.ndarray, x_test: np.ndarray) -> None:
    """x -> (x - low) / (high - low) * 2 - 1 with low and high of the training part; test values may leave [-1, 1].

    Images share one low and high; each column of a table has its own, and a constant column becomes -1. The order of
    these four float32 operations is that of P. Klęsk, Applied Sciences 14(21), 9972, 2024: the same bits come out.
    """
    axis = None if x_train.ndim == 4 else 0
    low, high = x_train.min(axis), x_train.max(axis)
    span = np.where(high == low, np.float32(1), high - low)
    for x in (x_train, x_test):
        x -= low
        x /= span
        x *= 2
        x -= 1


def standard(x_train: np.ndarray, x_test: np.ndarray) -> None:
    """x -> (x - mean) / deviation for every pixel or column, of the training part; a constant one is divided by 1.

    The deviation is the population's (divided by N), as scikit-learn's StandardScaler has it; sums are float64.
    """
    mean = x_train.mean(axis=0, dtype=np.float64)
    squares = np.zeros_like(mean)
    for start in range(0, len(x_train), _BLOCK):
        squares += np.square(x_train[start : start + _BLOCK] - mean).sum(axis=0)
    deviation = np.sqrt(squares / len(x_train))
    deviation[x_train.max(axis=0) == x_train.min(axis=0)] = 1
    for x in (x_train, x_test):
        x -= mean.astype(np.float32)
        x /= deviation.astype(np.float32)


SCALINGS: Mapping[str | None, Callable[[np.ndarray, np.ndarray], None]] = {"uniform": uniform, "standard": standard}
"""Every scaling and the function that does it."""


def first_per_class(y: np.ndarray, limit: int) -> np.ndarray:
    """Row numbers, ascending, of the first ``limit`` rows of every class; all rows of a class that has fewer."""
    return np.sort(np.concatenate([np.flatnonzero(y == label)[:limit] for label in np.unique(y)]))


def stratified(y: np.ndarray, test_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of a training part in random order and of a test part in ascending order.

    Every class gives the same share (rounded) of its rows to the test part. The generator is RandomState because
    NumPy promises its stream for ever.
    """
    random = np.random.RandomState(seed)
    test = np.concatenate([_sample(random, np.flatnonzero(y == label), test_share) for label in np.unique(y)])
    return random.permutation(np.setdiff1d(np.arange(len(y)), test)), np.sort(test)


def _sample(random: np.random.RandomState, rows: np.ndarray, share: float) -> np.ndarray:
    chosen: np.ndarray = random.permutation(rows)[: round(share * len(rows))]
    return chosen
