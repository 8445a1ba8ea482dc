"""Medians with bootstrap intervals, of times and of per-round ratios."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.results import Interval

CONFIDENCE = 0.95
RESAMPLES = 1000


def median_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The median with its percentile bootstrap interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

    Raises ValueError without values. The seed makes a report the same each time.
    """
    if not len(values):
        raise ValueError("no values to summarise")
    data = np.asarray(values, np.float64)
    rng = np.random.Generator(np.random.PCG64(seed))
    medians = np.median(data[rng.integers(data.size, size=(RESAMPLES, data.size))], axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(medians, [tail, 100 - tail])
    return Interval(float(np.median(data)), float(low), float(high))


def speedup(theirs: Sequence[float], ours: Sequence[float]) -> Interval:
    """Their time over ours, formed in each round that both ran, and summarised; above 1 ours is faster."""
    rounds = min(len(theirs), len(ours))
    return median_interval([t / o for t, o in zip(theirs[:rounds], ours[:rounds], strict=True)])


def relative_width(interval: Interval) -> float:
    """Half the interval's width over its median."""
    return (interval.high - interval.low) / 2 / interval.median
