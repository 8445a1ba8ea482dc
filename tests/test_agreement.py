"""Training beside a Keras twin: gradients, updates, and what is converted both ways; wrong ones are caught."""

from __future__ import annotations

import numpy as np
import pytest

import datasets
from bench import agreement as judged
from bench.agreement import LARGEST, STEPS, TIE, ULPS, GradientRow, relative, same_maxima, same_signs, verify_training
from bench.keras_model import PUBLISHED_MODELS, ModelError, parse_model
from bench.keras_state import PRODUCT, from_keras, keras_optimizer, to_keras
from bench.keras_training import Batch, KerasProcess, Twin
from impls.nn import optimizers
from impls.nn.network import Network
from impls.nn.training import Data, Settings, Trainer
from impls.specs import SpecError

BATCH = 4
SIX = ("olivetti:4", "olivetti:10", "mnist:4", "mnist:8", "cifar10:3", "cifar10:9")
SMALL = "6x7x2->C(3,3,r);M(2);DR(0.25);F();D(9,r);DR(0.5);D(3,sm)"
EVERY_STATE = {
    "sgd": optimizers.SGD(),
    "sgd with momentum": optimizers.SGD(momentum=0.9, nesterov=True),
    "adagrad": optimizers.AdaGrad(),
    "rmsprop": optimizers.RMSProp(),
    "rmsprop with momentum, centered": optimizers.RMSProp(momentum=0.9, centered=True),
    "adam": optimizers.Adam(),
    "amsgrad": optimizers.AMSGrad(),
    "adamax": optimizers.AdaMax(),
    "nadam": optimizers.Nadam(),
}


@pytest.fixture(scope="module")
def keras():
    """One process for all twins: importing the backend takes longer than training them."""
    pytest.importorskip("keras")
    with KerasProcess(threads=1) as process:
        yield process


def samples(count: int) -> Data:
    """Random images and classes for SMALL."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((count, 6, 7, 2)).astype(np.float32)
    return Data(x, np.eye(3, dtype=np.float32)[rng.integers(0, 3, count)])


def batch_of(network: Network, data: Data, number: int, rate: float = 0.01) -> Batch:
    """The batch of a step."""
    chosen = slice(number * BATCH, (number + 1) * BATCH)
    return Batch(data.x[chosen], data.targets[chosen], judged.masks(network, BATCH, number), rate)


@pytest.mark.parametrize("text", SIX)
def test_training_agrees_with_keras_at_every_step(keras, text):
    """Two structures for each data set, on its images; on the bundled digits where its files are not here."""
    present = {entry.name for entry in datasets.inventory() if entry.present}
    dataset = text.partition(":")[0]
    (model,) = parse_model(text if dataset in present else f"digits:{1 + SIX.index(text) % 2}")
    found = verify_training(keras, model, BATCH, seed=0)
    assert found.reason == ""
    assert len(found.updates) == len(found.keras_losses) == STEPS
    # At the first step no trajectory has parted yet.
    assert found.losses[0] == pytest.approx(found.keras_losses[0], rel=1e-5)
    assert min(max(row.keras) for row in found.gradients) > 0


def test_a_batch_normalisations_gradients_and_averages_agree_with_keras(keras):
    """Of channels and of units; an average is judged by its value after the step."""
    network = Network("6x7x2->C(3,4,r);BN();M(2);F();D(9,r);BN();DR(0.25);D(3,sm)", seed=2)
    found = judged.agreement(keras, network, samples(24 * 4), 24, optimizers.Adam())
    assert {row.parameter for row in found.gradients} >= {"bn1/gamma", "bn1/moving_mean", "bn5/moving_variance"}
    assert found.reason == ""


@pytest.mark.parametrize("case", EVERY_STATE)
def test_every_optimizer_takes_keras_steps_from_keras_state(keras, case):
    """From its weights, state and gradient at each of 10 steps."""
    found = judged.agreement(keras, Network(SMALL, seed=3), samples(10 * BATCH), BATCH, EVERY_STATE[case])
    assert len(found.updates) == 10
    if case == "nadam" and "torch" in found.backend:
        pytest.skip("Keras' Nadam takes 1 - beta_2 in float64 on PyTorch, in float32 on TensorFlow, as ours does")
    assert max(found.updates) <= ULPS
    assert found.reason == ""


@pytest.mark.parametrize("case", EVERY_STATE)
def test_weights_and_state_go_both_ways_without_loss(keras, case):
    """Keras after three steps, then ours, then Keras again: bit for bit, and it goes on as if nothing had been."""
    network, data, optimizer = Network(SMALL, seed=3), samples(4 * BATCH), EVERY_STATE[case]
    twin = Twin(network.structure, network.image_shape, network.named_weights(), keras_optimizer(optimizer))
    first = keras.start(twin)
    assert_same(first.weights, network.named_weights())
    for number in range(3):
        moment = keras.step(batch_of(network, data, number)).after
    expected = keras.step(batch_of(network, data, 3))

    trainer = Trainer(network, data, Settings(optimizer=optimizer, batch=BATCH))
    network.load_weights(moment.weights)
    from_keras(trainer, moment.state)
    assert trainer.steps == 3
    state = to_keras(trainer)
    if PRODUCT in state:  # which follows from the number of steps, but for the rounding of its powers
        np.testing.assert_array_max_ulp(state.pop(PRODUCT), moment.state[PRODUCT], maxulp=2)
        state[PRODUCT] = moment.state[PRODUCT]
    assert_same(state, moment.state)
    again = keras.start(Twin(twin.structure, twin.image_shape, network.named_weights(), twin.optimizer, state))
    assert_same(again.weights, moment.weights)
    assert_same(again.state, moment.state)
    resumed = keras.step(batch_of(network, data, 3))
    assert_same(resumed.after.weights, expected.after.weights)
    assert_same(resumed.after.state, expected.after.state)


def assert_same(some, others):
    """The same names with the same bits."""
    assert set(some) == set(others)
    for name, values in some.items():
        np.testing.assert_array_equal(values, others[name], err_msg=name)


WRONG_GRADIENTS = {
    "the sum over the batch": lambda g: {name: values * BATCH for name, values in g.items()},
    "half precision": lambda g: {name: values.astype(np.float16).astype(np.float32) for name, values in g.items()},
    "a forgotten bias gradient": lambda g: g | {"c0/bias": np.zeros_like(g["c0/bias"])},
    "one value is not a number": lambda g: g | {"d4/bias": np.where(np.arange(9) == 0, np.nan, g["d4/bias"])},
}


@pytest.mark.parametrize("how", WRONG_GRADIENTS)
def test_wrong_gradients_are_caught(keras, monkeypatch, how):
    """Each breaks the bound in the median."""
    right = judged._our_gradients

    def wrong(*arguments):
        gradients, outputs = right(*arguments)
        return WRONG_GRADIENTS[how](gradients), outputs

    monkeypatch.setattr(judged, "_our_gradients", wrong)
    found = judged.agreement(keras, Network(SMALL, seed=3), samples(3 * BATCH), BATCH, optimizers.SGD())
    assert found.status == "WRONG"
    assert any("of the allowed distance" in row.reason for row in found.gradients)


def test_other_masks_than_keras_had_are_caught(keras, monkeypatch):
    """The twin is given the masks that we draw, and is compared with nothing else."""
    right = judged.masks
    monkeypatch.setattr(judged, "masks", lambda network, batch, step: right(network, batch, step + 1))
    found = judged.agreement(keras, Network(SMALL, seed=3), samples(3 * BATCH), BATCH, optimizers.SGD())
    assert found.status == "WRONG"


def test_another_optimizer_than_keras_had_is_caught(keras, monkeypatch):
    """The published comparison's beta_2 of 0.9 against our 0.999."""
    monkeypatch.setattr(
        judged, "keras_optimizer", lambda ours: keras_optimizer(optimizers.Adam(beta_2=0.9)), raising=True
    )
    found = judged.agreement(keras, Network(SMALL, seed=3), samples(3 * BATCH), BATCH, optimizers.Adam())
    assert "updates differ" in found.reason


