"""Every feature of the adaptive models' descent does something: each test fails without the feature."""

from __future__ import annotations

import numpy as np
import pytest

from datasets import synthetic
from impls.nn.adaptive.descent import Function, Rates, Swarm, entropy, minimise
from impls.nn.adaptive.equalisation import ScaleLocation, equalising, least_squares
from impls.nn.adaptive.errors import AdaptiveLoss
from impls.nn.adaptive.fitting import Plan, fit
from impls.nn.adaptive.model import Model
from impls.specs import SpecError


def errors(problem, text, seeds, widths="reciprocal", **settings):
    """The metric of the best epoch, seed by seed."""
    own = Model(text, problem.x.min(axis=0), problem.x.max(axis=0), widths=widths)
    runs = [
        fit(own, problem.x, problem.y, Plan(**{"epochs": 150, **settings}), np.random.default_rng(seed))
        for seed in range(seeds)
    ]
    return np.array([min(epoch.metric for epoch in run.epochs) for run in runs])


@pytest.fixture(scope="module")
def bumps():
    """Three kernels in one dimension."""
    return synthetic.bumps(n=120)


def bowl(points):
    """Axes of very different curvature."""
    return np.square((points - 0.3) * [1, 100]).sum(axis=1)


def descended(function, seed=0, particles=1, epochs=100, **rates):
    """A descent of a function of two variables."""
    random = np.random.default_rng(seed)
    return minimise(Function(function), random.uniform(size=(particles, 2)), Rates(**rates), epochs, random)


def test_rates_by_axis_reach_what_one_rate_does_not():
    by_axis, one = (descended(bowl, by_axis=flag).value for flag in (True, False))
    assert by_axis < 1e-3 * one


def test_a_rate_that_falls_by_epoch_comes_nearer():
    """A constant step is taken until it would lead past the minimum, and then no more."""

    def round_bowl(points):
        return np.square(points - 0.3).sum(axis=1)

    falling, constant = (
        np.median([descended(round_bowl, seed, by_axis=False, rate=0.05, decay=d).value for seed in range(5)])
        for d in (0.95, 1.0)
    )
    assert falling < 0.1 * constant


def test_a_normalised_step_does_not_depend_on_the_unit_of_the_loss():
    small, large = (descended(lambda p, unit=unit: unit * bowl(p), by_axis=False).point for unit in (1.0, 1024.0))
    np.testing.assert_array_equal(small, large)
    raw = descended(lambda p: 1024.0 * bowl(p), by_axis=False, normalised=False).point
    assert not np.array_equal(raw, large)


def test_random_neighbours_draw_particles_together():
    """By the spread of a swarm on a loss of many minima."""

    def waves(points):
        return np.square(points - 0.5).sum(axis=1) + 0.1 * np.cos(40 * points).sum(axis=1)

    spreads = []
    for neighbour in (0.0, 0.3):
        swarm = Swarm(
            np.random.default_rng(0).uniform(size=(20, 2)), Rates(neighbour=neighbour), np.random.default_rng(1)
        )
        for _ in range(60):
            swarm.step(Function(waves))
        spreads.append(swarm.points.std())
    assert spreads[1] < 0.5 * spreads[0]


def test_more_particles_find_the_kernels_more_often(bumps):
    one, many = (errors(bumps, "kernel(3)", 5, particles=n) for n in (1, 12))
    assert np.median(many) < 0.7 * np.median(one)


def test_a_temperature_takes_steps_uphill_and_its_entropy_decays():
    """At temperature 0 no step goes up; with one, fewer and fewer do."""
    rates = {"difference": 0.02, "rate": 0.02, "by_axis": False, "particles": 30, "epochs": 150}
    cold = descended(synthetic.brownian(seed=1), **rates)
    warm = descended(synthetic.brownian(seed=1), temperature=3.0, cooling=0.93, **rates)
    assert not cold.uphill.any()
    early, late = (entropy(part.mean()) for part in (warm.uphill[:50], warm.uphill[-50:]))
    assert early > 0.5 > 0.2 > late


def test_chaotic_descent_gets_lower_on_brownian_losses():
    """Nowhere differentiable: difference quotients over a finite distance are all there is."""
    rates = {"difference": 0.02, "rate": 0.02, "by_axis": False, "epochs": 150}
    cold, warm = (
        np.mean(
            [descended(synthetic.brownian(seed=k), k, temperature=t, cooling=0.97, **rates).value for k in range(20)]
        )
        for t in (0.0, 10.0)
    )
    assert warm < cold


def test_differences_of_any_function_take_one_call():
    calls = []

    def counted(points):
        calls.append(len(points))
        return bowl(points)

    Function(counted).slopes(np.zeros((3, 2)), 1e-6)
    assert calls == [3 * (1 + 2)]


