"""Studies: what signals do, what each arm does to the one training loop, and the tables, figures and files of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bench import signals, studies
from bench.cli import main
from bench.holdout import Holdout
from bench.studies import Arm, descent, exponential_average, train
from impls.nn.initializers import Initializer
from impls.nn.optimizers import Adam
from impls.nn.schedules import StepDecay
from impls.nn.training import Data, EarlyStopping, Settings, Trainer
from reports import study_folder, study_plots, study_tables


@pytest.fixture(scope="module")
def data() -> Holdout:
    """Three classes of 4x4 images that can be told apart, with noise: trained in milliseconds."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 4, 4, 1))

    def part(count: int) -> Data:
        labels = np.arange(count) % 3
        x = centres[labels] + 2 * rng.standard_normal((count, 4, 4, 1))
        return Data(x.astype(np.float32), np.eye(3, dtype=np.float32)[labels])

    return Holdout("made", part(60), part(30), part(30))


@pytest.fixture(scope="module")
def stacks() -> dict[str, signals.Stack]:
    """The three demonstrations by their labels."""
    return {each.label: each for each in signals.stacks(75)}


def test_standard_normal_products_overflow_after_some_28_layers(stacks):
    """Each product multiplies the deviation by sqrt(512); float32 ends at 3.4e38."""
    stack = stacks["standard normal"]
    assert 26 <= stack.not_finite <= 29
    assert stack.not_finite <= stack.not_a_number <= stack.not_finite + 2
    assert stack.deviations[9] == pytest.approx(512**5, rel=0.3)
    assert math.isnan(stack.deviations[-1])


def test_too_small_products_vanish(stacks):
    """Below 1.4e-45 there is nothing left in float32: log(1.4e-45) / log(0.01 sqrt(512)) = 69.5."""
    stack = stacks["too small"]
    assert 66 <= stack.vanished <= 72
    assert stack.deviations[-1] == 0
    assert stack.not_finite is None


def test_scaled_products_keep_a_deviation_near_one(stacks):
    stack = stacks["scaled by 1 / sqrt(512)"]
    assert all(0.8 < deviation < 1.25 for deviation in stack.deviations)
    assert (stack.not_finite, stack.not_a_number, stack.vanished) == (None, None, None)


def test_he_keeps_relus_signal_and_gradient_and_zeros_have_none(data):
    found = {(each.activation, each.initializer): each for each in signals.signals(data)}
    he, small, zeros = (found["relu", name] for name in ("He normal", "normal, deviation 0.05", "zeros"))
    assert 0.1 < he.outputs[-1] / he.outputs[0] < 10
    assert 0.05 < he.gradients[-1] / he.gradients[0] < 20
    assert small.outputs[-1] < 1e-6 * small.outputs[0]
    assert not any(zeros.outputs)
    sigmoid = found["sigmoid", "Glorot normal"]
    assert sigmoid.gradients[0] < 1e-6 * sigmoid.gradients[-1]


def test_smoothing_is_the_mean_of_what_was_weighted_by_its_age():
    values = [3.0, 1.0, 2.0]
    expected = [np.average(values[: i + 1], weights=0.9 ** np.arange(i + 1)[::-1]) for i in range(3)]
    np.testing.assert_allclose(exponential_average(values), expected)
    np.testing.assert_array_equal(exponential_average(values, 0), values)


def test_an_arm_is_trained_by_the_one_training_loop(data):
    """The same history as a Trainer's own, notes or not; full-batch descent takes a step an epoch."""
    arm = Arm(label="", settings=descent(7))
    outcome = train(arm, data, seed=4)
    plain = Trainer(arm.network(data, 4), data.train, arm.settings, data.validation).fit()
    assert list(outcome.history) == plain
    assert len(outcome.norms) == len(outcome.rates) == 7


@pytest.mark.parametrize(
    ("clip", "limit"),
    [({"clip_global_norm": 0.01}, 0.01), ({"clip_value": 0.001}, 0.001 * math.sqrt(64 * 17 + 3 * 65))],
)
def test_clipping_bounds_the_norm_that_is_noted_after_it_and_not_the_one_before(data, clip, limit):
    outcome = train(Arm(label="", settings=descent(3, **clip)), data)
    assert min(outcome.norms) > limit
    assert max(outcome.clipped) <= limit * (1 + 1e-5)


