"""A ranking separates what differs, and seldom what does not, however many stand in it."""

import numpy as np
import pytest

from bench.ranking import is_slower, ranking


@pytest.mark.parametrize("count", [2, 8])
def test_equal_implementations_are_seldom_ranked_apart_however_many_they_are(count):
    """At most 5 % of rankings should separate anything; of 100 that is 10 or fewer in 98.9 % of the cases."""
    rng = np.random.default_rng(count)
    apart = 0
    for _ in range(100):
        drift = rng.lognormal(0, 0.3, 20)
        samples = {str(i): (drift * rng.lognormal(0, 0.02, 20)).tolist() for i in range(count)}
        apart += len(ranking(samples)) > 1
    assert apart <= 10


def test_a_clear_difference_is_found_among_many():
    rng = np.random.default_rng(0)
    samples = {str(i): (1.1**i * rng.lognormal(0, 0.02, 20)).tolist() for i in range(8)}
    assert ranking(samples) == tuple((str(i),) for i in range(8))


def test_what_is_sixty_times_slower_is_found_in_three_rounds_and_two_show_nothing():
    assert is_slower([60.0, 63.0, 58.0], [1.0, 1.02, 0.99])
    assert not is_slower([60.0, 63.0], [1.0, 1.02])
