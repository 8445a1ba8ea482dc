"""Searching: choices become networks, a validation part judges, studies go on, processes share one; all by Optuna."""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bench import optuna_study, tuning
from bench.cli import main
from bench.holdout import Holdout, hold_out
from bench.optuna_study import OptunaStudy, TuneError
from bench.tuning import Choice, Search, Space, Trained, finish, implementations, train
from impls.nn.saving import load
from impls.nn.training import Data, evaluate
from impls.specs import SpecError
from reports import tune_folder

ROOT = Path(__file__).parents[1]
SMALL = Space(layers=(1, 2), widths=(4, 8), batches=(8, 16))
CHOICE = Choice(widths=(8, 6), dropout=0.25, rate=0.01, initializer="he_normal", clip="norm", clip_at=0.5, batch=16)


@pytest.fixture(scope="module")
def data() -> Holdout:
    """Three classes of 3x3 images with noise."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 3, 3, 1))

    def part(count: int) -> Data:
        labels = np.arange(count) % 3
        x = centres[labels] + 0.8 * rng.standard_normal((count, 3, 3, 1))
        return Data(x.astype(np.float32), np.eye(3, dtype=np.float32)[labels])

    return Holdout("made", part(48), part(30), part(30))


def study_in(address: str = "sqlite://", objective: str = "accuracy", **options) -> OptunaStudy:
    """A small study in a storage, of this process's memory if nobody says otherwise; skips without Optuna."""
    pytest.importorskip("optuna")
    options = {"epochs": 3} | options
    return OptunaStudy(Search(dataset="made", objective=objective, **options), SMALL, address)


def params_of(study: OptunaStudy) -> list:
    """What every finished trial was."""
    return [(dict(t.params), t.values) for t in study.trials() if t.state in optuna_study.FINISHED]


# --- choices ---


def test_a_choice_is_a_network_and_its_settings():
    search = Search(dataset="made", epochs=7, activation="tanh", optimizer="sgd", seed=3)
    network = CHOICE.network(search, (3, 3, 1), 3)
    assert str(network.structure) == "F();D(8,t);DR(0.25);D(6,t);DR(0.25);D(3,sm);"
    assert network.options["*"].initializer.name == "he_normal"
    settings = CHOICE.settings(search, 10)
    assert (settings.epochs, settings.batch, settings.clip_global_norm, settings.clip_value) == (7, 10, 0.5, None)
    assert (type(settings.optimizer).__name__, settings.optimizer.learning_rate) == ("SGD", 0.01)


@pytest.mark.parametrize("name", ["numpy", "numba_jit"])
def test_an_implementation_computes_every_layer_that_keeps_its_initializer(name):
    network = replace(CHOICE, implementation=name).network(Search(dataset="made"), (3, 3, 1), 3)
    for layer in ("d1", "d3", "d5"):
        options = network.options_of(layer)
        assert options.implementations["forward"] == name
        assert options.initializer.name == "he_normal"
    assert name in implementations()


def test_seconds_are_those_of_training_and_end_with_each_epoch(data):
    """The clock is read before and after each epoch's steps, and at no other time."""
    ticks = itertools.count()
    found = train(Search(dataset="made", epochs=4), CHOICE, data.train, data.validation, clock=lambda: next(ticks))
    assert found.seconds == [1, 2, 3, 4]
    assert next(ticks) == 8


def test_a_trained_choice_has_the_weights_of_its_best_epoch_and_is_the_same_every_time(data):
    search = Search(dataset="made", objective="loss", epochs=6)
    found, again = (train(search, CHOICE, data.train, data.validation) for _ in range(2))
    assert found.history == again.history
    best, epoch = tuning.OBJECTIVES["loss"].best(found.history)
    assert found.history[epoch - 1]["val_loss"] == best == min(record["val_loss"] for record in found.history)
    figures = evaluate(found.network, data.validation, "categorical_crossentropy", CHOICE.batch)
    assert figures["loss"] == pytest.approx(best)


def test_a_choice_that_diverges_is_told_and_judged_by_what_it_reached(data):
    wild = replace(CHOICE, rate=1e30, clip="none", clip_at=None, dropout=0.0)
    search = Search(dataset="made", optimizer="sgd")
    found = train(search, wild, data.train, data.validation)
    assert "the loss became" in found.failure
    assert tuning.OBJECTIVES["accuracy"].best([]) == (0.0, 0)
    assert tuning.OBJECTIVES["loss"].best([]) == (float("inf"), 0)


def test_the_test_part_is_looked_at_once_and_the_retrained_network_has_seen_the_rest(data, monkeypatch):
    looked, samples = [], []
    monkeypatch.setattr(tuning, "evaluate", lambda network, part, *more: looked.append(part) or {})
    begin = tuning.Trainer.__init__

    def noting(trainer, network, part, *more):
        samples.append(len(part))
        begin(trainer, network, part, *more)

    monkeypatch.setattr(tuning.Trainer, "__init__", noting)
    chosen = finish(Search(dataset="made", epochs=3), CHOICE, data)
    assert [part is data.test for part in looked] == [False, True]
    assert samples == [48, 78]
    assert 1 <= chosen.epoch <= 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "speed"}, "unknown objective 'speed'; known: accuracy, loss, time"),
        ({"activation": "swish"}, "activation='swish' must be one of"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
    ],
)
def test_a_search_that_cannot_be_is_refused(options, words):
    with pytest.raises(SpecError, match=words):
        Search(dataset="digits", **options)


