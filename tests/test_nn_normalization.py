"""Batch normalisation: its definition, slopes, averages and files, and the layers of Keras and PyTorch beside it."""

from __future__ import annotations

import numpy as np
import pytest

from bench.keras_model import trace
from impls.nn.network import Network, Options, Pass
from impls.nn.normalization import EPSILON, MOMENTUM
from impls.nn.optimizers import SGD, Adam
from impls.nn.saving import load, save
from impls.nn.structure import parse, steps
from impls.nn.training import Data, Settings, Trainer, TrainingError
from impls.numba_setup import numba
from tests.test_nn_network import slope_test

STRUCTURES = {
    "of units": "2x2x3->F();D(5,t);BN();D(4,s);D(3,sm)",
    "of channels": "8x9x2->C(3,4,t);BN();M(2);C(3,5,s);BN();F();D(3,sm)",
    "first": "4x4x2->BN();C(3,2,t);F();D(3,sm)",
    "last": "4x4x1->F();D(3);BN()",
    "with dropout": "4x4x1->F();D(6,t);DR(0.5);BN();D(3,sm)",
}


def some_data(count: int = 24, shape: tuple[int, int, int] = (4, 4, 2), classes: int = 3) -> Data:
    """Images with a mean and a deviation of their own, and targets."""
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((count, *shape)) * 3 + 2).astype(np.float32)
    return Data(x, np.eye(classes, dtype=np.float32)[rng.integers(0, classes, count)])


@pytest.mark.parametrize("text", STRUCTURES.values(), ids=STRUCTURES)
def test_gradients_are_the_slopes_of_the_loss_whose_batch_has_a_mean_of_its_own(text):
    network = Network(text, dtype="float64", seed=5)
    found, slopes = slope_test(network)
    assert np.abs(found).max() > 1e-3
    np.testing.assert_allclose(found, slopes, atol=2e-8)


@pytest.mark.parametrize("text", STRUCTURES.values(), ids=STRUCTURES)
def test_a_structure_with_it_is_read_back_from_both_of_its_texts(text):
    structure = parse(text)
    assert "BN();" in str(structure)
    assert parse(str(structure)) == parse(structure.long) == structure


def test_in_training_every_channel_has_betas_mean_and_gammas_deviation():
    network = Network("4x4x2->BN()")
    gamma, beta, *_ = network.layer_weights("bn0")
    gamma[...], beta[...] = (2, 3), (-1, 5)
    bound = Pass(network, 24, training=True)
    bound.x[...] = some_data().x
    bound.forward()
    variances = bound.x.astype(np.float64).var(axis=(0, 1, 2))
    np.testing.assert_allclose(bound.y.mean(axis=(0, 1, 2)), beta, atol=1e-6)
    np.testing.assert_allclose(
        bound.y.std(axis=(0, 1, 2)), gamma * np.sqrt(variances / (variances + EPSILON)), rtol=1e-6
    )


def test_a_backward_pass_moves_the_averages_and_a_forward_pass_leaves_them():
    network = Network("4x4x2->BN()")
    bound = Pass(network, 24, training=True)
    bound.x[...] = x = some_data().x
    before = network.weights.copy()
    bound.forward()
    np.testing.assert_array_equal(network.weights, before)
    bound.backward()
    *_, mean, variance = network.layer_weights("bn0")
    np.testing.assert_allclose(mean, (1 - MOMENTUM) * x.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, MOMENTUM + (1 - MOMENTUM) * x.var(axis=(0, 1, 2)), rtol=1e-6)


def test_inference_answers_by_the_averages_whatever_else_is_in_the_batch():
    network = Network("4x4x2->BN()")
    gamma, beta, mean, variance = network.layer_weights("bn0")
    gamma[...], beta[...], mean[...], variance[...] = 2, 1, 3, 4
    bound = Pass(network, 24, training=False)
    bound.x[...] = some_data().x
    bound.forward()
    np.testing.assert_allclose(bound.y, 2 * (bound.x - 3) / np.sqrt(4 + EPSILON) + 1, rtol=1e-5, atol=1e-6)


def test_a_frozen_layer_is_in_inference_in_training_too_and_lets_the_error_through():
    """Keras' rule; the slopes are those of constants."""
    options = {"bn2": Options(trainable=False)}
    network = Network("2x2x3->F();D(5,t);BN();D(3,sm)", options=options, dtype="float64")
    *_, mean, variance = network.layer_weights("bn2")
    mean[...], variance[...] = 0.3, 2
    before = network.named_weights()
    found, slopes = slope_test(network)
    np.testing.assert_allclose(found, slopes, atol=1e-8)
    np.testing.assert_array_equal(network.named_weights()["bn2/moving_mean"], before["bn2/moving_mean"])


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_float32_is_the_float64_result_rounded_far_from_zero_too(offset):
    """Deviations are squared, not values: nothing cancels."""
    ys, dxs = [], []
    for dtype in ("float32", "float64"):
        network = Network("3x3x40->F();D(40);BN();D(3)", dtype=dtype)
        _, bias = network.layer_weights("d1")
        bias[...] = offset
        bound = Pass(network, 128, training=True)
        bound.x[...] = np.random.default_rng(0).standard_normal(bound.x.shape).astype(np.float32)
        bound.forward()
        bound.dy[...] = np.random.default_rng(1).standard_normal(bound.dy.shape).astype(np.float32)
        bound.backward()
        ys.append(bound.output_of("bn2").copy())
        dxs.append(network.layer_weights("d1", network.gradients)[0].copy())
    allowed = 1e-6 + offset * 2.0**-22
    for found, exact in (ys, dxs):
        assert np.linalg.norm(found - exact) <= 2 * allowed * np.linalg.norm(exact)


