"""Two options of the training loop, adaptive loss and equalisation: what they change, and what they leave as it was."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from impls.nn.equalised import Response
from impls.nn.network import EVERY, Network, Options
from impls.nn.optimizers import SGD, Adam
from impls.nn.training import Data, EarlyStopping, Record, Settings, Trainer, TrainingError, evaluate, predict
from impls.specs import SpecError

MSE, CROSS_ENTROPY = "mean_squared_error", "categorical_crossentropy"
SIGMOIDS = "1x1x6->F();D(16,s);D(16,s);D(3,sm)"
REGRESSION = "1x1x2->F();D(16,t);D(1)"


def classes() -> Data:
    """Three classes, a group of points each."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    x = rng.normal(0, 0.3, (120, 1, 1, 6))
    x[np.arange(120), 0, 0, labels] += 2
    return Data(x.astype(np.float32), np.eye(3, dtype=np.float32)[labels])


def lifted() -> Data:
    """A response of two variables, far from 0 and in another unit: 1000 + 50 f."""
    x = np.random.default_rng(0).standard_normal((150, 1, 1, 2)).astype(np.float32)
    y = 1000 + 50 * np.sin(x[:, 0, 0, 0]) * x[:, 0, 0, 1]
    return Data(x, y[:, None].astype(np.float32))


def trained(text: str, data: Data, **settings) -> tuple[Trainer, list[str]]:
    """A trainer after its fit, validated on the samples that it learns; of every epoch the loss that came after it."""
    trainer = Trainer(Network(text, seed=1), data, Settings(**{"epochs": 60, "batch": 30, **settings}), data)
    descended: list[str] = []
    trainer.fit([lambda own, _: descended.append(own.descended.name)])
    return trainer, descended


def test_losses_before_the_metric_lead_off_its_plateau():
    """Squares of probabilities have next to no slope behind two layers of sigmoids; a cross-entropy has."""
    plan = {"loss": MSE, "optimizer": SGD(learning_rate=0.5)}
    alone, led = (trained(SIGMOIDS, classes(), first_losses=f, **plan)[0] for f in ((), (CROSS_ENTROPY,)))
    assert led.history[-1]["val_loss"] < 0.2 * alone.history[-1]["val_loss"]


def test_the_loss_changes_when_it_stalls_and_in_the_last_quarter_at_the_latest():
    """A step too small for a hundredth less in two epochs stalls at once; fast descent goes on until it must end."""
    plan = {"loss": MSE, "first_losses": (CROSS_ENTROPY,), "epochs": 20, "loss_patience": 2}
    _, stalled = trained(SIGMOIDS, classes(), optimizer=SGD(learning_rate=1e-6), **plan)
    assert stalled == [CROSS_ENTROPY] * 2 + [MSE] * 18
    _, falling = trained(SIGMOIDS, classes(), optimizer=Adam(learning_rate=0.01), **plan)
    assert falling == [CROSS_ENTROPY] * 14 + [MSE] * 6


def test_validation_is_by_the_metric_from_the_first_epoch_on():
    """Whatever is descended: its own loss is another number."""
    trainer = Trainer(
        Network(SIGMOIDS, seed=1), classes(), Settings(loss=MSE, first_losses=(CROSS_ENTROPY,)), classes()
    )
    record = trainer.epoch()
    assert record["val_loss"] == pytest.approx(evaluate(trainer.network, classes(), MSE)["loss"])
    assert record["loss"] > 3 * record["val_loss"]


def test_reset_begins_with_the_first_loss_again():
    trainer, descended = trained(SIGMOIDS, classes(), loss=MSE, first_losses=(CROSS_ENTROPY,), epochs=8)
    assert descended[-1] == MSE
    trainer.reset()
    assert trainer.descended.name == CROSS_ENTROPY


def test_equalisation_takes_offset_and_unit_out_of_the_fit():
    """In as many epochs; the network answers in the targets' own unit all the same."""
    plan = {"loss": MSE, "optimizer": Adam(learning_rate=0.01)}
    fixed, equalised = (trained(REGRESSION, lifted(), equalise=flag, **plan)[0] for flag in (False, True))
    errors = [evaluate(each.network, lifted(), MSE)["loss"] for each in (fixed, equalised)]
    assert errors[1] < 0.3 * lifted().targets.var() < 0.01 * errors[0]


def test_the_answers_of_an_equalised_network_are_the_least_squares_of_its_targets():
    """Nothing is left of a linear part, and losses were recorded in the unit that the answers have at the end."""
    trainer, _ = trained(REGRESSION, lifted(), loss=MSE, optimizer=Adam(learning_rate=0.01), equalise=True)
    answers = predict(trainer.network, lifted().x)[:, 0].astype(float)
    slope, offset = np.polyfit(answers, lifted().targets[:, 0].astype(float), 1)
    assert slope == pytest.approx(1, abs=1e-4)
    assert offset == pytest.approx(0, abs=0.1)
    last = trainer.history[-1]["val_loss"]
    assert 0.8 * last < evaluate(trainer.network, lifted(), MSE)["loss"] <= last * 1.0001


