"""The adaptive regressor is scikit-learn's, knows its parameters and their errors, and carries a watermark."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from datasets import synthetic
from impls.nn.adaptive.confidence import STEP, confidence, jacobian
from impls.nn.adaptive.equalisation import ScaleLocation
from impls.nn.adaptive.estimator import AdaptiveRegressor
from impls.nn.adaptive.model import Model
from impls.nn.adaptive.scales import MAPS
from impls.nn.adaptive.watermark import BITS, LEVEL, fewest_matches, tail
from impls.specs import SpecError

SMALL = {"layers": "kernel(3)", "epochs": 150, "particles": 12, "random_state": 0}


@pytest.fixture(scope="module")
def bumps():
    """Three kernels in one dimension."""
    return synthetic.bumps(n=200)


@pytest.fixture(scope="module")
def fitted(bumps):
    """A regressor with ghosts, fitted."""
    return AdaptiveRegressor(**SMALL, ghosts=True, amplitude=10).fit(bumps.x, bumps.y)


@parametrize_with_checks([AdaptiveRegressor("kernel(4)", epochs=80, particles=2)])
def test_scikit_learn_accepts_it(estimator, check):
    """No check is marked as one that may fail."""
    check(estimator)


def test_scikit_learn_accepts_it_with_its_array_interface_too():
    """The one check that is skipped unless SciPy was imported with this variable."""
    program = (
        "from sklearn.utils.estimator_checks import check_array_api_input\n"
        "from impls.nn.adaptive.estimator import AdaptiveRegressor\n"
        "check_array_api_input('AdaptiveRegressor', AdaptiveRegressor(epochs=5), 'numpy')"
    )
    environment = os.environ | {"SCIPY_ARRAY_API": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=Path(__file__).parent.parent, check=True)


def test_it_recovers_the_centres_of_a_sum_of_kernels(bumps):
    """Within four standard errors, and these are small."""
    found = AdaptiveRegressor(**SMALL).fit(bumps.x, bumps.y)
    centres = sorted((p for p in found.parameters() if p.name == "centre[0]"), key=lambda p: p.value)
    for parameter, true in zip(centres, np.sort(bumps.truth["centres"][:, 0]), strict=True):
        assert abs(parameter.value - true) < 4 * parameter.error < 0.1
    assert str(centres[0]).startswith("layer 0, kernel")


def test_it_recovers_the_numbers_of_a_dirichlet_polynomial():
    problem = synthetic.dirichlet(n=200, terms=3)
    found = AdaptiveRegressor("zeta(2)", epochs=100, particles=32, random_state=0).fit(problem.x, problem.y)
    terms = sorted(p.value for p in found.parameters() if p.name == "n")
    np.testing.assert_allclose(terms, problem.truth["terms"], atol=0.05)


def test_a_prediction_knows_its_error(bumps):
    """The truth lies within two standard errors of the mean at most places; far from the data it is not sure."""
    found = AdaptiveRegressor(**SMALL).fit(bumps.x, bumps.y)
    mean, error = found.predict(bumps.x, return_std=True)
    assert (np.abs(mean - bumps.clean) <= 2 * error).mean() > 0.8
    assert 0.002 < np.median(error) < 0.02


@pytest.mark.parametrize("end", [0.0, STEP / 2, 1 - STEP / 2, 1.0])
def test_the_errors_of_the_others_are_those_of_a_fit_without_the_parameter_at_its_bound(end):
    """Of location, amplitude and width: s^2 (J^T J)^-1 by formula, the centre's column left out."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(50, 1)), rng.standard_normal(50)
    model, point, output = Model("kernel(1)", np.zeros(1), np.ones(1)), np.array([0.8, end, 0.9]), ScaleLocation(1, 2)
    slopes = jacobian(model, x, point, output)[:, [0, 1, 3]]
    residuals = y - output(model.response(x, point[None])[0])
    expected = residuals @ residuals / (50 - 3) * np.linalg.inv(slopes.T @ slopes)
    found = confidence(model, x, y, point, output)
    np.testing.assert_allclose(found.covariance[np.ix_([0, 1, 3], [0, 1, 3])], expected, rtol=1e-6)
    assert list(found.at_bound) == [False, True, False]
    assert not found.undetermined.any()
    assert list(np.isnan(found.of_parameters(model, point))) == [False, True, False]


