"""The paper's tables: published figures as printed, ours beside them, and why a cell is empty."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from click.testing import CliRunner
from rich.console import Console

from bench.cli import main
from bench.results import TRAINING, Run, Training
from bench.store import Store
from reports import formats, paper, published

MACHINE = {"id": "box", "cpu": "Some CPU"}
RUN = Run("layerbench train", TRAINING, seed=0, threads=2, started="2025-01-02T03:04:05Z", machine=MACHINE, id=1)
PLAN = "100 epochs, 10 batches, learning rate 0.001"
OLIVETTI = dict(zip(range(1, 12), published.experiments()["experiment"], strict=False))
"""The first published experiments, by number."""


def training(number=1, contestant="ours", repetition=0, seconds=0.03, turns=100, **more):
    """A training on Olivetti in full, every epoch of which takes the same time."""
    values = {
        "experiment": OLIVETTI[number],
        "dataset": "olivetti",
        "structure": "as published",
        "plan": PLAN,
        "batches": 10,
        "learning_rate": 0.001,
        "competitor": contestant == "keras",
        "status": "OK",
        "seconds": (seconds,) * turns,
        "steps": (10,) * turns,
        "test_accuracy": 0.75,
        "test_loss": 0.5,
    }
    return Training(repetition=repetition, contestant=contestant, **(values | more))


def steps_only(count, seconds=0.03):
    """A training that ends after so many steps, each timed by itself."""
    plan = f"{count} steps, 10 batches, learning rate 0.001"
    return training(plan=plan, seconds=seconds, turns=count, steps=(1,) * count)


def failed(number, status, reason):
    """Keras' training that came to nothing."""
    return training(number, "keras", turns=0, status=status, reason=reason, test_accuracy=None, test_loss=None)


def cell(trainings, section, heading, number=1, dataset=0):
    """The text under a heading, by figure and number of the network."""
    table = paper.report(RUN, trainings).tables[dataset + 1]
    lines = next(part.lines for part in table.sections if part.title == section)
    cells = next(line.cells for line in lines if line.cells[0] == str(number))
    return cells[table.headings.index(heading)]


def test_there_is_a_table_for_each_data_set_with_every_network():
    networks, *tables = paper.report().tables
    assert [len(part.lines) for part in networks.sections] == [11, 10, 12]
    assert [table.title.partition(":")[0] for table in tables] == ["Olivetti", "MNIST", "CIFAR-10"]
    assert [[len(part.lines) for part in table.sections] for table in tables] == [[11] * 4, [10] * 4, [12] * 4]


@pytest.mark.parametrize(
    ("section", "hmdl", "keras", "compared"),
    [
        ("fit time, s", "352", "39.0", "0.11"),
        ("time per step, ms", "176", "19.5", "0.11"),
        ("test accuracy", "0.9808", "0.9846", "-0.0038"),
        ("test loss", "0.0800", "0.0902", "-0.0102"),
    ],
)
def test_published_figures_are_the_papers_and_compared_with_published_keras(section, hmdl, keras, compared):
    """The third network on MNIST, 2,000 steps on the laptop."""
    assert cell([], section, "hmdl M4000M", 3, dataset=1) == hmdl
    assert cell([], section, "Keras M4000M", 3, dataset=1) == keras
    assert cell([], section, "vs Keras", 3, dataset=1) == compared


def test_ours_stand_before_keras_and_both_before_what_was_published():
    headings = paper.report(RUN, [training(contestant="keras"), training()]).tables[1].headings
    assert headings[:5] == ("no.", "ours", "vs Keras", "keras †", "hmdl M4000M")


def test_a_time_is_the_mean_of_the_repetitions_and_its_ratio_comes_from_the_same_rounds():
    trainings = [training(repetition=r, seconds=s) for r, s in enumerate((0.02, 0.04))]
    trainings += [training(contestant="keras", repetition=r, seconds=s) for r, s in enumerate((0.06, 0.12))]
    assert cell(trainings, "fit time, s", "ours") == "3.00 ±33%"
    assert cell(trainings, "fit time, s", "vs Keras") == "3.00 ±0.0%"
    assert cell(trainings, "time per step, ms", "keras †") == "9.00 ±33%"
    assert cell(trainings, "time per step, ms", "vs Keras") == "3.00 ±0.0%"


