"""Training: what moves, what stops it, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from impls.nn.network import EVERY, Network, Options
from impls.nn.optimizers import SGD, Adam
from impls.nn.training import (
    Data,
    EarlyStopping,
    Settings,
    Trainer,
    TrainingError,
    batches,
    evaluate,
    norm_of,
    predict,
    sampled,
    steps_per_epoch,
)
from impls.specs import SpecError

TEXT = "4x4x1->F();D(8,r);D(3,sm)"


def data(count: int = 60, seed: int = 0) -> Data:
    """Three classes that a small network tells apart: a bright row each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    x = rng.normal(0, 0.3, (count, 4, 4, 1))
    x[np.arange(count), labels] += 1
    return Data(x.astype(np.float32), np.eye(3, dtype=np.float32)[labels])


def trained(**settings) -> Trainer:
    """A trainer after its fit."""
    trainer = Trainer(Network(TEXT, seed=1), data(), Settings(**{"epochs": 5, "batch": 16, **settings}))
    trainer.fit()
    return trainer


def test_training_lowers_the_loss_and_classifies():
    """And evaluation on other samples agrees."""
    trainer = trained(epochs=60, optimizer=Adam(learning_rate=0.01))
    assert trainer.history[-1]["loss"] < 0.1 < trainer.history[0]["loss"]
    assert evaluate(trainer.network, data(seed=1), "categorical_crossentropy")["accuracy"] > 0.95


def test_the_same_seed_gives_the_same_weights_and_another_other_ones():
    """Bit for bit: order, dropout and arithmetic repeat."""
    first, second, third = trained(), trained(), trained(seed=7)
    np.testing.assert_array_equal(first.network.weights, second.network.weights)
    assert (first.network.weights != third.network.weights).any()


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (Settings(batch=4), [4, 4, 2]),
        (Settings(batches=4), [3, 3, 2, 2]),
        (Settings(batches=20), [1] * 10),
        (Settings(batch=100), [10]),
    ],
)
def test_batches_cover_every_sample_once(settings, sizes):
    """A number of batches has sizes that differ by one at most, the larger ones first."""
    parts = list(batches(np.arange(10), settings))
    assert [len(part) for part in parts] == sizes
    assert sorted(np.concatenate(parts)) == list(range(10))


def test_a_step_of_gradient_descent_with_penalties_is_the_formula():
    """w <- w - rate * (g + l1 sign(w) + 2 l2 w): Keras' convention."""
    options = {EVERY: Options(l1_kernel=0.01, l2_kernel=0.1, l2_bias=0.2)}
    network = Network(TEXT, options=options, seed=1)
    for parameter in network.parameters:
        if parameter.kind == "bias":
            parameter.of(network.weights)[...] = 0.5
    plain = Network(TEXT, seed=1)
    plain.weights[...] = network.weights
    settings = Settings(optimizer=SGD(learning_rate=0.1))
    steps = {}
    for each in (network, plain):
        trainer = Trainer(each, data(), settings)
        before = each.named_weights()
        loss, _ = trainer.step(np.arange(60))
        steps[each is plain] = loss, {name: each.named_weights()[name] - w for name, w in before.items()}, before
    penalty = 0.0
    for name, w in steps[False][2].items():
        l1, l2 = (0.01, 0.1) if "kernel" in name else (0.0, 0.2)
        penalty += l1 * np.abs(w).sum() + l2 * np.square(w).sum()
        expected = steps[True][1][name] - 0.1 * (l1 * np.sign(w) + 2 * l2 * w)
        np.testing.assert_allclose(steps[False][1][name], expected, atol=1e-6)
    assert steps[False][0] - steps[True][0] == pytest.approx(penalty, rel=1e-4)


