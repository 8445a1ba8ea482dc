"""Every activation and loss: values against their definitions, gradients against finite differences in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from impls.nn import activations, losses
from impls.specs import SpecError

BATCH, UNITS = 3, 5
ACTIVATIONS = ("linear", "sigmoid", "tanh", "softmax")
STEP = 1e-6


def pre_activations(activation: str) -> np.ndarray:
    """Values whose activations are probabilities, as cross-entropies need them."""
    rng = np.random.default_rng(1)
    return {
        "linear": rng.uniform(0.1, 0.9, (BATCH, UNITS)),
        "tanh": rng.uniform(0.1, 1.5, (BATCH, UNITS)),
    }.get(activation, rng.standard_normal((BATCH, UNITS)))


def targets() -> np.ndarray:
    """A distribution over the units for each sample."""
    return np.random.default_rng(2).dirichlet(np.ones(UNITS), BATCH)


@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_is_the_slope_of_the_loss(activation, loss):
    """Central differences: their error is of order STEP^2 plus rounding over STEP."""
    z, wanted = pre_activations(activation), targets()
    found = np.full_like(z, np.nan)
    losses.evaluate(loss, activation, z.copy(), wanted, found)
    slopes = np.empty_like(z)
    for index in np.ndindex(z.shape):
        sides = []
        for step in (STEP, -STEP):
            moved = z.copy()
            moved[index] += step
            sides.append(losses.evaluate(loss, activation, moved, wanted, np.empty_like(z)))
        slopes[index] = (sides[0] - sides[1]) / (2 * STEP)
    np.testing.assert_allclose(found, slopes, atol=1e-8)


@pytest.mark.parametrize(
    ("loss", "activation", "direct"),
    [
        ("categorical_crossentropy", "softmax", lambda p, t: -(t * np.log(p)).sum(axis=1).mean()),
        ("binary_crossentropy", "sigmoid", lambda p, t: -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()),
        ("mean_squared_error", "tanh", lambda p, t: np.square(p - t).mean()),
    ],
)
def test_loss_is_its_definition_and_leaves_the_activation_behind(loss, activation, direct):
    """The value from probabilities that were computed apart."""
    z, wanted = pre_activations(activation), targets()
    apart = z.copy()
    activations.apply(activation, apart)
    value = losses.evaluate(loss, activation, z, wanted, np.empty_like(z))
    assert value == pytest.approx(direct(apart, wanted), rel=1e-12)
    np.testing.assert_allclose(z, apart, rtol=1e-12)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softmax"])
def test_activations_survive_large_values(name):
    """No overflow, no NaN: 1,000 in float32 is far beyond where exp ends."""
    z = np.array([[1000, -1000, 0, 999]], np.float32)
    activations.apply(name, z)
    assert np.isfinite(z).all()
    expected = {"sigmoid": [1, 0, 0.5, 1], "tanh": [1, -1, 0, 1]}
    e = math.exp(-1)
    np.testing.assert_allclose(z[0], expected.get(name, [1 / (1 + e), 0, 0, e / (1 + e)]), rtol=1e-6)


@pytest.mark.parametrize(("loss", "activation"), sorted(losses.FUSED))
def test_fused_cross_entropy_stays_finite_where_a_probability_vanishes(loss, activation):
    """The loss is the distance of the pre-activations, not the logarithm of a cut-off probability."""
    z, wanted = np.array([[800, 0]], np.float32), np.array([[0, 1]], np.float32)
    gradient = np.empty_like(z)
    value = losses.evaluate(loss, activation, z, wanted, gradient)
    assert value == pytest.approx({"softmax": 800, "sigmoid": (800 + math.log(2)) / 2}[activation], rel=1e-6)
    assert np.isfinite(gradient).all()


def test_softmax_does_not_change_when_a_constant_is_added():
    """Only differences matter."""
    z = np.random.default_rng(0).standard_normal((4, 7))
    shifted = z + 100
    activations.apply("softmax", z)
    activations.apply("softmax", shifted)
    np.testing.assert_allclose(z, shifted, rtol=1e-12)
    np.testing.assert_allclose(z.sum(axis=1), 1, rtol=1e-12)


def test_parallel_and_serial_parts_give_the_same_bits():
    """The number of parts divides the rows, not their sums."""
    z = np.random.default_rng(0).standard_normal((4000, 10)).astype(np.float32)
    whole = z.copy()
    activations.apply("softmax", whole)
    rows = np.concatenate([_applied("softmax", z[i : i + 1]) for i in range(0, 4000, 997)])
    np.testing.assert_array_equal(whole[::997], rows)


def _applied(name: str, values: np.ndarray) -> np.ndarray:
    copy = values.copy()
    activations.apply(name, copy)
    return copy


@pytest.mark.parametrize(
    ("loss", "shape", "words"),
    [("hinge", (BATCH, UNITS), "mean_squared_error"), ("mean_squared_error", (BATCH, 1), "must be the same")],
)
def test_bad_input_is_named(loss, shape, words):
    """An unknown loss lists the known ones; shapes that differ are both given."""
    z = np.zeros((BATCH, UNITS))
    with pytest.raises(SpecError, match=words):
        losses.evaluate(loss, "linear", z, np.zeros(shape), np.empty_like(z))
