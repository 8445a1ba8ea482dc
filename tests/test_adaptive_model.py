"""Adaptive models compute what they say: parameters and their units, families, tables, and gradients by differences."""

from __future__ import annotations

import numpy as np
import pytest

from impls.nn.adaptive.errors import ERRORS
from impls.nn.adaptive.families import FAMILIES
from impls.nn.adaptive.model import Fit, Model
from impls.nn.adaptive.scales import LINEAR, MAPS, RECIPROCAL, SQUARE, Axis, Scales
from impls.nn.adaptive.tables import DIRECT, STEP, tabled
from impls.specs import SpecError

RANDOM = np.random.default_rng(0)


def samples(n=40, d=2):
    """Rows between 0 and 3."""
    return np.random.default_rng(1).uniform(0, 3, size=(n, d))


def model(text="kernel(2)", d=2, **options):
    """For data between 0 and 3."""
    return Model(text, np.zeros(d), np.full(d, 3.0), **options)


@pytest.mark.parametrize("name", MAPS)
def test_a_parameter_between_0_and_1_covers_its_interval_and_comes_back(name):
    scales = Scales([Axis("a", 0.5, 8, name)])
    u = np.linspace(0, 1, 11)[:, None]
    natural = scales.natural(u)
    np.testing.assert_allclose(natural[[0, -1], 0], [0.5, 8])
    np.testing.assert_allclose(scales.normalised(natural), u, atol=1e-12)
    quotient = (scales.natural(u + 1e-6) - scales.natural(u - 1e-6)) / 2e-6
    inside = slice(1, -1)
    np.testing.assert_allclose(scales.slopes(u)[inside], quotient[inside], rtol=1e-6)


@pytest.mark.parametrize(("name", "half"), [(LINEAR, 4.25), (SQUARE, 2.375), (RECIPROCAL, 1 / (0.5 * (2 + 0.125)))])
def test_reparameterisation_gives_small_values_more_room(name, half):
    """theta at u = 1/2: the middle; a quarter of the way; the middle of 1 / theta."""
    assert Scales([Axis("a", 0.5, 8, name)]).natural(np.array([0.5]))[0] == pytest.approx(half)


@pytest.mark.parametrize(
    ("axis", "words"),
    [(("a", 0, 1, "cubic"), "cubic"), (("a", 2, 1), "empty"), (("a", 0, 1, RECIPROCAL), "above 0")],
)
def test_an_axis_that_cannot_be_is_named(axis, words):
    with pytest.raises(SpecError, match=words):
        Axis(*axis)


FAMILY_FORMULAS = {
    "kernel": lambda x, t: np.exp(-(((x - t[0]) / (3 * t[1])) ** 2) / 2),
    "skewed": lambda x, t: (
        np.exp(-(((x - t[0]) / (3 * t[1])) ** 2) / 2) * (1 + np.tanh(t[2] * (x - t[0]) / (3 * t[1])))
    ),
    "mixture": lambda x, t: np.exp(-(((x - t[0]) / (3 * t[1])) ** 2) / 2) / (t[1] * np.sqrt(2 * np.pi)),
    "trigonometric": lambda x, t: np.cos(2 * np.pi * (t[0] * x / 3 - t[1])),
    "zeta": lambda x, t: np.cos(x * np.log(t[0]) - 2 * np.pi * t[1]) / np.sqrt(t[0]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_its_formula_in_one_variable(name):
    own = model(f"{name}(1)", d=1)
    (layer,) = own.layers
    point = np.random.default_rng(2).uniform(size=(1, own.parameters))
    x = samples(d=1)
    amplitude, *theta = own.natural(layer, point)[0, 0]
    np.testing.assert_allclose(own.response(x, point)[0], amplitude * FAMILY_FORMULAS[name](x[:, 0], theta))


def test_a_mixture_has_mass_one():
    """In units of the extent: the integral over the plane."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 3, 200)] * 2), axis=-1).reshape(-1, 2)
    own = model("mixture(1)")
    natural = np.array([[[1.0, 1.5, 1.4, 0.1, 0.08]]])
    assert own.functions(own.layers[0], grid, natural).mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("ghosts", [False, True])
def test_differences_in_one_pass_are_those_of_the_loss_parameter_by_parameter(error, ghosts):
    """Of two layers of different families, at several points."""
    own, x = model("skewed(2);trigonometric(1)", ghosts=ghosts), samples()
    points = RANDOM.uniform(0.1, 0.9, size=(3, own.parameters))
    targets = np.broadcast_to(np.sin(x.sum(axis=1)), (3, len(x)))
    fit = Fit(own, own.layers, x, targets, ERRORS[error])
    values, slopes = fit.slopes(points, 1e-6)
    np.testing.assert_allclose(values, fit.values(points))
    for k in range(own.parameters):
        moved = points.copy()
        moved[:, k] += 1e-6
        np.testing.assert_allclose(slopes[:, k], (fit.values(moved) - values) / 1e-6, atol=1e-5)


@pytest.mark.parametrize("name", DIRECT._fields)
def test_a_table_is_as_exact_as_its_bound(name):
    """step^2 / 8 times the largest second derivative, and half as much again for rounding."""
    t = RANDOM.uniform(0, 30, 20_000)
    bound = {"decay": 1, "wave": (2 * np.pi) ** 2, "bend": 0.77}[name] * STEP**2 / 8
    error = np.abs(getattr(tabled(), name)(t) - getattr(DIRECT, name)(t)).max()
    assert 0 < error <= 1.01 * bound + 1e-10
    assert np.abs(getattr(tabled(1e-2), name)(t) - getattr(DIRECT, name)(t)).max() > 100 * error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kernel", "kernel"),
        ("", "no layers"),
        ("kernel(0)", "kernel"),
        ("spline(3)", "mixture"),
        ("zeta(2)", "one var"),
    ],
)
def test_layers_that_cannot_be_are_named(text, words):
    with pytest.raises(SpecError, match=words):
        model(text)