def test_without_optuna_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = CliRunner().invoke(main, ["tune"])
    assert result.exit_code == 2
    assert "pip install -e '.[tune]'" in result.output


# --- studies ---


class Killed(BaseException):
    """What no program catches."""


@pytest.mark.parametrize("kind", ["sqlite:///", "journal:"])
@pytest.mark.parametrize("end", [KeyboardInterrupt, Killed])
def test_a_study_that_is_cut_within_trials_goes_on_as_it_would_have(kind, end, data, tmp_path, monkeypatch):
    """Trial 3, the same one again when it is begun anew, and trial 11, which has learned from others, are cut.

    A killed process leaves its trial running; that it has ended shows by its number, which nobody has any more.
    """
    address = f"{kind}{tmp_path}/study"
    whole = study_in(epochs=2)
    whole.run(data, 14)

    def cut(trial: int, epoch: int, _: object) -> None:
        if (trial, epoch) in ((3, 2), (4, 1), (13, 2)):
            raise end

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(optuna_study, "_this_process", lambda: (platform.node(), ended.pid))
    for _ in range(3):
        with pytest.raises(end):
            study_in(address, epochs=2).run(data, 14, cut)
    parts = study_in(address, epochs=2)
    parts.run(data, 14)
    assert params_of(parts) == params_of(whole)
    assert [trial.number for trial in parts.trials() if trial.state == "FAIL"] == [3, 4, 13]
    parts.run(data, 14)
    assert len(parts.trials()) == 17
    assert parts.finished == len(params_of(whole)) == 14
    for trial in whole.trials():
        assert set(trial.params) >= {"layers", "width_1", "dropout", "rate", "initializer", "clip", "batch"}
        assert trial.params["layers"] <= 2
        assert 1e-3 <= trial.params["rate"] <= 1e-1


def test_a_trial_that_fails_by_itself_says_why_and_is_not_begun_anew(data, tmp_path):
    """It would fail again, and nothing would come after it."""
    address = f"sqlite:///{tmp_path}/study"

    def fail(trial: int, *_: object) -> None:
        if trial == 1:
            raise MemoryError("8 GB")

    with pytest.raises(MemoryError):
        study_in(address, epochs=1).run(data, 3, fail)
    study = study_in(address, epochs=1)
    study.run(data, 3)
    assert [(trial.state, trial.failure) for trial in study.trials()[:3]] == [
        ("COMPLETE", ""),
        ("FAIL", "MemoryError: 8 GB"),
        ("COMPLETE", ""),
    ]
    assert study.finished == 3


def test_a_trial_that_another_process_works_on_is_left_to_it(data, tmp_path):
    """This process is there, and was before its trial."""
    address = f"sqlite:///{tmp_path}/study"

    def cut(*_: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        study_in(address, epochs=1).run(data, 2, cut)
    study = study_in(address, epochs=1)
    study.run(data, 2)
    assert [trial.state for trial in study.trials()] == ["RUNNING", "COMPLETE", "COMPLETE"]
    assert len({json.dumps(dict(trial.params)) for trial in study.trials()}) == 3


@pytest.mark.parametrize(
    ("machine", "begun", "abandoned"),
    [
        (platform.node(), datetime.now(), False),
        (platform.node(), datetime(2000, 1, 1), True),  # before the process that has the number now
        ("another machine", datetime(2000, 1, 1), False),
    ],
)
def test_a_trial_is_abandoned_where_the_number_of_its_process_is_a_later_ones(machine, begun, abandoned):
    trial = SimpleNamespace(user_attrs={optuna_study.OWNER: [machine, os.getpid()]}, datetime_start=begun)
    assert optuna_study._is_abandoned(trial) == abandoned


@pytest.mark.parametrize(("started", "warm"), [(1, 0), (1, 2), (3, 1)])
def test_a_hopeless_trial_ends_in_the_first_epoch_in_which_it_may(started, warm, data, monkeypatch):
    """Each trial here is worse than the median of those before; its time is kept as every other's."""
    monkeypatch.setattr(optuna_study, "STARTUP", started)
    monkeypatch.setattr(optuna_study, "WARM_EPOCHS", warm)
    begun = itertools.count(1)

    def worse(search, choice, train, validation, judge):
        history, accuracy = [], 1 / next(begun)
        for epoch in range(1, 5):
            history.append({"val_accuracy": accuracy})
            if judge(epoch, history[-1]):
                break
        return Trained(None, history, [0.5 * epoch for epoch in range(1, len(history) + 1)])

    monkeypatch.setattr(optuna_study, "train", worse)
    study = study_in(epochs=4)
    study.run(data, 6)
    trials = study.trials()
    assert [trial.state for trial in trials] == ["COMPLETE"] * started + ["PRUNED"] * (6 - started)
    assert {len(trial.curve) for trial in trials[started:]} == {warm + 1}
    assert {trial.seconds for trial in trials[started:]} == {0.5 * (warm + 1)}


def test_a_judge_that_has_seen_enough_ends_the_training(data):
    search = Search(dataset="made", epochs=6)
    found = train(search, CHOICE, data.train, data.validation, lambda epoch, _: epoch == 2)
    assert len(found.history) == len(found.seconds) == 2


def test_the_best_trial_is_the_one_that_was_judged_best_and_can_be_made_again(data, monkeypatch):
    monkeypatch.setattr(optuna_study, "ENOUGH", 4)
    study = study_in(objective="loss")
    study.run(data, 6)
    (best,) = [trial for trial in study.trials() if trial.on_front]
    assert best.values[0] == min(trial.values[0] for trial in study.trials() if trial.state == "COMPLETE")
    chosen = finish(study.search, study.best(), data)
    assert chosen.validation["loss"] == pytest.approx(best.values[0])
    shares = study.importance()
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())


