"""Medians, ratios and geometric means with bootstrap intervals, and tests of equivalence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.results import Interval

CONFIDENCE = 0.95
RESAMPLES = 1000
EQUIVALENCE_LEVEL = 0.05


def median_interval(values: Sequence[float]) -> Interval:
    """The median with its interval. Raises ValueError without values."""
    return _interval(values, np.median)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with its interval; a single value has none: low and high are NaN. Raises ValueError without values."""
    found = _interval(values, np.mean)
    return found if len(values) > 1 else Interval(found.median, np.nan, np.nan)


def speedup(theirs: Sequence[float], ours: Sequence[float]) -> Interval:
    """Their time over ours, formed in each round that both ran, and summarised; above 1 ours is faster."""
    rounds = min(len(theirs), len(ours))
    return median_interval([t / o for t, o in zip(theirs[:rounds], ours[:rounds], strict=True)])


def geometric_mean(ratios: Sequence[float]) -> Interval:
    """The geometric mean of positive ratios, with the interval over the cases that they come from.

    A single case has no interval: low and high are NaN. Raises ValueError without a ratio.
    """
    logs = mean_interval(np.log(ratios).tolist())
    return Interval(*(float(np.exp(value)) for value in (logs.median, logs.low, logs.high)))


def relative_width(interval: Interval) -> float:
    """Half the interval's width over its median."""
    return (interval.high - interval.low) / 2 / interval.median


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests (TOST; D. Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987) of a difference of means.

    The interval is the 90 % one: it lies within the margin exactly where ``p`` is below 0.05.
    """

    difference: float
    low: float
    high: float
    p: float
    margin: float

    @property
    def is_shown(self) -> bool:
        """Whether a difference of the margin or more is refuted, at 5 %."""
        return self.p < EQUIVALENCE_LEVEL


def equivalence(differences: Sequence[float], margin: float) -> Equivalence:
    """Whether the mean of paired differences lies within +-margin. Raises ValueError for less than two."""
    if len(differences) < 2:
        raise ValueError("equivalence of means takes two repetitions at the least")
    data = np.asarray(differences, np.float64)
    return _tost(float(data.mean()), float(data.std(ddof=1)) / math.sqrt(data.size), data.size - 1, margin)


def equivalence_of_shares(one: float, other: float, count: int, margin: float) -> Equivalence:
    """Whether two shares of ``count`` samples each differ by less than the margin.

    The shares are taken as independent, which is on the safe side where both judge the same samples: they then agree
    on most. Normal approximation.
    """
    error = math.sqrt((one * (1 - one) + other * (1 - other)) / count)
    return _tost(one - other, error, math.inf, margin)


def _tost(difference: float, error: float, freedom: float, margin: float) -> Equivalence:
    """By Student's t with this standard error and degrees of freedom; without an error the difference is certain."""
    from scipy.special import ndtr, ndtri, stdtr, stdtrit

    if error == 0:
        return Equivalence(difference, difference, difference, float(abs(difference) >= margin), margin)
    normal = math.isinf(freedom)
    reach = ndtri(1 - EQUIVALENCE_LEVEL) if normal else stdtrit(freedom, 1 - EQUIVALENCE_LEVEL)
    t = (abs(difference) - margin) / error
    p = ndtr(t) if normal else stdtr(freedom, t)
    half = float(reach) * error
    return Equivalence(difference, difference - half, difference + half, float(p), margin)


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