@pytest.mark.parametrize("clip", ["clip_value", "clip_norm", "clip_global_norm"])
def test_clipping_limits_what_it_says(clip):
    """With plain descent the step is rate times the clipped gradient."""
    network = Network(TEXT, seed=1)
    trainer = Trainer(network, data(), Settings(optimizer=SGD(learning_rate=1.0), **{clip: 1e-3}))
    before = network.weights.copy()
    trainer.step(np.arange(60))
    steps = [p.of(network.weights - before) for p in network.parameters]
    largest = {
        "clip_value": max(np.abs(s).max() for s in steps),
        "clip_norm": max(np.linalg.norm(s) for s in steps),
        "clip_global_norm": math.sqrt(sum(np.square(s).sum() for s in steps)),
    }[clip]
    assert largest == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("clip", ["clip_norm", "clip_global_norm"])
def test_a_gradient_whose_square_is_beyond_float32_is_shrunk_and_not_lost(clip):
    """1e20 everywhere: the step goes as far as is allowed, the same way along every axis."""
    network = Network(TEXT, seed=1)
    trainer = Trainer(network, data(), Settings(optimizer=SGD(learning_rate=1.0), **{clip: 1.0}))
    before = network.weights.copy()
    network.gradients[...] = 0
    for parameter in network.parameters:
        parameter.of(network.gradients)[...] = 1e20
    trainer.update()
    steps = [p.of(before - network.weights).ravel() for p in network.parameters]
    for part in steps if clip == "clip_norm" else [np.concatenate(steps)]:
        np.testing.assert_allclose(part, 1 / math.sqrt(part.size), rtol=1e-4)


def test_a_norm_is_that_of_all_arrays_together_however_large():
    assert norm_of([np.array([3e20], np.float32), np.array([[4e20]], np.float32)]) == pytest.approx(5e20)


def test_weight_decay_shrinks_weights_beside_the_step():
    """A rate of 0.1 and a decay of 0.5 take 5 % of each weight before the step."""
    weights = []
    for decay in (0.0, 0.5):
        network = Network(TEXT, seed=1)
        before = network.weights.copy()
        Trainer(network, data(), Settings(optimizer=SGD(learning_rate=0.1), weight_decay=decay)).step(np.arange(60))
        weights.append(network.weights.copy())
    np.testing.assert_allclose(weights[0] - weights[1], 0.05 * before, atol=1e-6)


def test_frozen_layers_keep_their_weights_to_the_bit():
    """Transfer: what was learned before stays."""
    network = Network(TEXT, options={"d1": Options(trainable=False)}, seed=1)
    before = network.named_weights()
    Trainer(network, data(), Settings(epochs=2)).fit()
    after = network.named_weights()
    np.testing.assert_array_equal(before["d1/kernel"], after["d1/kernel"])
    assert (before["d2/kernel"] != after["d2/kernel"]).any()


def test_early_stopping_waits_for_its_patience_and_restores_the_best():
    """The learning rate is so high that the loss soon only rises."""
    stopping = EarlyStopping(monitor="val_loss", patience=3)
    settings = Settings(epochs=200, validation_split=0.3, early_stopping=stopping, optimizer=Adam(learning_rate=0.1))
    trainer = Trainer(Network(TEXT, seed=1), data(), settings)
    history = trainer.fit()
    best = int(np.argmin([record["val_loss"] for record in history]))
    assert len(history) == best + 1 + 3 < 200
    assert evaluate(trainer.network, trainer.validation, "categorical_crossentropy")["loss"] == pytest.approx(
        history[best]["val_loss"]
    )


def test_a_callback_sees_every_epoch_and_may_end_training():
    """It returns True."""
    seen = []
    trainer = Trainer(Network(TEXT), data(), Settings(epochs=9))
    trainer.fit([lambda t, record: seen.append(record["loss"]), lambda t, record: len(t.history) == 4])
    assert len(seen) == 4


def test_nothing_is_allocated_per_step_after_the_first():
    """Addresses of all buffers stay, and memory does not grow by as much as one layer's output."""
    import tracemalloc

    trainer = Trainer(Network("16x16x1->C(3,8,r);M(2);DR(0.5);F();D(3,sm)"), _images(64), Settings(batch=64))
    for _ in range(3):
        trainer.step(np.arange(64))
    tracemalloc.start()
    trainer.step(np.arange(64))
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(5):
        trainer.step(np.arange(64))
    grown = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert grown < 64 * 8 * 8 * 8 * 4