def test_a_response_comes_to_what_the_network_answers_epoch_by_epoch():
    """From deviation 1 to where a regression on the answers has slope 1: the maps of all epochs are one map."""
    rng = np.random.default_rng(0)
    answers = rng.standard_normal((200, 1))
    y = 1000 + 7 * (answers + 0.5 * rng.standard_normal((200, 1)))
    response = Response(Network(REGRESSION), y)
    first = response.of(y)
    assert first.mean() == pytest.approx(0, abs=1e-9)
    assert first.std() == pytest.approx(1)
    for _ in range(100):
        response.adapt(answers)
    slope, offset = np.polyfit(answers[:, 0], response.of(y)[:, 0], 1)
    assert slope == pytest.approx(1, abs=1e-3)
    assert offset == pytest.approx(0, abs=1e-3)


def test_finishing_twice_is_finishing_once_and_the_targets_stay_as_they_were():
    data, before = lifted(), lifted().targets
    stopping = EarlyStopping(patience=100)
    trainer, _ = trained(REGRESSION, data, loss=MSE, equalise=True, epochs=5, early_stopping=stopping)
    once = predict(trainer.network, data.x)
    trainer.finish()
    np.testing.assert_allclose(predict(trainer.network, data.x), once, rtol=1e-6)
    np.testing.assert_array_equal(data.targets, before)


class FailsInTheFourthEpoch(Trainer):
    """A trainer whose loss is lost after three epochs."""

    def train(self, parts: Iterable[np.ndarray]) -> Record:
        """Three times as it is."""
        if len(self.history) == 3:
            raise TrainingError("the loss became nan in epoch 4")
        return super().train(parts)


def test_training_that_fails_leaves_an_equalised_network_in_the_unit_of_its_targets():
    """As if it had been meant to end with the last epoch that came to its end."""
    plan = {"loss": MSE, "optimizer": Adam(learning_rate=0.01), "batch": 30, "equalise": True}
    whole, _ = trained(REGRESSION, lifted(), epochs=3, **plan)
    failing = FailsInTheFourthEpoch(Network(REGRESSION, seed=1), lifted(), Settings(epochs=60, **plan))
    with pytest.raises(TrainingError, match="epoch 4"):
        failing.fit()
    np.testing.assert_array_equal(failing.network.weights, whole.network.weights)


def test_answers_that_are_not_finite_adapt_nothing_and_the_map_is_undone_at_the_end():
    """Where a network diverges: its weights, and the response, stay finite."""
    y = 1000 + 50 * np.random.default_rng(0).standard_normal((20, 1))
    network = Network(REGRESSION, seed=1)
    response = Response(network, y)
    before = network.layer_weights("d2")[0].copy()
    first = response.of(y)
    lost = np.full((20, 1), np.inf)
    response.adapt(lost)
    np.testing.assert_array_equal(response.of(y), first)
    response.give_back(lost)
    kernel, bias = network.layer_weights("d2")
    np.testing.assert_allclose(kernel, before * y.std(), rtol=1e-6)
    np.testing.assert_allclose(bias, y.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"first_losses": ("hinge",)}, "unknown loss 'hinge'"),
        ({"first_losses": (MSE,), "loss_patience": 0}, "loss_patience=0"),
        ({"first_losses": (MSE,), "early_stopping": EarlyStopping(monitor="loss")}, "watch 'val_loss'"),
        ({"equalise": True}, "mean squared error alone, not categorical_crossentropy"),
        ({"equalise": True, "loss": MSE, "first_losses": ("binary_crossentropy",)}, "not binary_crossentropy, mean"),
    ],
)
def test_settings_that_cannot_be_together_are_named(settings, words):
    with pytest.raises(SpecError, match=words):
        Settings(**settings)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("1x1x2->F();D(2)", {}, "one linear unit"),
        ("1x1x2->F();D(1,t)", {}, "one linear unit"),
        ("1x1x2->C(1,1);F()", {}, "one linear unit"),
        (REGRESSION, {EVERY: Options(l2_kernel=0.1)}, "penalties exclude"),
        (REGRESSION, {"d2": Options(trainable=False)}, "the layer d2; it must be trainable"),
    ],
)
def test_a_network_that_cannot_be_equalised_is_refused_with_the_reason(text, options, words):
    network = Network(text, options=options)
    data = Data(*(np.zeros((9, *shape), np.float32) for shape in (network.image_shape, network.output_shape)))
    with pytest.raises(SpecError, match=words):
        Trainer(network, data, Settings(loss=MSE, equalise=True))