def test_time_to_accuracy_gives_a_front_and_its_files(data, tmp_path):
    study = study_in(objective="time")
    study.run(data, 4)
    trials = study.trials()
    for trial in trials:
        accuracy, seconds = trial.values
        assert 0 <= accuracy <= 1
        assert 0 < seconds <= trial.seconds
        beaten = any(t.values[0] >= accuracy and t.values[1] <= seconds and t.values != trial.values for t in trials)
        assert trial.on_front != beaten
    found = tune_folder.Found.of(study, finish(study.search, study.best(), data))
    names = {path.name for path in tune_folder.write(tmp_path / "out", found)}
    assert names >= {"best.safetensors", "retrained.safetensors", "tune.md", "trials.csv", "front.png", "history.png"}
    assert (
        load(tmp_path / "out" / "best.safetensors").named_weights().keys() == found.chosen.judged.named_weights().keys()
    )
    assert len(pd.read_csv(tmp_path / "out" / "trials.csv")) == 4


def test_a_study_of_something_else_is_not_gone_on_with(tmp_path):
    address = f"sqlite:///{tmp_path}/study"
    study_in(address)
    with pytest.raises(TuneError, match=r"epochs 3, now 4.*--name"):
        study_in(address, epochs=4)


def test_where_time_is_judged_another_machine_or_thread_count_is_another_study(tmp_path):
    address = f"sqlite:///{tmp_path}/study"
    study_in(address, "time", place="machine a, threads: 2")
    with pytest.raises(TuneError, match="place machine a, threads: 2, now machine b, threads: 2"):
        study_in(address, "time", place="machine b, threads: 2")


def test_a_storage_that_cannot_be_opened_is_named(tmp_path):
    pytest.importorskip("optuna")
    with pytest.raises(TuneError, match="nonsense://x cannot be opened"):
        OptunaStudy(Search(dataset="digits"), SMALL, "nonsense://x")


def shared(address: str) -> OptunaStudy:
    """A study that two processes work on at once, with four trials and at most one more; both end well."""
    pytest.importorskip("optuna")
    words = ["tune", "--trials", "4", "--epochs", "1", "--threads", "1", "--storage", address, "--name", "shared"]
    command = [sys.executable, "-m", "bench", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, **streams) for _ in range(2)]
    for process in both:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
    search = Search(dataset="digits", epochs=1)
    return OptunaStudy(search, Space(), address, "shared")


def test_two_processes_share_a_study_and_no_two_trials_are_the_same(tmp_path):
    study = shared(f"sqlite:///{tmp_path}/study")
    trials = [trial for trial in study.trials() if trial.state in optuna_study.FINISHED]
    assert 4 <= len(trials) <= 5  # each finishes the one that it has begun
    assert len({json.dumps(dict(trial.params), sort_keys=True) for trial in trials}) == len(trials)


def test_two_processes_share_a_study_in_postgresql():
    address = os.environ.get("LAYERBENCH_POSTGRESQL")
    if not address:
        pytest.skip("no PostgreSQL server: LAYERBENCH_POSTGRESQL names none")
    assert len(shared(address).trials()) >= 4


def test_the_command_searches_the_digits_and_its_files_say_what_it_found(tmp_path):
    pytest.importorskip("optuna")
    words = ["tune", "--trials", "2", "--epochs", "2", "--threads", "1", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*words, "--storage", f"sqlite:///{tmp_path}/s.sqlite"])
    assert result.exit_code == 0, result.output
    assert "The best" in result.output
    network = load(tmp_path / "out" / "retrained.safetensors")
    figures = evaluate(network, hold_out("digits").test, "categorical_crossentropy", 256)
    assert f"{figures['accuracy']:.2%}" in result.output
