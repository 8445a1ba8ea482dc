"""Summaries of ratios: geometric means over cases, and rankings that admit ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bench.results import Interval

RESAMPLES = 2000
CONFIDENCE = 0.95
FEWEST_ROUNDS = 3
"""With fewer rounds in common, two implementations cannot be told apart."""


def geometric_mean(ratios: Sequence[float]) -> Interval:
    """The geometric mean of positive ratios, with the percentile bootstrap interval over the cases.

    A single case has no interval: low and high are NaN. Raises ValueError without a ratio.
    """
    if not len(ratios):
        raise ValueError("a geometric mean needs at least one ratio")
    logs = np.log(ratios)
    mean = float(np.exp(logs.mean()))
    if len(logs) == 1:
        return Interval(mean, float("nan"), float("nan"))
    low, high = np.exp(_interval(logs[_resampled(len(logs))].mean(axis=1)))
    return Interval(mean, float(low), float(high))


def paired_ratio(slower: Sequence[float], faster: Sequence[float]) -> Interval:
    """The median over rounds of slower / faster, with its bootstrap interval.

    Sample i of both belongs to round i; the rounds that only one of them has are left out.
    """
    rounds = min(len(slower), len(faster))
    ratios = np.asarray(slower[:rounds]) / np.asarray(faster[:rounds])
    low, high = _interval(np.median(ratios[_resampled(rounds)], axis=1))
    return Interval(float(np.median(ratios)), float(low), float(high))


def is_slower(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether ``one`` is slower than ``other`` beyond doubt: the interval of its paired ratio lies above 1."""
    if min(len(one), len(other)) < FEWEST_ROUNDS:
        return False
    return paired_ratio(one, other).low > 1


def ranking(samples: Mapping[str, Sequence[float]]) -> tuple[tuple[str, ...], ...]:
    """Names in groups of equals, the fastest first: (("A", "B"), ("C",)) is "A = B < C".

    In order of their medians, each is compared with the fastest of the current group and opens a new group if it is
    slower beyond doubt.
    """
    groups: list[list[str]] = []
    for name in sorted(samples, key=lambda name: float(np.median(samples[name]))):
        if groups and not is_slower(samples[name], samples[groups[-1][0]]):
            groups[-1].append(name)
        else:
            groups.append([name])
    return tuple(map(tuple, groups))


def ranking_text(groups: Sequence[Sequence[str]]) -> str:
    """A ranking in one line: ``A = B < C``; the faster stands left."""
    return " < ".join(" = ".join(group) for group in groups)


def _resampled(count: int) -> np.ndarray:
    """Indices of bootstrap resamples (RESAMPLES, count); the same at every call, so that a report repeats itself."""
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def _interval(values: np.ndarray) -> np.ndarray:
    """Low and high ends of the central CONFIDENCE of bootstrap values."""
    tail = (1 - CONFIDENCE) / 2
    return np.asarray(np.quantile(values, [tail, 1 - tail]))
