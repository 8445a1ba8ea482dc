"""The bootstrap keeps its coverage where samples depend on their neighbours, and the plain one does not."""

import math

import numpy as np
import pytest

from bench.bootstrap import RESAMPLES, block_length, median_error, resampled
from bench.statistics import log_median


def autoregressive(rng, count, coefficient, series):
    """AR(1) series of unit variance, (series, count)."""
    noise = rng.standard_normal((series, count))
    found = noise.copy()
    for i in range(1, count):
        found[:, i] = coefficient * found[:, i - 1] + math.sqrt(1 - coefficient**2) * noise[:, i]
    return found


def plain_interval_covers(values):
    """Whether the percentile interval of independent resamples holds the true median, 0."""
    drawn = np.median(values[resampled(values.size, 1.0, RESAMPLES, np.random.default_rng(0))], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return low <= 0 <= high


def test_the_interval_of_correlated_log_noise_covers_its_median_where_the_plain_bootstrap_misses_it():
    """Of AR(1) noise with 0.6, the plain interval of 95 % covers some 73 %, ours some 90 %."""
    series = autoregressive(np.random.default_rng(0), 100, 0.6, 200)
    intervals = [log_median(np.exp(values).tolist()).interval() for values in series]
    ours = sum(each.low <= 0 <= each.high for each in intervals) / len(series)
    plain = sum(map(plain_interval_covers, series)) / len(series)
    assert ours >= 0.86
    assert plain <= 0.80


@pytest.mark.parametrize("count", [5, 10, 20, 40])
def test_the_interval_of_independent_noise_covers_as_often_as_it_says_from_five_rounds_on(count):
    series = np.random.default_rng(count).standard_normal((200, count))
    intervals = [log_median(np.exp(values).tolist()).interval() for values in series]
    assert sum(each.low <= 0 <= each.high for each in intervals) / len(series) >= 0.92


def test_blocks_are_longer_where_the_memory_is_longer():
    rng = np.random.default_rng(1)
    lengths = [np.median([block_length(s) for s in autoregressive(rng, 400, c, 20)]) for c in (0.0, 0.5, 0.9)]
    assert lengths[0] < 4 < lengths[1] < 12 < lengths[2]


def test_the_block_length_of_an_autoregression_is_near_the_one_that_theory_gives():
    """For AR(1) with coefficient c: (2 (2 c / (1 - c^2))^2 / 2)^(1/3) n^(1/3), since g / sum R = 2 c / (1 - c^2)."""
    coefficient, count = 0.5, 4000
    found = [block_length(s) for s in autoregressive(np.random.default_rng(2), count, coefficient, 20)]
    theory = ((2 * coefficient / (1 - coefficient**2)) ** 2 * count) ** (1 / 3)
    assert np.median(found) == pytest.approx(theory, rel=0.25)


def test_a_constant_has_blocks_of_one_and_no_error():
    assert block_length(np.ones(50)) == 1
    assert median_error(np.full(50, 3.0))[0] == 0


def test_resamples_are_circular_blocks_with_the_mean_length_that_was_asked_for():
    drawn = resampled(1000, 8.0, 50, np.random.default_rng(0))
    goes_on = np.diff(drawn, axis=1) % 1000 == 1
    assert drawn.min() >= 0
    assert drawn.max() == 999
    assert 1 / (1 - goes_on.mean()) == pytest.approx(8, rel=0.1)


def test_a_single_value_has_no_error():
    assert all(map(math.isnan, median_error(np.array([1.0]))))


def test_the_error_of_the_median_of_normal_noise_is_that_of_theory():
    errors = [median_error(v)[0] for v in np.random.default_rng(3).standard_normal((40, 200))]
    assert np.mean(errors) == pytest.approx(math.sqrt(math.pi / 2 / 200), rel=0.15)
