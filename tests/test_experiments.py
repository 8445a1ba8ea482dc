"""What is trained: the published experiments by their numbers, own structures, and what cannot be."""

import csv
import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

import datasets
from bench.contest import entrants, judged, missing
from bench.experiments import Turn, images, own, require_fit, select
from bench.results import Run, Training
from bench.statistics import equivalence, equivalence_of_shares
from bench.store import Store, StoreError
from impls.nn.structure import parse
from impls.specs import SpecError
from reports import contests

TABLE = Path(__file__).parents[1] / "reports" / "published" / "experiments.csv"
RUN = Run("layerbench train", "training", seed=0, threads=2, started="2026-01-01T00:00:00+00:00", machine={"cpu": "x"})
ROW = Training(
    experiment="digits",
    dataset="digits",
    structure="F();D(10,sm);",
    plan="2 epochs, batches of 32, learning rate 0.001",
    repetition=0,
    contestant="ours",
    competitor=False,
    status="OK",
    learning_rate=0.001,
    threads=2,
    setup_s=0.1,
    first_step_s=0.5,
    steps=(45, 45),
    seconds=(1.0, 2.0),
    losses=(2.0, 1.0),
    accuracies=(0.5, 0.75),
    test_accuracy=0.9,
    test_loss=0.4,
    test_samples=360,
)
KERAS = replace(ROW, contestant="keras", competitor=True, seconds=(3.0, 6.0), test_accuracy=0.9)


def test_all_33_experiments_have_their_published_numbers():
    with TABLE.open(encoding="utf-8", newline="") as file:
        published = {
            (r["experiment"], str(parse(r["structure"])), int(r["batches_per_epoch"])) for r in csv.DictReader(file)
        }
    found = select(["all"])
    assert len(found) == 33
    assert {(e.id, str(e.structure), e.batches) for e in found} == published


@pytest.mark.parametrize(
    ("names", "count"),
    [(["olivetti"], 11), (["0979993065"], 1), (["mnist:1", "1321552096"], 1), (["all", "mnist"], 33)],
)
def test_experiments_are_found_by_number_and_by_data_set(names, count):
    assert len(select(names)) == count


def test_an_unknown_experiment_is_answered_with_a_list_of_all():
    with pytest.raises(SpecError, match=r"unknown experiment '12'.*\n.*0979993065  olivetti:1"):
        select(["12"])


@pytest.mark.parametrize(
    ("dataset", "structure", "message"),
    [
        ("cats", None, "unknown data set 'cats'; known: digits"),
        ("mnist", None, "give --structure for mnist"),
    ],
)
def test_a_data_set_that_cannot_be_trained_on_is_refused(dataset, structure, message):
    with pytest.raises(SpecError, match=message):
        own(dataset, structure)


def test_rows_are_images_of_one_pixel_and_every_repetition_has_its_split(monkeypatch):
    """Of a set with three splits, the fifth repetition has the second."""
    rows, labels = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([0, 1, 0, 1])
    asked = []

    def load(name, split, scaling):
        asked.append((name, split, scaling))
        return datasets.Split(rows, labels, rows[:2], labels[:2], ("no", "yes"))

    monkeypatch.setattr(datasets, "load", load)
    monkeypatch.setattr(datasets, "splits", lambda name: 3)
    split, classes, shape = images("rows", 4)
    assert asked == [("rows", 1, "uniform")]
    assert (classes, shape) == (2, (1, 1, 3))
    assert np.array_equal(split.x_train[:, 0, 0], rows)
    assert split.x_test.shape == (2, 1, 1, 3)


@pytest.mark.parametrize(
    ("changes", "free", "message"),
    [
        ({}, 1e9, None),
        ({"structure": "F();D(9,sm);"}, 1e9, r"has 10 classes: the last layer must be D\(10,sm\), not D\(9,sm\)"),
        ({"structure": "F();D(10);"}, 1e9, "the last layer must be"),
        ({"batch": 2000}, 1e9, "there are only 1437 samples"),
        ({"batches": 1438, "batch": 1}, 1e9, "there are only 1437 samples"),
        ({"batch": 1000}, 1e6, r"a batch of 1000 needs at least 0\.0 GB for 2 contestants.*smaller --batch"),
    ],
)
def test_what_cannot_be_trained_is_said_before_it_begins(changes, free, message):
    experiment = own("digits", changes.pop("structure", None))
    experiment = replace(experiment, **changes)
    if message is None:
        require_fit(experiment, 1437, 10, free, contestants=2)
        return
    with pytest.raises(SpecError, match=message):
        require_fit(experiment, 1437, 10, free, contestants=2)


def test_turns_are_epochs_or_single_steps():
    experiment = replace(own("digits"), epochs=2, batches=3)
    assert list(experiment.turns(1437)) == [Turn(0, 0, 3), Turn(1, 0, 3)]
    steps = replace(experiment, steps=4)
    assert list(steps.turns(1437)) == [Turn(0, 0, 1), Turn(0, 1, 2), Turn(0, 2, 3), Turn(1, 0, 1)]


