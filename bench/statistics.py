"""Medians and ratios with their intervals and tests, shares, geometric means, and tests of equivalence.

Samples are in the order of time and depend on their neighbours: bench.bootstrap says how far their median can be off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from bench.bootstrap import Array, median_error
from bench.results import Interval

CONFIDENCE = 0.95
RESAMPLES = 1000
EQUIVALENCE_LEVEL = 0.05
LEVEL = 1 - CONFIDENCE
"""At which a difference counts as found."""
POWER = 0.95
"""How often a detectable difference is found."""

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median, or a difference of two, with its standard error and the degrees of freedom of that (Student's t)."""

    value: float
    error: float
    freedom: float

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference from an independent estimate, with the degrees of freedom of Welch and Satterthwaite."""
        mine, theirs = self.error**2, other.error**2
        parts = mine**2 / self.freedom + theirs**2 / other.freedom
        freedom = (mine + theirs) ** 2 / parts if parts else math.inf
        return Estimate(self.value - other.value, math.sqrt(mine + theirs), freedom)

    def interval(self) -> Interval:
        """With both ends; they are NaN where there is no standard error."""
        reach = self.error * _student_quantile(0.5 + CONFIDENCE / 2, self.freedom)
        return Interval(self.value, self.value - reach, self.value + reach)

    def p(self) -> float:
        """Of the hypothesis that the value is zero, against both sides."""
        return min(1.0, 2 * min(self.p_at_most(0.0), (-self).p_at_most(0.0)))

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, self.error, self.freedom)

    def p_at_most(self, limit: float) -> float:
        """Of the hypothesis that the value is at most ``limit``; 1 where there is no standard error."""
        if math.isnan(self.error):
            return 1.0
        beyond = self.value - limit
        if self.error == 0:
            return float(beyond <= 0)
        return _student_tail(beyond / self.error, self.freedom)


def log_ratio(theirs: Sequence[float], ours: Sequence[float]) -> Estimate:
    """The logarithm of their time over ours, formed in each round that both ran; above 0 ours is faster.

    Raises ValueError where they have no round in common.
    """
    rounds = min(len(theirs), len(ours))
    return _of_median(tuple(math.log(t / o) for t, o in zip(theirs[:rounds], ours[:rounds], strict=True)))


def log_median(seconds: Sequence[float]) -> Estimate:
    """The median of the logarithms of times. Raises ValueError without values."""
    return _of_median(tuple(map(math.log, seconds)))


def median_interval(values: Sequence[float]) -> Interval:
    """The median with its interval; a single value has none: low and high are NaN. Raises ValueError without values.

    Times are positive: their interval is that of their logarithms, and never reaches zero.
    """
    median = float(np.median(values)) if len(values) else math.nan
    if all(value > 0 for value in values):
        found = exponential(log_median(values))
        return Interval(median, min(found.low, median), max(found.high, median))
    return _of_median(tuple(map(float, values))).interval()


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with its interval; a single value has none: low and high are NaN.

    The interval is the percentile bootstrap's (Efron, Tibshirani: An Introduction to the Bootstrap, 1993). Raises
    ValueError without values.
    """
    data = _array(values)
    if data.size == 1:
        return Interval(float(data[0]), np.nan, np.nan)
    resampled = data[np.random.default_rng(0).integers(data.size, size=(RESAMPLES, data.size))]
    low, high = np.quantile(resampled.mean(axis=1), [LEVEL / 2, 1 - LEVEL / 2])
    return Interval(float(data.mean()), float(low), float(high))


def speedup(theirs: Sequence[float], ours: Sequence[float]) -> Interval:
    """Their time over ours, formed in each round that both ran, and summarised; above 1 ours is faster."""
    return exponential(log_ratio(theirs, ours))


def exponential(estimate: Estimate) -> Interval:
    """The ratio whose logarithm was estimated, with its interval."""
    found = estimate.interval()
    return Interval(*(math.exp(value) for value in (found.median, found.low, found.high)))


def detectable(ratio: Interval) -> float:
    """The smallest difference that a comparison as precise as this one finds, as a share: at LEVEL, with POWER.

    A difference d is found when it exceeds the interval's half width h = z(1 - LEVEL / 2) s, and that happens with
    POWER where d = h + z(POWER) s; all in logarithms.
    """
    half = math.log(ratio.high / ratio.low) / 2
    return math.expm1(half * (1 + _NORMAL.inv_cdf(POWER) / _NORMAL.inv_cdf(1 - LEVEL / 2)))


def share_interval(hits: int, trials: int) -> Interval:
    """A share with its exact interval (C. Clopper, E. Pearson, Biometrika 26, 1934). Raises ValueError for no trial."""
    from scipy.special import betaincinv

    if not trials:
        raise ValueError("no trials to take a share of")
    low = betaincinv(hits, trials - hits + 1, LEVEL / 2) if hits else 0.0
    high = betaincinv(hits + 1, trials - hits, 1 - LEVEL / 2) if hits < trials else 1.0
    return Interval(hits / trials, float(low), float(high))


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


@lru_cache(maxsize=10_000)
def _of_median(values: tuple[float, ...]) -> Estimate:
    """Kept, since the tables of a report ask for the same ratios."""
    data = _array(values)
    return Estimate(float(np.median(data)), *median_error(data))


def _array(values: Sequence[float]) -> Array:
    if not len(values):
        raise ValueError("no values to summarise")
    return np.asarray(values, np.float64)


def _student_tail(t: float, freedom: float) -> float:
    """The probability of more than t under Student's distribution, without scipy: a bare machine ranks too.

    D. Wallace's normal approximation (Ann. Math. Statist. 30, 1959): (8f + 1) / (8f + 3) sqrt(f log(1 + t^2 / f)).
    Within 2 % of the probability up to t = 2, and too large, which is safe, by half at the most in the far tail.
    """
    if math.isinf(freedom):
        return _NORMAL.cdf(-t)
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return _NORMAL.cdf(-math.copysign(z, t))


def _student_quantile(probability: float, freedom: float) -> float:
    """The inverse of the same approximation, for a probability of at least a half."""
    z = _NORMAL.inv_cdf(probability)
    if math.isinf(freedom):
        return z
    scaled = z * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(scaled * scaled / freedom))