def test_the_adaptive_loss_changes_when_descent_stalls_and_ends_at_the_metric():
    loss = AdaptiveLoss(("rmse", "quartic", "mae"), patience=3)
    names = []
    for _ in range(10):
        names.append(loss.name)
        loss.watch(1.0, left=0.9)
    assert names[:4] == ["rmse"] * 4
    assert loss.name == "mae"
    falling = AdaptiveLoss(("rmse", "mae"), patience=3)
    for k in range(10):
        falling.watch(0.5**k, left=0.9)
    assert falling.name == "rmse"
    falling.watch(0.5**10, left=0.2)
    assert falling.name == "mae"


def test_a_sequence_of_losses_beats_the_metric_alone(bumps):
    """Judged by the largest residual, whose slope hangs on one sample."""
    alone, sequence = (errors(bumps, "kernel(3)", 5, losses=losses) for losses in (("max",), ("rmse", "max")))
    assert np.median(sequence) < 0.7 * np.median(alone)


def test_scale_location_maps_compose_and_invert():
    first, second = ScaleLocation(2.0, -3.0), ScaleLocation(-1.0, 0.5)
    y = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(first.then(second)(y), second(first(y)))
    np.testing.assert_allclose(first.then(first.inverse())(y), y, atol=1e-15)


def test_least_squares_brings_back_the_linear_part():
    x = np.random.default_rng(0).standard_normal((2, 50))
    found = least_squares(x, 5 - 2 * x)
    np.testing.assert_allclose(found.scale, [[-2], [-2]])
    np.testing.assert_allclose(found.location, [[5], [5]])


def test_equalising_goes_all_the_way_and_keeps_the_variance():
    """Repeated, a response of any unit comes to that of what is fitted, and does not shrink."""
    fitted = np.random.default_rng(0).standard_normal((1, 200))
    response = 100 + 7 * (fitted + 0.5 * np.random.default_rng(1).standard_normal((1, 200)))
    for _ in range(300):
        response = equalising(response, fitted)(response)
    assert least_squares(fitted, response).scale[0, 0] == pytest.approx(1, abs=1e-3)
    assert response.std() > fitted.std()


def test_equalisation_takes_the_linear_part_out_of_the_fit():
    """Kernels that are all positive have no part for an offset: with it the truth is found, without it is not."""
    base = synthetic.bumps(n=120, count=2, seed=8, signed=False)
    lifted = synthetic.Problem(base.x, 1000 + 50 * base.y, base.clean)
    equalised, fixed = (errors(lifted, "kernel(2)", 4, equalise=flag, particles=8) for flag in (True, False))
    assert equalised.min() < 0.3 * fixed.min()


def test_layers_in_turns_move_one_at_a_time(bumps):
    """As blocks of an EM algorithm; flat, all of them move in every epoch."""
    own = Model("kernel(1);kernel(1)", bumps.x.min(axis=0), bumps.x.max(axis=0))
    turns = fit(own, bumps.x, bumps.y, Plan(epochs=60, flat=False, turn=10), np.random.default_rng(0)).epochs
    assert [epoch.layer for epoch in turns] == ([0] * 10 + [1] * 10) * 3
    flat = fit(own, bumps.x, bumps.y, Plan(epochs=2), np.random.default_rng(0)).epochs
    assert {epoch.layer for epoch in flat} == {-1}


def test_flattening_gets_further_than_turns_in_as_many_epochs(bumps):
    flat, turns = (errors(bumps, "kernel(1);kernel(1);kernel(1)", 6, flat=flag) for flag in (True, False))
    assert np.median(flat) < np.median(turns)


def test_a_reparameterised_width_is_found_where_a_straight_one_is_not():
    """A narrow kernel, one rate for all axes: the width's interval is a hundred times the width."""
    random = np.random.default_rng(1)
    x = np.linspace(0, 1, 120)[:, None]
    clean = np.exp(-np.square((x[:, 0] - 0.4) / 0.05) / 2)
    problem = synthetic.Problem(x, clean + 0.02 * random.standard_normal(120), clean)
    plan = {"particles": 8, "rates": Rates(by_axis=False, decay=0.98)}
    linear, square, reciprocal = (
        np.median(errors(problem, "kernel(1)", 5, widths=name, **plan)) for name in ("linear", "square", "reciprocal")
    )
    assert max(square, reciprocal) < 0.7 * linear


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"losses": ("hinge",)}, "rmse"),
        ({"losses": ()}, "empty"),
        ({"patience": 0}, "pat"),
    ],
)
def test_a_plan_that_cannot_be_is_named(settings, words):
    with pytest.raises(SpecError, match=words):
        Plan(**settings)


@pytest.mark.parametrize("settings", [{"rate": 0}, {"decay": 1.1}, {"neighbour": 2}, {"temperature": -1}])
def test_rates_that_cannot_be_are_named(settings):
    with pytest.raises(SpecError, match=next(iter(settings))):
        Rates(**settings)
