"""Contestants train the same network from the same weights on the same batches, each in its own process."""

import os
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from bench.cli import main
from bench.contest import Contest, entrants, judged
from bench.contestant import Contestant, OurTrainee, options_for
from bench.experiments import own, to_plain
from bench.keras_network import KerasTrainee
from bench.store import Store
from bench.torch_network import TorchTrainee
from impls.nn.network import Network
from impls.nn.optimizers import Adam
from impls.nn.saving import load
from impls.nn.structure import parse
from impls.nn.training import Settings
from impls.specs import SpecError

STRUCTURE = parse("C(3,4,r);M(2);C(3,4,t);A(2);F();D(12,s);D(5,sm);")
SHAPE = (8, 6, 2)
RNG = np.random.default_rng(0)
X = RNG.random((22, *SHAPE), np.float32)
TARGETS = np.eye(5, dtype=np.float32)[RNG.integers(0, 5, 22)]
SETTINGS = Settings(optimizer=Adam(learning_rate=0.01))
EXPERIMENT = replace(own("digits", "F();D(10,sm);"), epochs=2, batches=7)


def trained(trainee):
    """The trainee after two epochs of three batches whose sizes differ by one, and what it gave."""
    trainee.begin(STRUCTURE, SHAPE, X, TARGETS, SETTINGS, seed=0)
    initial = Network(STRUCTURE, SHAPE, seed=3).named_weights()
    trainee.restart(initial)
    start = trainee.weights()
    assert start.keys() == initial.keys()
    assert all(np.array_equal(start[name], initial[name]) for name in initial)
    found = [trainee.train(np.array_split(np.arange(22), 3)) for _ in range(2)]
    return found, trainee.predict(X, 8), trainee


@pytest.mark.parametrize("make", [KerasTrainee, TorchTrainee])
def test_other_libraries_learn_what_ours_learns(make):
    """From the same weights, which go in and come back without loss, and with the same Adam."""
    pytest.importorskip("torch" if make is TorchTrainee else "keras")
    ours, expected, _ = trained(OurTrainee())
    theirs, answers, _ = trained(make())
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
    np.testing.assert_allclose(answers, expected, rtol=2e-3)


@pytest.mark.parametrize("make", [OurTrainee, KerasTrainee, TorchTrainee])
def test_a_restart_forgets_every_step(make):
    """Optimizer and weights: the same training again gives the same."""
    pytest.importorskip("torch" if make is TorchTrainee else "keras")
    first, _, trainee = trained(make())
    trainee.restart(Network(STRUCTURE, SHAPE, seed=3).named_weights())
    again = [trainee.train(np.array_split(np.arange(22), 3)) for _ in range(2)]
    np.testing.assert_allclose(again, first, rtol=1e-5)


def test_keras_takes_another_beta_2():
    trainee = KerasTrainee(beta_2=0.9)
    trainee.begin(STRUCTURE, SHAPE, X, TARGETS, SETTINGS, seed=0)
    assert trainee.model.optimizer.beta_2 == 0.9


def test_an_implementation_computes_what_it_can():
    options = options_for("numpy_gemm", STRUCTURE, SHAPE)
    assert list(options) == ["c0", "c2"]
    assert set(options["c0"].implementations.values()) == {"numpy_gemm"}
    with pytest.raises(SpecError, match="unknown implementation 'nonsense'; known: auto, "):
        options_for("nonsense", STRUCTURE, SHAPE)
    with pytest.raises(SpecError, match="cv2 computes no layer of"):
        options_for("cv2", parse("F();D(5,sm);"), SHAPE)


class Recorder:
    """A trainee that writes down what it is given, and answers with this loss."""

    def __init__(self, loss=1.0):
        self.loss = loss
        self.seen = []

    def begin(self, *unused):
        pass

    def restart(self, weights):
        self.seen = []

    def train(self, parts):
        self.seen += [list(part) for part in parts]
        return self.loss, 0.5


@pytest.fixture
def begin(tmp_path):
    """Make a contestant, with a recorder if nobody says otherwise, begin on shared files."""
    for name, array in (("x_train", X), ("t_train", TARGETS), ("x_test", X)):
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "weights.npz", **Network(STRUCTURE, SHAPE).named_weights())

    def make(trainee=None):
        contestant = Contestant(threads=1)
        contestant.trainee = trainee or Recorder(1.0)
        request = {"structure": str(STRUCTURE), "image_shape": list(SHAPE), "folder": str(tmp_path), "seed": 4}
        answer = contestant.answer({"do": "begin", **request, "settings": to_plain(Settings(batches=4))})
        assert answer["first_step_s"] > 0
        return contestant

    return make


def test_all_contestants_get_the_same_batches_in_the_same_order(begin):
    """Every sample once an epoch, sizes that differ by one, another order in the next epoch."""
    one, other = begin(), begin()
    for epoch in (0, 1):
        for contestant in (one, other):
            contestant.answer({"do": "train", "epoch": epoch, "first": 0, "last": 4})
    assert one.trainee.seen == other.trainee.seen
    first, second = one.trainee.seen[:4], one.trainee.seen[4:]
    assert [len(part) for part in first] == [6, 6, 5, 5]
    assert sorted(i for part in first for i in part) == list(range(22))
    assert first != second