@pytest.mark.parametrize("threads", [1, min(2, numba.config.NUMBA_NUM_THREADS)])
def test_the_same_step_has_the_same_result_by_any_number_of_threads(threads):
    """Large enough to be shared; sums are float64, so that the order is below float32's last place."""
    before = numba.get_num_threads()
    network = Network("32x32x8->BN();F();D(3,sm)")
    trainer = Trainer(network, some_data(16, (32, 32, 8)), Settings(optimizer=SGD(learning_rate=0.1), batch=16))
    try:
        numba.set_num_threads(threads)
        trainer.epoch()
    finally:
        numba.set_num_threads(before)
    *_, mean, variance = network.layer_weights("bn0")
    x = trainer.data.x.astype(np.float64)
    np.testing.assert_allclose(mean, (1 - MOMENTUM) * x.mean(axis=(0, 1, 2)), rtol=3e-7)
    np.testing.assert_allclose(variance, MOMENTUM + (1 - MOMENTUM) * x.var(axis=(0, 1, 2)), rtol=3e-7)


def test_a_step_whose_loss_is_not_finite_leaves_the_averages_as_they_were():
    data = some_data()
    network = Network("4x4x2->BN();F();D(3,sm)")
    network.layer_weights("d2")[0][...] = np.float32(3e38)
    before = network.weights.copy()
    trainer = Trainer(network, data, Settings(batch=24))
    with pytest.raises(TrainingError, match="layer d2"):
        trainer.epoch()
    np.testing.assert_array_equal(network.weights, before)


def test_a_file_keeps_the_averages_and_no_optimizer_moves_them(tmp_path):
    network = Network("4x4x2->BN();F();D(3,sm)")
    Trainer(
        network, some_data(), Settings(epochs=3, batch=8, weight_decay=0.1, optimizer=Adam(learning_rate=0.1))
    ).fit()
    assert network.named_weights()["bn0/moving_mean"].all()
    save(network, tmp_path / "network.safetensors")
    back = load(tmp_path / "network.safetensors")
    assert set(back.named_weights()) >= {"bn0/gamma", "bn0/beta", "bn0/moving_mean", "bn0/moving_variance"}
    np.testing.assert_array_equal(back.weights, network.weights)


def test_a_reference_model_with_it_is_refused_with_the_check_that_there_is(tmp_path):
    data = some_data(shape=(4, 4, 1))
    with pytest.raises(RuntimeError, match="--training"):
        trace(parse("F();BN();D(3,sm)"), data.x, data.targets.argmax(axis=1), 0, 1, tmp_path)


@pytest.mark.parametrize("library", ["keras", "torch"])
def test_the_trainee_of_a_library_has_our_weights_and_our_answers(library):
    """There and back bit for bit, and the same inference from moving averages that are no 0 and 1."""
    pytest.importorskip(library)
    from bench import keras_network, torch_network

    trainee = {"keras": keras_network.KerasTrainee, "torch": torch_network.TorchTrainee}[library]()
    text = "4x4x2->C(3,4,r);BN();F();D(8,r);BN();D(3,sm)"
    network, data = Network(text, seed=2), some_data()
    Trainer(network, data, Settings(epochs=2, batch=8)).fit()
    weights = network.named_weights()
    trainee.begin(network.structure, network.image_shape, data.x, data.targets, 0.01, 0)
    trainee.restart(weights)
    for name, array in trainee.weights().items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
    assert len(weights) == len(trainee.weights()) == 14
    bound = Pass(network, len(data), training=False)
    bound.x[...] = data.x
    bound.forward()
    bound.finish()
    np.testing.assert_allclose(trainee.predict(data.x, 8), bound.y, rtol=1e-4, atol=1e-6)
    trainee.train([np.arange(24)])
    assert (trainee.weights()["bn1/moving_mean"] != weights["bn1/moving_mean"]).any()


def test_its_loss_gets_smaller_where_inputs_are_far_from_zero():
    """What it is for: images around 1,000 teach a sigmoid nothing without it."""
    data = some_data(60)
    far = Data(data.x + 1000, data.targets)
    settings = Settings(epochs=30, batch=20, optimizer=SGD(learning_rate=0.5))
    last = {}
    for text in ("F();D(16,s);D(3,sm)", "BN();F();D(16,s);D(3,sm)"):
        last[text] = Trainer(Network(text, (4, 4, 2)), far, settings).fit()[-1]["loss"]
    plain, normalised = last.values()
    assert normalised < 0.7 * plain


def test_its_parameters_are_counted_as_keras_counts_them():
    (only,) = steps(parse("BN()"), (4, 4, 7))
    assert only.parameters == 4 * 7
