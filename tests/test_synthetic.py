"""The synthetic problems are what they say they are, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from datasets import synthetic

MAKERS = (
    synthetic.bumps,
    synthetic.singular,
    synthetic.clusters,
    synthetic.orbit,
    synthetic.zeta_line,
    synthetic.dirichlet,
    synthetic.rare,
)


@pytest.mark.parametrize("make", MAKERS)
def test_a_problem_comes_out_the_same_and_finite(make):
    first, second = make(), make()
    assert first.x.shape == (len(first.y), first.x.shape[1])
    assert np.isfinite(first.x).all()
    assert np.isfinite(first.y).all()
    np.testing.assert_array_equal(first.y, second.y)


@pytest.mark.parametrize("d", [1, 4, 10])
def test_bumps_are_the_sum_that_their_truth_says(d):
    found = synthetic.bumps(n=50, d=d)
    truth = found.truth
    distances = np.square(found.x[:, None] - truth["centres"]).sum(axis=2)
    np.testing.assert_allclose(found.clean, np.exp(-distances / 2 / truth["widths"] ** 2) @ truth["amplitudes"])


@pytest.mark.parametrize("d", [0, 11])
def test_other_dimensions_are_refused(d):
    with pytest.raises(ValueError, match=f"d={d}"):
        synthetic.bumps(d=d)


def test_zeta_vanishes_at_its_known_zeros_and_is_right_at_one_half():
    """zeta(1/2) = -1.4603545088 (OEIS A059750)."""
    assert np.abs(synthetic.zeta(np.array(synthetic.ZETA_ZEROS))).max() < 1e-12
    assert synthetic.zeta(np.array([0.0]))[0].real == pytest.approx(-1.4603545088095868, abs=1e-13)


def test_zeta_says_where_its_series_ends():
    with pytest.raises(ValueError, match="60"):
        synthetic.zeta(np.array([61.0]))


def test_the_orbit_solves_keplers_equation():
    """Nearest at time 0, farthest after half a period, for which the equation needs no solving."""
    found = synthetic.orbit(n=4000)
    assert found.clean.max() == pytest.approx(1 - 0.6, abs=1e-3)
    assert found.clean.min() == pytest.approx(-1 - 0.6, abs=1e-3)
    time, e = found.x[:, 0], 0.6
    anomaly = np.arccos(np.clip(found.clean + e, -1, 1))
    first = time < 0.5
    np.testing.assert_allclose((anomaly - e * np.sin(anomaly))[first], (2 * np.pi * time)[first], atol=1e-6)


def test_the_brownian_loss_gets_rougher_the_closer_one_looks():
    """Its difference quotients grow as the distance falls, as 1 / sqrt(distance): a derivative would be their limit."""
    loss = synthetic.brownian(d=1, seed=0, roughness=10)
    x = np.random.default_rng(0).uniform(0.1, 0.9, size=(2000, 1))
    coarse, fine = (np.abs(loss(x + h) - loss(x)).mean() / h for h in (2.0**-6, 2.0**-12))
    assert fine / coarse == pytest.approx(8, rel=0.3)


def test_rare_events_are_in_a_square_that_holds_their_share():
    """Beyond it the response is the slope alone, up to 14 % of an event."""
    found = synthetic.rare(n=20_000, share=0.01, noise=0)
    inside = np.abs(found.x - found.truth["centre"]).max(axis=1) < 0.05
    event = found.y - 0.2 * np.sin(np.pi * found.x[:, 0])
    assert inside.mean() == pytest.approx(0.01, rel=0.3)
    assert event[~inside].max() < 0.14 < 0.9 < event[inside].max()
