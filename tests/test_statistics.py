"""Medians, ratios and their intervals."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.statistics import (
    Estimate,
    detectable,
    geometric_mean,
    log_ratio,
    median_interval,
    relative_width,
    share_interval,
    speedup,
)


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


def test_the_interval_of_a_time_never_reaches_zero():
    assert 0 < median_interval([1.0, 1.0, 1.0, 1.0, 40.0]).low < 1


def test_a_single_sample_has_no_interval_and_shows_nothing():
    assert math.isnan(median_interval([2.0]).low)
    assert log_ratio([9.0], [1.0]).p() == 1


@pytest.mark.parametrize("freedom", [2, 4, 10, 60])
@pytest.mark.parametrize("t", [0.0, 0.7, 2.0, 6.0])
def test_p_values_are_those_of_student_and_never_much_too_small(freedom, t):
    exact = 2 * stats.t.sf(t, freedom)
    assert 0.99 * exact <= Estimate(t, 1.0, freedom).p() <= 1.3 * exact


@pytest.mark.parametrize("freedom", [3, 10, math.inf])
def test_the_interval_ends_where_the_p_value_is_one_in_twenty(freedom):
    end = Estimate(0.0, 1.0, freedom).interval().high
    assert Estimate(end, 1.0, freedom).p() == pytest.approx(0.05)
    assert end == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.02)


def test_a_difference_of_independent_estimates_has_the_error_and_freedom_of_welch():
    one, other = np.random.default_rng(0).normal(size=12), np.random.default_rng(1).normal(0.5, 3.0, 30)
    made = [Estimate(v.mean(), v.std(ddof=1) / math.sqrt(v.size), v.size - 1) for v in (one, other)]
    exact = stats.ttest_ind(one, other, equal_var=False)
    difference = made[0] - made[1]
    assert difference.freedom == pytest.approx(exact.df)
    assert difference.p() == pytest.approx(exact.pvalue, rel=0.02)


def test_a_detectable_difference_is_found_as_often_as_it_is_said():
    """Ratios with normal noise of 3 %, 30 rounds: the detectable difference is injected, and found in some 95 %."""
    rng = np.random.default_rng(4)
    trials = rng.lognormal(0, 0.03, (200, 30))
    typical = np.median([detectable(speedup(t.tolist(), [1.0] * 30)) for t in trials])
    found = [log_ratio((t * (1 + typical)).tolist(), [1.0] * 30).p() < 0.05 for t in trials]
    assert 0.01 < typical < 0.05
    assert 0.88 <= np.mean(found) <= 0.99


@pytest.mark.parametrize(("hits", "trials"), [(0, 200), (7, 200), (40, 40), (1, 3)])
def test_the_interval_of_a_share_is_the_exact_one(hits, trials):
    exact = stats.binomtest(hits, trials).proportion_ci(method="exact")
    found = share_interval(hits, trials)
    assert (found.median, found.low, found.high) == pytest.approx((hits / trials, exact.low, exact.high))


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no trials"):
        share_interval(0, 0)