def test_ghosts_are_undetermined_and_what_they_do_not_touch_is_not(fitted):
    unknown = {p.name for p in fitted.parameters() if np.isinf(p.error)}
    assert unknown == {"amplitude", "ghost"}


@pytest.mark.parametrize("widths", MAPS)
def test_a_parameter_at_its_bound_says_so_and_has_no_error(widths):
    """A narrower kernel than any of the family: its width stays at the smallest there is, whatever maps it."""
    x = np.linspace(0, 1, 400)[:, None]
    y = np.exp(-np.square((x[:, 0] - 0.5) / 0.004) / 2)
    found = AdaptiveRegressor("kernel(1)", epochs=150, widths=widths, random_state=0).fit(x, y)
    amplitude, centre, width = found.parameters()
    assert width.at_bound
    assert np.isnan(width.error)
    assert str(width).endswith("at its bound")
    assert not amplitude.at_bound
    assert 0 < centre.error < np.inf


def test_a_watermark_changes_no_prediction_and_only_its_owner_finds_it(bumps, fitted):
    marked = pickle.loads(pickle.dumps(fitted))
    before = marked.predict(bumps.x)
    assert not marked.verify_watermark(b"owner").holds
    marked.embed_watermark(b"owner")
    np.testing.assert_allclose(marked.predict(bumps.x), before, rtol=0, atol=1e-13)
    claim = marked.verify_watermark(b"owner")
    assert claim.matches == claim.bits == 3 * BITS
    assert claim.holds
    assert claim.false_claim_rate == 2.0**-24
    assert not marked.verify_watermark(b"somebody else").holds


def test_wrong_keys_claim_as_often_as_the_binomial_says(fitted):
    """At a level that can be counted: 2000 keys, within five standard deviations."""
    claims = [fitted.verify_watermark(str(k).encode()) for k in range(2000)]
    needed = fewest_matches(24, 0.05)
    rate = tail(24, needed)
    seen = np.mean([claim.matches >= needed for claim in claims])
    assert abs(seen - rate) < 5 * np.sqrt(rate / 2000)


def test_a_level_is_met_and_no_stricter_than_needed():
    needed = fewest_matches(64)
    assert tail(64, needed) <= LEVEL < tail(64, needed - 1)
    assert tail(4, 0) == 1
    assert tail(4, 3) == 5 / 16


def test_a_model_without_ghosts_has_no_room_for_a_watermark(bumps):
    with pytest.raises(SpecError, match="ghosts=True"):
        AdaptiveRegressor(**(SMALL | {"epochs": 2})).fit(bumps.x, bumps.y).embed_watermark(b"owner")


def test_tables_give_the_same_fit_to_their_accuracy(bumps):
    """The first epochs: later a rounding may decide which of two steps is taken."""
    few = SMALL | {"epochs": 3, "polish": False}
    direct, tabled = (AdaptiveRegressor(**few, tables=flag).fit(bumps.x, bumps.y) for flag in (False, True))
    difference = np.abs(direct.predict(bumps.x) - tabled.predict(bumps.x)).max()
    assert 0 < difference < 1e-5


def test_polish_ends_at_a_minimum_that_a_swarm_alone_does_not_reach(bumps):
    """By the share of the noise's variance that is left over."""
    few = SMALL | {"epochs": 60}
    swarm, polished = (AdaptiveRegressor(**few, polish=flag).fit(bumps.x, bumps.y) for flag in (False, True))
    left = [np.square(each.predict(bumps.x) - bumps.y).mean() for each in (swarm, polished)]
    assert left[1] < 0.5 * left[0]


def test_the_unit_of_samples_and_responses_does_not_matter(bumps):
    """Parameters are shares of intervals: metres or millimetres, the fit is the same but for rounding."""
    few = SMALL | {"epochs": 20, "polish": False}
    one = AdaptiveRegressor(**few).fit(bumps.x, bumps.y)
    other = AdaptiveRegressor(**few).fit(1024 * bumps.x, 512 * bumps.y)
    np.testing.assert_allclose(512 * one.predict(bumps.x), other.predict(1024 * bumps.x), rtol=1e-9)


def test_a_bad_setting_is_named_when_it_is_fitted(bumps):
    with pytest.raises(SpecError, match="trigonometric"):
        AdaptiveRegressor("spline(3)").fit(bumps.x, bumps.y)