def test_memory_grows_with_the_batch_and_counts_every_layer():
    """Input 64, flattened 64, answers 10; twice 4 bytes each; 650 parameters four times."""
    experiment = replace(own("digits", "F();D(10,sm);"), batch=7)
    assert experiment.memory(1437) == 4 * (2 * 7 * (64 + 64 + 10) + 4 * 650)


def test_those_who_take_part_are_named_and_keras_as_published_is_alone_on_its_thread():
    ours, other, keras, torch = entrants(["auto", "numpy"], ["keras:torch", "torch"], 4, as_published=True)
    assert (ours.name, other.name) == ("ours", "ours:numpy")
    assert (keras.name, keras.threads, keras.options) == ("keras:torch as published", 1, {"beta_2": 0.9})
    assert keras.settings["KERAS_BACKEND"] == "torch"
    assert (torch.name, torch.threads) == ("torch", 4)
    with pytest.raises(SpecError, match="unknown competitor 'caffe'; known: keras, keras:tensorflow"):
        entrants([], ["caffe"], 1)


def test_answers_are_judged_by_their_largest_probability_and_the_label_s_own():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], np.float32)
    accuracy, loss = judged(probabilities, np.array([0, 2]))
    assert accuracy == 0.5
    assert loss == pytest.approx(-(math.log(0.5) + math.log(1e-7)) / 2)


def test_equivalence_is_two_one_sided_t_tests():
    """Against scipy's one-sample tests."""
    differences = [0.01, -0.004, 0.006, 0.002, 0.011]
    found = equivalence(differences, 0.02)
    lower = ttest_1samp(differences, -0.02, alternative="greater").pvalue
    upper = ttest_1samp(differences, 0.02, alternative="less")
    assert found.p == pytest.approx(max(lower, upper.pvalue))
    assert found.high == pytest.approx(upper.confidence_interval(0.95).high)
    assert found.is_shown
    assert not equivalence(differences, 0.009).is_shown


@pytest.mark.parametrize(("difference", "shown"), [(0.0, True), (0.03, False)])
def test_differences_that_never_vary_are_certain(difference, shown):
    assert equivalence([difference] * 3, 0.02).is_shown is shown


@pytest.mark.parametrize(("count", "shown"), [(100, False), (10000, True)])
def test_shares_are_equivalent_where_there_are_samples_enough(count, shown):
    assert equivalence_of_shares(0.90, 0.905, count, 0.02).is_shown is shown


def test_one_repetition_has_no_paired_test():
    with pytest.raises(ValueError, match="two repetitions"):
        equivalence([0.0], 0.02)


def test_trainings_come_back_as_they_went_in_and_a_repetition_done_again_replaces_the_first(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    with pytest.raises(StoreError, match="layerbench train"):
        store.run(training=True)
    run = store.start(RUN)
    store.add_trainings(run, [ROW, KERAS])
    assert store.trainings(run.id) == (ROW, KERAS)
    store.add_trainings(run, [replace(ROW, seconds=(5.0, 5.0))])
    assert [row.fit_s for row in store.trainings()] == [10.0, 9.0]
    with pytest.raises(StoreError, match="no run of this kind"):
        store.run()
    store.close()


def test_a_training_stored_before_its_batches_were_is_read_without_them(tmp_path):
    row = replace(ROW, batches=10)
    store = Store(tmp_path / "a.sqlite")
    store.add_trainings(store.start(RUN), [row])
    store.close()
    with sqlite3.connect(tmp_path / "a.sqlite") as old:
        for name in ("batches", "learning_rate"):
            old.execute(f"ALTER TABLE trainings DROP COLUMN {name}")
    old.close()
    again = Store(tmp_path / "a.sqlite")
    assert again.trainings() == (replace(row, batches=None, learning_rate=None),)
    again.close()


def test_a_repetition_that_lacks_a_contestant_is_missing():
    experiment = replace(own("digits", ROW.structure), epochs=2)
    wanted = [(experiment, 0), (experiment, 1)]
    assert missing(wanted, entrants([], ["keras"], 2), [ROW, KERAS]) == [(experiment, 1)]
    assert missing(wanted, entrants([], ["torch"], 2), [ROW, KERAS]) == wanted
    assert missing([(replace(experiment, epochs=3), 0)], entrants([], [], 2), [ROW])


def test_the_table_has_ratios_turn_by_turn_and_says_what_went_wrong():
    nothing = dict.fromkeys(("steps", "seconds", "losses", "accuracies"), ())
    failed = replace(KERAS, contestant="torch", status="UNAVAILABLE", reason="torch is not installed", **nothing)
    again = [replace(row, repetition=1) for row in (ROW, KERAS)]
    table = contests.contests([ROW, KERAS, failed, *again])
    (section,) = table.sections
    ours, keras, torch = section.lines
    assert ours.strong
    assert ours.cells[:3] == ("ours", "2", "3.00 [3.00, 3.00]")
    assert keras.cells[4] == "3.00 [3.00, 3.00]"
    assert keras.cells[-1].startswith("yes")
    assert torch.cells[1] == "0"
    (reasons,) = contests.not_trained([ROW, failed]).sections
    assert [line.cells for line in reasons.lines] == [("torch", "1", "unavailable", "torch is not installed")]
    frame = contests.turns([ROW, failed])
    assert frame["seconds"].tolist()[:2] == [1.0, 2.0]
    assert len(frame) == 3