def test_an_epoch_in_steps_is_the_same_epoch(begin):
    whole, steps = begin(), begin()
    whole.answer({"do": "train", "epoch": 2, "first": 0, "last": 4})
    for k in range(4):
        steps.answer({"do": "train", "epoch": 2, "first": k, "last": k + 1})
    assert whole.trainee.seen == steps.trainee.seen


def test_a_loss_that_is_not_a_number_ends_the_training_with_its_epoch(begin):
    contestant = begin(Recorder(float("nan")))
    answer = contestant.answer({"do": "train", "epoch": 2, "first": 0, "last": 4})
    assert answer == {"status": "DIVERGED", "reason": "the loss became nan in epoch 3"}
    answer = contestant.answer({"do": "train", "epoch": 50, "first": 0, "last": 4, "epochs": 50})
    assert answer == {"status": "DIVERGED", "reason": "the loss became nan in epochs 51 to 100"}


def test_ours_says_in_its_own_words_in_which_epoch_of_which_turn_it_failed(begin):
    """Not in the first one, because every turn is a training of its own."""
    contestant = begin(OurTrainee("numpy"))
    turn = {"do": "train", "first": 0, "last": 4, "epochs": 2}
    assert "status" not in contestant.answer(turn | {"epoch": 0})
    contestant.trainee.trainer.data.targets[:] = np.nan
    answer = contestant.answer(turn | {"epoch": 2})
    assert answer["status"] == "DIVERGED"
    assert re.match(r"the loss became nan in epoch 3, batch 1, first seen after", answer["reason"])


def test_a_contest_gives_a_row_for_everyone_and_goes_on_without_those_who_fail(tmp_path):
    """One cannot begin, one is killed on its way; the killed one is replaced in the next repetition."""
    turns = []
    with Contest(entrants(["auto", "cv2", "numpy"], ["none"], threads=1)) as contest:

        def kill(rows, turn):
            turns.append((turn.epoch, [len(row.seconds) for row in rows]))
            if turn.epoch == 0:
                os.kill(contest._processes["ours:numpy"].pid, signal.SIGKILL)

        ours, cv2, killed = contest.run(EXPERIMENT, 0, kill)
        (learned,) = contest.learned()
        _, _, replaced = contest.run(EXPERIMENT, 1)
    assert (ours.status, len(ours.seconds), ours.steps) == ("OK", 2, (7, 7))
    assert ours.test_samples == 359
    assert 0 < ours.test_accuracy <= 1
    assert ours.losses[1] < ours.losses[0]
    assert (cv2.status, "cv2 computes no layer" in cv2.reason) == ("ERROR", True)
    assert (killed.status, len(killed.seconds), killed.test_accuracy) == ("CRASHED", 1, None)
    assert (replaced.status, len(replaced.seconds)) == ("OK", 2)
    assert turns == [(0, [1, 0, 1]), (1, [2, 0, 1])]
    assert learned.row == ours
    assert judged(learned.answers, learned.split.y_test) == (ours.test_accuracy, ours.test_loss)
    assert load(learned.save(tmp_path)).structure == EXPERIMENT.structure


def invoke(*words):
    return CliRunner().invoke(main, ["train", *words])


def test_training_is_stored_repetition_by_repetition_and_gone_on_with(tmp_path):
    db, table = str(tmp_path / "a.sqlite"), tmp_path / "a.csv"
    words = ("--structure", "F();D(10,sm);", "--epochs", "1", "--against", "none", "--threads", "1", "--db", db)
    first = invoke(*words)
    assert first.exit_code == 0, first.output
    assert "F();D(10,sm);  1 epochs, batches of 32" in first.output
    second = invoke(*words, "--repetitions", "2", "--resume", "--csv", str(table))
    assert "run 1: 1 of 2 done, 1 to go" in second.output
    assert "1/1 digits, repetition 2, epoch 1 of 1: ours " in second.stderr
    store = Store(db)
    assert [row.repetition for row in store.trainings()] == [0, 1]
    store.close()
    assert len(table.read_text().splitlines()) == 3


def test_figures_are_drawn_of_what_was_trained(tmp_path):
    words = ("--structure", "F();D(10,sm);", "--epochs", "2", "--repetitions", "2", "--against", "none")
    result = invoke(*words, "--threads", "1", "--db", str(tmp_path / "a.sqlite"), "--plots", str(tmp_path / "plots"))
    assert result.exit_code == 0, result.output
    found = sorted(path.stem for path in (tmp_path / "plots").iterdir())
    assert found == ["digits-accuracy", "digits-loss", "digits-ours-confusion", "digits-ours-mistakes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--experiment", "12"], "unknown experiment '12'"),
        (["--experiment", "all", "--dataset", "mnist"], "not both"),
        (["--batch", "8", "--batches", "8"], "give --batch or --batches, not both"),
        (["--structure", "F();D(9,sm);"], "has 10 classes"),
        (["--structure", "F();D(10,sm);", "--batch", "100000"], "only 1438 samples"),
        (["--against", "caffe"], "unknown competitor 'caffe'"),
    ],
)
def test_bad_input_is_answered_in_one_line_with_status_2(tmp_path, words, message):
    result = invoke(*words, "--db", str(tmp_path / "a.sqlite"))
    assert result.exit_code == 2
    assert message in result.output
