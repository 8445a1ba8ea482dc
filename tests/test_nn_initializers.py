"""Initial weights have the variance that their source derives, and the form that Keras gives them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from impls.nn.initializers import CUT, FAMILIES, Initializer, default_for, fans
from impls.specs import SpecError

CONV, DENSE = (3, 3, 16, 32), (200, 300)
VARIANCE = {
    "glorot_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he_uniform": lambda fan_in, fan_out: 2 / fan_in,
    "he_normal": lambda fan_in, fan_out: 2 / fan_in,
}


@pytest.mark.parametrize("shape", [CONV, DENSE])
@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("name", VARIANCE)
def test_variance_is_the_derived_one(name, truncated, shape):
    """Within five standard errors: the variance of n values has a relative deviation of at most sqrt(2 / n)."""
    draws = [Initializer(name, truncated=truncated).draw(shape, np.random.default_rng(i)) for i in range(20)]
    values = np.concatenate([d.ravel() for d in draws]).astype(np.float64)
    assert values.var() == pytest.approx(VARIANCE[name](*fans(shape)), rel=5 * math.sqrt(2 / values.size))
    assert abs(values.mean()) < 5 * values.std() / math.sqrt(values.size)


def test_fans_of_a_convolution_count_its_taps():
    """What one output sums, and what one input reaches."""
    assert fans(CONV) == (9 * 16, 9 * 32)
    assert fans(DENSE) == DENSE


@pytest.mark.parametrize("name", ["glorot_normal", "he_normal"])
def test_truncated_normal_is_cut_at_two_deviations_and_the_textbooks_is_not(name):
    """Of the underlying normal distribution, which is wider than the result by a known factor."""
    rng = np.random.default_rng(0)
    limit = CUT * math.sqrt(VARIANCE[name](*fans(DENSE))) / 0.87962566103423978
    assert np.abs(Initializer(name).draw(DENSE, rng)).max() <= limit * (1 + 1e-6)
    assert np.abs(Initializer(name, truncated=False).draw(DENSE, rng)).max() > limit


def test_plain_normal_has_the_deviation_that_is_asked_for():
    """Any deviation, 0.05 by default."""
    values = Initializer("normal", stddev=3.0).draw(DENSE, np.random.default_rng(0))
    assert values.std() == pytest.approx(3, rel=0.02)
    assert not Initializer("zeros").draw(DENSE, np.random.default_rng(0)).any()


def test_relu_starts_with_he_and_all_else_with_glorot():
    """As the paper and Keras' guides advise."""
    assert default_for("relu").name == "he_uniform"
    assert {default_for(name).name for name in ("softmax", "tanh", "linear")} == {"glorot_uniform"}


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: Initializer("lecun"), "glorot_uniform"), (lambda: Initializer("normal", stddev=-1), "stddev=-1")],
    ids=["unknown name", "negative deviation"],
)
def test_bad_settings_are_named(make, words):
    """The message lists what is known, or names the setting."""
    with pytest.raises(SpecError, match=words):
        make()


def test_every_family_gives_float32_and_the_same_seed_the_same_weights():
    """Weights do not depend on anything but the generator."""
    for name in FAMILIES:
        first, second = (Initializer(name).draw(CONV, np.random.default_rng(7)) for _ in range(2))
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, second)