def test_what_keras_says_is_handed_on(keras):
    """And the process goes on after it."""
    network = Network(SMALL)
    weights = network.named_weights()
    with pytest.raises(ModelError, match="Nonesuch"):
        keras.start(Twin(network.structure, network.image_shape, weights, ("Nonesuch", {})))
    assert keras.start(Twin(network.structure, network.image_shape, weights, ("SGD", {}))).weights


def test_a_state_that_does_not_fit_is_refused():
    """Naming the array; nothing is changed."""
    network = Network(SMALL)
    trainer = Trainer(network, samples(BATCH), Settings())
    state = to_keras(trainer) | {"c0_kernel_velocity": np.ones(3, np.float32)}
    with pytest.raises(SpecError, match=r"c0_kernel_velocity must have shape \(3, 3, 2, 3\); it is of shape \(3,\)"):
        from_keras(trainer, state)


def test_the_truth_takes_the_sides_of_relu_that_the_other_took():
    """Changes are counted, and measured against the largest value."""
    y = np.array([4.0, 0.0, 1e-8, 0.0])
    found = same_signs(y, np.array([4, 2e-8, 0, 0], np.float32))
    np.testing.assert_allclose(y, [4, 2e-8, 0, 0])
    assert found == (2, pytest.approx(0.5e-8))
    assert same_signs(y, np.array([0, 2e-8, 0, 0], np.float32)) == (1, 1.0)
    assert TIE < 1


def test_the_truth_takes_the_maxima_that_the_other_took():
    """Values of one window are exchanged; a row and a column that no window covers stay out of it."""
    x = np.arange(30.0).reshape(1, 5, 3, 2)
    theirs = x.astype(np.float32)
    expected = x.copy()
    theirs[0, 0, 0, 1], theirs[0, 4, 2, 0] = 100, 100
    expected[0, 0, 0, 1], expected[0, 1, 1, 1] = x[0, 1, 1, 1], x[0, 0, 0, 1]
    kinks, tie = same_maxima(x, theirs, 2)
    np.testing.assert_array_equal(x, expected)
    assert (kinks, tie) == (1, pytest.approx((9 - 1) / 29))


def test_rows_are_judged_by_the_median_and_by_the_largest():
    """One bad step in three is forgiven up to LARGEST; a gradient that is zero must be exactly so."""
    fine, coarse = 1e-7, 1e-5
    assert GradientRow("m", "c0/bias", (fine, coarse, fine), (fine, fine, fine)).status == "OK"
    assert GradientRow("m", "c0/bias", (coarse, coarse, fine), (fine, fine, fine)).status == "WRONG"
    assert GradientRow("m", "c0/bias", (fine, 2 * LARGEST, fine), (fine, fine, fine)).status == "WRONG"
    assert relative(np.zeros(2), np.zeros(2)) == 0
    assert relative(np.ones(2), np.zeros(2)) == float("inf")


def test_there_are_33_published_structures_to_train():
    """As ``tox -e long`` does."""
    assert len(parse_model(PUBLISHED_MODELS)) == 33