def test_early_stopping_ends_and_restores_the_best_epochs_weights(data):
    optimizer = Adam(learning_rate=0.01)
    settings = Settings(epochs=100, batch=10, optimizer=optimizer, early_stopping=EarlyStopping(patience=5))
    outcome = train(Arm(label="", settings=settings, hidden="D(64,r);"), data)
    losses = [record["val_loss"] for record in outcome.history]
    assert len(losses) == outcome.best_epoch + 5 < 100
    assert outcome.kept["loss"] == pytest.approx(min(losses))
    assert losses[-1] > min(losses)


def test_a_range_test_recommends_the_rate_whose_step_lowered_the_loss_most(data):
    outcome = train(Arm(label="", settings=descent(30, StepDecay(1e-3, 1.5, 1))), data)
    rate = studies.best_rate(outcome)
    losses = [record["loss"] for record in outcome.history]
    falls = dict(zip(outcome.rates, -np.diff(np.minimum.accumulate(losses)), strict=False))
    assert falls[rate] == max(falls.values())
    assert outcome.arm.is_range_test
    assert not Arm(label="", settings=descent(30, StepDecay(1.0, 0.5, 1))).is_range_test


def test_an_arm_that_diverges_is_an_outcome_that_says_so(data):
    arm = Arm(label="", settings=descent(50, 1e30), hidden="D(64,r)x3;", initializer=Initializer("normal", stddev=9))
    outcome = train(arm, data)
    assert "the loss became" in outcome.failure
    assert len(outcome.history) < 50
    assert math.isfinite(outcome.kept["accuracy"])


def test_what_is_shown_of_an_epoch_is_its_last_step_in_an_arm_that_fails_within_a_later_one(data):
    """The rate, halved at every step, says which step it is: three batches an epoch, two steps into the third."""
    arm = Arm(label="", settings=descent(5, StepDecay(1.0, 0.5, 1), batches=3, shuffle=False))
    own = replace(data, train=Data(data.train.x, data.train.targets.copy()))

    def poison(trainer: Trainer, record: dict[str, float]) -> None:
        if len(trainer.history) == 2:
            trainer.data.targets[-1] = math.nan

    outcome = train(arm, own, 0, None, poison)
    assert "epoch 3, batch 3" in outcome.failure
    assert (len(outcome.norms), outcome.ends) == (8, (3, 6))
    frame = study_tables.report("", (), [outcome]).frame
    assert frame["learning_rate"].tolist() == [0.5**2, 0.5**5]
    assert frame["gradient_norm"].tolist() == [outcome.norms[2], outcome.norms[5]]


@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_study_has_its_table_figures_and_files(name, data, tmp_path):
    """In two epochs an arm; the frame has every one of them."""
    logged = []
    found = study_folder.conduct(name, data, 2, 0, lambda arm, epoch, record: logged.append((arm.name, epoch)))
    paths = study_folder.write(tmp_path, found)
    arms = list(studies.STUDIES[name].arms(2))
    assert all(path.stat().st_size > 100 for path in paths)
    assert {path.suffix for path in paths} == {".md", ".csv", ".png"}
    frame = pd.read_csv(tmp_path / f"{name}.csv")
    assert len(frame) == 2 * len(arms)
    assert logged == [(arm.name, 2) for arm in arms]
    assert frame["val_accuracy"].between(0, 1).all()


def test_arms_that_came_to_the_same_share_a_line_of_the_legend(data):
    """They hide one another in the figure."""
    same = [train(Arm(label=label, settings=descent(2)), data) for label in ("one", "two")]
    other = train(Arm(label="other", settings=descent(2, 0.1)), data)
    (legend,) = study_plots.curves([*same, other]).legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["one = two", "other"]


def test_depth_varies_the_number_of_hidden_layers_and_dropout_the_rate():
    depths = [arm.hidden.count("D(") for arm in studies.STUDIES["depth"].arms(1) if arm.group == "relu, normalised"]
    assert depths == list(range(1, 11))
    assert [arm.x for arm in studies.STUDIES["dropout"].arms(1)] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_the_command_writes_a_study_of_the_digits_into_a_folder(tmp_path):
    words = ("study", "smoothing", "--epochs", "1", "--threads", "1", "-o", str(tmp_path))
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "1151 samples train, 287 validate" in result.output
    assert (tmp_path / "smoothing-curves.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("study", "nonsense"), "unknown study 'nonsense'; known: signals, initializers"),
        (("study", "--dataset", "housing", "depth"), "housing has no classes"),
    ],
)
def test_bad_input_is_named(words, message):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert message in result.output