def _images(count: int) -> Data:
    rng = np.random.default_rng(0)
    return Data(
        rng.standard_normal((count, 16, 16, 1), np.float32), np.eye(3, dtype=np.float32)[rng.integers(0, 3, count)]
    )


def test_an_answer_does_not_depend_on_the_samples_beside_it():
    """Every pass is of one size."""
    network, x = Network(TEXT, seed=1), data().x
    whole = predict(network, x, 16)
    for part in (slice(0, 1), slice(5, 23), slice(59, 60)):
        np.testing.assert_array_equal(predict(network, x[part], 16), whole[part])


def test_infinite_data_are_refused_with_the_sample():
    """Before anything is trained."""
    bad = data()
    bad.x[17, 0, 0, 0] = np.inf
    with pytest.raises(TrainingError, match="samples hold NaN or infinity, first in number 17"):
        Trainer(Network(TEXT), bad)


def test_a_loss_that_explodes_ends_training_with_epoch_batch_and_layer_and_finite_weights():
    """The remedy is named too."""
    settings = Settings(optimizer=SGD(learning_rate=1e30), loss="mean_squared_error", batch=20, epochs=9)
    trainer = Trainer(Network("4x4x1->F();D(8,r);D(3)"), data(), settings)
    with pytest.raises(TrainingError, match=r"epoch \d+, batch \d+, first seen after .*lower learning rate"):
        trainer.fit()
    assert np.isfinite(trainer.network.weights).all()


@pytest.mark.parametrize(
    ("steps_before", "parts", "words"),
    [
        (0, [0, 1, 2], "epoch 1, batch 3"),
        (2, [2], "epoch 1, batch 3"),
        (3, [0, 1, 0, 1, 2], "epoch 3, batch 2"),
    ],
)
def test_a_failure_is_in_the_epoch_and_batch_that_the_steps_say(steps_before, parts, words):
    """However many epochs, or parts of one, are trained at once; three batches are an epoch, one has the bad sample."""
    trainer = Trainer(Network(TEXT), data(), Settings(batch=20))
    trainer.data.targets[59] = np.nan
    thirds = np.split(np.arange(60), 3)
    for _ in range(steps_before):
        trainer.train([thirds[0]])
    with pytest.raises(TrainingError, match=words):
        trainer.train([thirds[part] for part in parts])


@pytest.mark.parametrize("settings", [{"batch": 7}, {"batches": 7}, {"batches": 99}, {"batch": 99}])
@pytest.mark.parametrize("sampling", ["permutation", "independent"])
def test_an_epoch_has_as_many_batches_as_are_said_to_be_in_it(settings, sampling):
    settings = Settings(sampling=sampling, **settings)
    drawn = list(sampled(20, settings, np.random.default_rng(0)))
    assert steps_per_epoch(20, settings) == len(drawn)
    assert all(len(part) for part in drawn)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Settings(loss="hinge"), "categorical_crossentropy"),
        (lambda: Settings(epochs=0), "epochs=0"),
        (lambda: Settings(clip_value=1, clip_norm=1), "exclude each other"),
        (lambda: Settings(validation_split=1.0), "validation_split=1.0"),
        (lambda: Trainer(Network(TEXT), Data(np.zeros((5, 3, 3, 1)), np.zeros((5, 3)))), r"\(3, 3, 1\)"),
        (lambda: Trainer(Network(TEXT), Data(np.zeros((5, 4, 4, 1)), np.zeros((5, 2)))), r"\(5, 2\).*\(5, 3\)"),
        (lambda: Trainer(Network(TEXT), Data(np.zeros((0, 4, 4, 1)), np.zeros((0, 3)))), "no training samples"),
    ],
)
def test_bad_input_is_named(make, words):
    """What was given, and what is known or expected."""
    with pytest.raises(SpecError, match=words):
        make()
