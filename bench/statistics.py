"""Medians, ratios and geometric means with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.results import Interval

CONFIDENCE = 0.95
RESAMPLES = 1000


def median_interval(values: Sequence[float]) -> Interval:
    """The median with its interval. Raises ValueError without values."""
    return _interval(values, np.median)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with its interval. Raises ValueError without values."""
    return _interval(values, np.mean)


def speedup(theirs: Sequence[float], ours: Sequence[float]) -> Interval:
    """Their time over ours, formed in each round that both ran, and summarised; above 1 ours is faster."""
    rounds = min(len(theirs), len(ours))
    return median_interval([t / o for t, o in zip(theirs[:rounds], ours[:rounds], strict=True)])


def geometric_mean(ratios: Sequence[float]) -> Interval:
    """The geometric mean of positive ratios, with the interval over the cases that they come from.

    A single case has no interval: low and high are NaN. Raises ValueError without a ratio.
    """
    logs = _interval(np.log(ratios).tolist(), np.mean)
    low, high = (logs.low, logs.high) if len(ratios) > 1 else (np.nan, np.nan)
    return Interval(*(float(np.exp(value)) for value in (logs.median, low, high)))


def relative_width(interval: Interval) -> float:
    """Half the interval's width over its median."""
    return (interval.high - interval.low) / 2 / interval.median


def _interval(values: Sequence[float], statistic: Callable[..., Any]) -> Interval:
    """A statistic with its percentile bootstrap interval (Efron, Tibshirani: An Introduction to the Bootstrap, 1993).

    The resamples are the same at every call, so that a report repeats itself.
    """
    if not len(values):
        raise ValueError("no values to summarise")
    data: npt.NDArray[np.float64] = np.asarray(values, np.float64)
    resampled = data[np.random.default_rng(0).integers(data.size, size=(RESAMPLES, data.size))]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistic(resampled, axis=1), [tail, 1 - tail])
    return Interval(float(statistic(data)), float(low), float(high))
