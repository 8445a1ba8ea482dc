"""The figures of a training that are kept: what can be drawn, under a name that says what it is."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.contest import Learned
from bench.results import TRAINING, Run, Training
from datasets import Split
from impls.nn.network import Network
from reports import training_folder, training_plots

ROW = Training(
    experiment="0123",
    dataset="olivetti",
    structure="F();D(3,sm);",
    plan="2 epochs",
    repetition=0,
    contestant="ours",
    competitor=False,
    status="OK",
    steps=(4, 4),
    seconds=(1.0, 1.0),
    losses=(2.0, 1.0),
    accuracies=(0.5, 0.75),
    test_accuracy=0.8,
    test_loss=0.9,
)
LABELS = np.array([0, 1, 2, 1])


def learned(structure, shape, answers, contestant="ours"):
    """What a new network is said to answer to random samples of a shape."""
    network = Network(structure, shape)
    x = np.random.default_rng(0).random((len(LABELS), *shape), np.float32)
    row = replace(ROW, structure=structure, contestant=contestant)
    return Learned(row, Split(x, LABELS, x, LABELS, ("a", "b", "c")), np.eye(3, dtype=np.float32)[answers], network)


RUN = Run("layerbench train", TRAINING, 0, 1, "2026-01-02T03:04:05+00:00", {"id": "m1"}, id=1)


def test_what_is_kept_of_contests_has_every_turn_and_the_published_figures_of_their_data(tmp_path):
    rows = [ROW, replace(ROW, contestant="keras", competitor=True)]
    written = training_folder.write_results(tmp_path / "new", RUN, rows)
    names = ["0123-olivetti-accuracy.png", "0123-olivetti-loss.png", "README.md", "run.json", "turns.csv"]
    assert sorted(path.name for path in written) == names
    assert all(path.stat().st_size for path in written)
    page = (tmp_path / "new" / "README.md").read_text()
    assert page.startswith("# Training on m1, 2026-01-02\n")
    assert "### Training in turns" in page
    assert "### Olivetti: trained here, and published" in page
    assert "### MNIST" not in page
    assert len((tmp_path / "new" / "turns.csv").read_text().splitlines()) == 1 + 2 * len(ROW.seconds)


WRONG = [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("structure", "shape", "answers", "drawn"),
    [
        ("C(3,2,r);F();D(3,sm);", (4, 4, 1), WRONG, ["confusion", "filters", "mistakes"]),
        ("M(2);C(3,2,r);F();D(3,sm);", (4, 4, 3), WRONG, ["confusion", "filters", "mistakes"]),
        ("F();D(3,sm);", (4, 4, 3), WRONG, ["confusion", "mistakes"]),
        ("C(3,2,r);F();D(3,sm);", (4, 4, 1), LABELS, ["confusion", "filters"]),
        ("F();D(3,sm);", (1, 1, 7), WRONG, ["confusion"]),
        ("C(1,2,r);F();D(3,sm);", (4, 4, 2), WRONG, ["confusion"]),
    ],
    ids=["everything", "pooled first", "no convolution", "no mistake", "rows of a table", "two channels"],
)
def test_only_what_can_be_drawn_is_drawn(tmp_path, structure, shape, answers, drawn):
    written = training_folder.write_learned(tmp_path / "new", learned(structure, shape, answers))
    assert sorted(written) == [tmp_path / "new" / f"0123-olivetti-ours-{what}.png" for what in drawn]
    for path in written:
        with Image.open(path) as image:
            assert min(image.size) > 100


def test_every_contestant_has_figures_of_its_own(tmp_path):
    for contestant in ("ours:numpy", "keras as published"):
        training_folder.write_learned(tmp_path, learned("F();D(3,sm);", (1, 1, 2), WRONG, contestant))
    names = ["0123-olivetti-keras-as-published-confusion.png", "0123-olivetti-ours-numpy-confusion.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_colours_of_photographs_are_kept(tmp_path):
    (path,) = (
        p for p in training_folder.write_learned(tmp_path, learned("F();D(3,sm);", (9, 9, 3), WRONG)) if "mis" in p.name
    )
    with Image.open(path) as image:
        assert image.mode == "RGBA"


def test_experiments_have_curves_of_their_own_with_the_figures_of_the_test_at_the_end(tmp_path, monkeypatch):
    drawn = []

    def learning_curves(histories, metric, turn, title):
        drawn.append(({who: len(own) for who, own in histories.items()}, metric, turn, title))
        return made(histories, metric, turn, title)

    made = training_plots.learning_curves
    monkeypatch.setattr(training_plots, "learning_curves", learning_curves)
    rows = [
        *(replace(ROW, repetition=r, contestant=who) for r in (0, 1) for who in ("ours", "keras")),
        replace(ROW, experiment="digits", dataset="digits", turn_epochs=0, steps=(1, 1)),
        replace(ROW, experiment="housing", dataset="housing", turn_epochs=50, accuracies=(None, None)),
        replace(ROW, experiment="short", steps=(4,), seconds=(1.0,), losses=(1.0,), accuracies=(1.0,)),
    ]
    names = [f"{name}-{metric}.png" for name in ("0123-olivetti", "digits") for metric in ("loss", "accuracy")]
    assert [path.name for path in training_folder.write_curves(tmp_path, rows)] == [*names, "housing-loss.png"]
    assert drawn[0] == ({"ours": 2, "keras": 2}, "loss", "epoch", "0123 olivetti: F();D(3,sm);")
    assert drawn[3] == ({"ours": 1}, "accuracy", "step", "digits: F();D(3,sm);")
    assert drawn[4] == ({"ours": 1}, "loss", "turn", "housing: F();D(3,sm); 50 epochs a turn")


def test_a_history_has_what_was_recorded():
    first, last = training_folder.history(ROW)
    assert first == {"loss": 2.0, "accuracy": 0.5}
    assert last == {"loss": 1.0, "accuracy": 0.75, "test_loss": 0.9, "test_accuracy": 0.8}
    assert training_folder.history(replace(ROW, test_loss=None))[-1] == {"loss": 1.0, "accuracy": 0.75}
