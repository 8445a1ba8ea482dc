"""Progress of a contest: a bar on a terminal, a few lines where there is none."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from bench.experiments import Turn, own
from bench.progress import of_repetition
from bench.results import Training

ROW = Training(
    experiment="0123",
    dataset="olivetti",
    structure="F();D(40,sm);",
    plan="",
    repetition=1,
    contestant="ours",
    competitor=False,
    status="OK",
)
GONE = replace(ROW, contestant="torch", status="UNAVAILABLE", reason="torch is not installed")


def shown(width=None, place=1, count=1, **how):
    """What is written, to a terminal of this width if one is given, while a repetition goes by: losses 1, 2, 3, ..."""
    console = Console(file=io.StringIO(), width=width, force_terminal=width is not None)
    experiment = replace(own("digits", "F();D(10,sm);"), **how)
    with of_repetition(console, experiment, place, count) as progress:
        for done in range(1, (experiment.steps or experiment.epochs) + 1):
            values = tuple(map(float, range(1, done + 1)))
            row = replace(ROW, seconds=values, losses=values, accuracies=(0.5,) * done)
            progress([row, GONE], Turn(done - 1, 0, 1))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"epochs": 100}, range(10, 101, 10)),
        ({"epochs": 3}, [1, 2, 3]),
        ({"epochs": 25, "count": 3}, [9, 18, 25]),
        ({"epochs": 100, "count": 110}, [100]),
        ({"steps": 20}, range(2, 21, 2)),
    ],
    ids=["every tenth", "few epochs", "a third of the lines", "one for each of many repetitions", "steps"],
)
def test_a_pipe_gets_ten_lines_of_a_contest_or_one_for_each_repetition(how, said):
    what, turns = ("step", how["steps"]) if "steps" in how else ("epoch", how["epochs"])
    lines = shown(**how).splitlines()
    assert [line.partition(": ")[0].partition(", ")[2] for line in lines] == [
        f"repetition 2, {what} {done} of {turns}" for done in said
    ]


def test_a_line_says_the_latest_figures_of_everyone_or_what_became_of_them():
    assert shown(epochs=2, place=4, count=20) == (
        "4/20 0123 olivetti, repetition 2, epoch 2 of 2: ours 2 s, loss 2.0000, 50.0% right; torch unavailable\n"
    )


def test_a_terminal_has_a_bar():
    (last,) = (line for line in shown(width=200, epochs=4).splitlines() if "4/4" in line)
    assert "1/1 0123 olivetti, repetition 2: ours 4 s, loss 4.0000" in last


def test_a_narrow_terminal_has_the_whole_bar_and_the_text_on_several_lines():
    text = shown(width=70, epochs=4)
    (last,) = (line for line in text.splitlines() if "4/4" in line)
    assert last.count("━") == 24
    assert "unavailable" not in last
    assert "unavailable" in text.partition(last)[2]
