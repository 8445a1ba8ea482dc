"""Medians, ratios and their intervals."""

import math

import numpy as np
import pytest

from bench.statistics import geometric_mean, median_interval, relative_width, speedup


def test_the_median_of_equal_values_has_no_width():
    interval = median_interval([2.0] * 7)
    assert (interval.low, interval.median, interval.high) == (2.0, 2.0, 2.0)
    assert relative_width(interval) == 0


def test_an_interval_holds_its_median_and_is_the_same_each_time():
    values = np.random.default_rng(1).lognormal(size=40).tolist()
    interval = median_interval(values)
    assert interval.low < interval.median < interval.high
    assert interval == median_interval(values)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    intervals = [median_interval(rng.normal(10, 1, 30)) for _ in range(200)]
    covered = sum(i.low <= 10 <= i.high for i in intervals)
    assert 180 <= covered <= 200


def test_a_speedup_is_formed_within_rounds():
    """The machine drifts by four; the ratio in every round is three."""
    drift = np.array([1.0, 4.0, 2.0, 3.0, 1.5])
    interval = speedup(3 * drift, drift)
    assert interval.median == pytest.approx(3)
    assert interval.low == pytest.approx(interval.high)


def test_a_speedup_uses_only_the_rounds_that_both_ran():
    assert speedup([2.0, 2.0, 2.0, 90.0], [1.0, 1.0, 1.0]).median == 2.0


def test_no_values_are_an_error():
    with pytest.raises(ValueError, match="no values"):
        median_interval([])


def test_a_geometric_mean_is_the_exponential_of_the_mean_logarithm_and_lies_in_its_interval():
    found = geometric_mean([0.5, 2.0, 8.0])
    assert found.median == pytest.approx(2.0)
    assert 0.5 <= found.low < 2.0 < found.high <= 8.0


def test_a_geometric_mean_of_one_case_has_no_interval_and_of_none_is_refused():
    assert math.isnan(geometric_mean([3.0]).low)
    with pytest.raises(ValueError, match="no values"):
        geometric_mean([])
