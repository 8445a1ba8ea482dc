"""Looking often does not find more that is not there."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from bench.multiplicity import benjamini_hochberg, bonferroni_pairs


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_adjusted_p_values_are_those_of_scipy(count):
    given = np.random.default_rng(count).uniform(size=count) ** 3
    np.testing.assert_allclose(benjamini_hochberg(given.tolist()), false_discovery_control(given), rtol=1e-12)


def test_no_tests_are_no_findings():
    assert benjamini_hochberg([]) == ()


@pytest.mark.parametrize(("count", "pairs"), [(1, 1), (2, 1), (3, 3), (8, 28)])
def test_a_ranking_shares_its_level_among_its_pairs(count, pairs):
    assert bonferroni_pairs(0.05, count) == pytest.approx(0.05 / pairs)