def test_accuracies_are_compared_repetition_by_repetition():
    """The unpaired mean of Keras, 0.7, would give another difference."""
    trainings = [training(repetition=r, test_accuracy=a) for r, a in enumerate((0.5, 0.7))]
    trainings += [training(contestant="keras", repetition=r, test_accuracy=a) for r, a in enumerate((0.4, 0.6, 1.1))]
    assert cell(trainings, "test accuracy", "vs Keras") == "+0.1000 ±0.0000"


def test_a_single_training_has_no_interval():
    trainings = [training(), training(contestant="keras", seconds=0.06, test_loss=1.25)]
    assert cell(trainings, "fit time, s", "ours") == "3.00"
    assert cell(trainings, "fit time, s", "vs Keras") == "2.00"
    assert cell(trainings, "test loss", "keras †") == "1.250"
    assert cell(trainings, "test loss", "vs Keras") == "-0.7500"


def test_a_training_cut_short_has_no_fit_time_but_a_time_per_step_and_says_after_how_many():
    cut = steps_only(3)
    assert cell([cut], "fit time, s", "ours") == "3 steps"
    assert cell([cut], "time per step, ms", "ours") == "30.0"
    assert cell([cut], "test accuracy", "ours") == "0.7500 (3 steps)"


def test_trainings_of_different_lengths_are_not_compared():
    trainings = [steps_only(5), training(contestant="keras")]
    assert cell(trainings, "test accuracy", "vs Keras") == formats.MISSING


def test_a_cell_without_a_figure_says_why_and_the_reason_stands_below():
    lost = failed(4, "OUT_OF_MEMORY", "needs 90 GB")
    trainings = [training(), lost]
    assert cell(trainings, "fit time, s", "keras †", 4) == "mem"
    assert cell(trainings, "fit time, s", "ours", 4) == "not run"
    assert paper.report(RUN, trainings).tables[1].notes == ("keras, no. 4: OUT_OF_MEMORY needs 90 GB",)


def test_a_training_in_full_goes_before_a_few_steps_whatever_came_last():
    assert cell([training(), steps_only(5, seconds=9.0)], "fit time, s", "ours") == "3.00"


@pytest.mark.parametrize(
    "other",
    [{"experiment": "digits"}, {"batches": None}, {"batches": 20}, {"learning_rate": 0.01}],
    ids=["network", "batches of a size", "batches", "rate"],
)
def test_what_was_trained_otherwise_than_published_is_left_out(other):
    assert "ours" not in paper.report(RUN, [training(**other)]).tables[1].headings


def test_the_frame_has_a_line_for_every_published_training_and_one_for_each_contestant_here():
    frame = paper.frame([training(repetition=r, test_accuracy=a) for r, a in enumerate((0.5, 0.7))])
    assert len(frame) == len(published.experiments()) * 2 + 1
    mine = frame[frame["source"] == "here"].iloc[0]
    assert list(mine[["contestant", "repetitions", "steps", "experiment"]]) == ["ours", 2, 1000, "0979993065"]
    assert mine["test_accuracy"] == pytest.approx(0.6)
    assert mine["test_accuracy_low"] < mine["test_accuracy"] < mine["test_accuracy_high"]


def test_the_report_begins_with_what_the_figures_contain():
    heading = dict(paper.report(RUN).heading)
    assert heading["machine"] == "box, Some CPU"
    assert "beta_2 = 0.9 " in heading["published Keras fit"]
    assert "one mask per batch" in heading["published hmdl fit"]


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "csv"])
def test_every_format_shows_the_figures(form):
    report = paper.report(RUN, [training()])
    if form == "table":
        console = Console(file=io.StringIO(), width=120)
        formats.show(report, console)
        text = console.file.getvalue()
    else:
        text = formats.text(report, form)
    assert "67425" in text
    assert "C(5,8,r);M(4);DR(0.25);F();D(64,r);DR(0.25);D(40,sm);" in text


def test_the_command_prints_what_was_trained_beside_the_papers_figures(tmp_path):
    """The latest training in the store, not the latest run."""
    path = str(tmp_path / "store.sqlite")
    store = Store(path)
    store.add_trainings(store.start(replace(RUN, id=None)), [training(seconds=0.0312)])
    store.start(replace(RUN, id=None, suite="quick"))
    store.close()
    result = CliRunner().invoke(main, ["report", "--paper", "--db", path, "--format", "markdown"])
    assert result.exit_code == 0, result.output
    assert "| 1 | 3.12 | 2.20 | 4.40 |" in result.output
