"""Optimizers: each as Keras defines it, judged in one step from Keras' own state."""

from __future__ import annotations

import math

import numpy as np
import pytest

from impls.nn import optimizers, schedules
from impls.specs import SpecError

COUNT, STEPS = 2000, 20
CASES = {
    "sgd": {},
    "sgd with momentum": {"momentum": 0.9},
    "sgd with Nesterov's momentum": {"momentum": 0.9, "nesterov": True},
    "adagrad": {},
    "rmsprop": {},
    "rmsprop with momentum, centered": {"momentum": 0.9, "centered": True},
    "adam": {},
    "adam with other rates": {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-4},
    "amsgrad": {},
    "adamax": {},
    "nadam": {},
}
KERAS = {
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "amsgrad": "Adam",
    "adamax": "Adamax",
    "nadam": "Nadam",
}
KERAS_ORDER = {"rmsprop with momentum, centered": (0, 2, 1)}
"""Where Keras keeps our arrays among its own, if in another order."""

ULPS = 8


def gradients(step: int) -> np.ndarray:
    """Gradients over four orders of magnitude."""
    rng = np.random.default_rng(step)
    return (rng.standard_normal(COUNT) * 10.0 ** rng.uniform(-4, 0, COUNT)).astype(np.float32)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # TensorFlow's, where Keras copies a variable
@pytest.mark.parametrize("case", CASES)
def test_update_is_keras_update_within_8_units_in_the_last_place(case):
    """At every step ours starts from Keras' weights and state.

    The unit is that of the largest number that enters an element's update: its weight, its step, its momentum; for
    Nadam the learning rate, near which lie both of its terms, of momentum and of gradient, where they cancel.
    """
    keras = pytest.importorskip("keras")
    name = case.partition(" ")[0]
    settings = CASES[case] | ({"amsgrad": True} if name == "amsgrad" else {})
    theirs = getattr(keras.optimizers, KERAS[name])(**settings)
    ours = optimizers.named(name, **CASES[case])
    start = np.random.default_rng(99).standard_normal(COUNT).astype(np.float32)
    variable = keras.Variable(start)
    theirs.build([variable])
    w, state = start.copy(), ours.init(COUNT)
    arrays = [array for array in state if len(array)]
    for step in range(STEPS):
        kept = [v for v in theirs.variables if v.shape == (COUNT,)]
        kept = [kept[i] for i in KERAS_ORDER.get(case, range(len(kept)))]
        assert len(kept) == len(arrays)
        w[:] = keras.ops.convert_to_numpy(variable)
        for mine, yours in zip(arrays, kept, strict=True):
            mine[:] = keras.ops.convert_to_numpy(yours)
        before = [w.copy(), *(a.copy() for a in arrays)]
        g = gradients(step)
        ours.update(w, g, state, float(theirs.learning_rate), step)
        theirs.apply([g], [variable])
        expected = keras.ops.convert_to_numpy(variable)
        scale = np.maximum(np.abs(before[0]), np.abs(expected - before[0]))
        if settings.get("momentum"):
            scale = np.maximum(scale, np.abs(before[-1]))
        if name == "nadam":
            scale = np.maximum(scale, np.float32(ours.learning_rate))
        assert (np.abs(w - expected) / np.spacing(scale)).max() <= ULPS


def test_defaults_are_keras_defaults():
    """Learning rates, decay rates, and epsilon."""
    keras = pytest.importorskip("keras")
    for name, theirs in KERAS.items():
        settings = getattr(keras.optimizers, theirs)().get_config()
        ours = optimizers.named(name)
        for field in ("learning_rate", "momentum", "nesterov", "rho", "beta_1", "beta_2", "epsilon", "centered"):
            if hasattr(ours, field):
                assert getattr(ours, field) == pytest.approx(settings[field]), (name, field)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_finds_the_bottom_of_a_bowl(name):
    """f(w) = |w|^2 / 2, whose gradient is w; in parallel parts too."""
    count = 2 * optimizers.SERIAL_BELOW
    optimizer = optimizers.named(name, learning_rate=0.1)
    w, state = np.full(count, 2, np.float32), optimizer.init(count)
    for step in range(400):
        optimizer.update(w, w.copy(), state, 0.1, step)
    assert np.abs(w).max() < 0.5
    assert (w == w[0]).all()


def test_long_runs_of_nadam_stay_finite_and_quick():
    """The product of its momenta vanishes; nothing divides by it."""
    optimizer = optimizers.Nadam()
    w, state = np.ones(4, np.float32), optimizer.init(4)
    optimizer.update(w, w.copy(), state, 0.001, 10**7)
    assert np.isfinite(w).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: optimizers.named("adamw"), "nadam"),
        (lambda: optimizers.named("adam", rho=0.9), "beta_1"),
        (lambda: optimizers.Adam(beta_1=1.0), "beta_1=1.0"),
        (lambda: optimizers.SGD(learning_rate=-1), "learning_rate=-1"),
        (lambda: schedules.CosineDecay(0.1, 0), "steps=0"),
    ],
)
def test_bad_settings_are_named(make, words):
    """Unknown names list the known ones."""
    with pytest.raises(SpecError, match=words):
        make()


def test_schedules_follow_their_formulas():
    """Step 0 has the initial rate."""
    assert schedules.rate_at(0.25, 7) == 0.25
    decay = schedules.InverseTimeDecay(1.0, rate=0.5, steps=10)
    assert [decay(0), decay(20)] == [1.0, 0.5]
    stairs = schedules.StepDecay(1.0, factor=0.1, steps=3)
    assert [stairs(i) for i in (0, 2, 3, 6)] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = schedules.CosineDecay(1.0, steps=100, final=0.1)
    assert [cosine(i) for i in (0, 50, 100, 1000)] == pytest.approx([1, 0.55, 0.1, 0.1])
    assert cosine(25) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
