"""The figures that are kept of networks: how they learned, what they answer, where a step's time goes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from bench.contest import Learned
from bench.profile_training import Profile
from bench.results import Run, Training
from impls.nn.structure import Conv
from reports import contests, paper, plots, training_plots
from reports.folder import listed, packed_if_large, page

METRICS = ("loss", "accuracy")

_READING = """\
## How to read this

* In each turn (an epoch, or with `--steps` a step) every contestant trains once, in shuffled order, while the others
  stand still; all start from the same weights and get the same batches. A ratio is formed turn by turn.
* The accuracies of two contestants differ by chance even where both are right: rounding parts their ways after some
  steps. What tells is the test of equivalence, over the repetitions.
"""

PICTURE_CHANNELS = (1, 3)
"""Of grey pictures and coloured ones; anything else has no look."""


def write_results(folder: Path, run: Run, rows: Iterable[Training]) -> tuple[Path, ...]:
    """Write what is kept of a run of contests, making the folder if need be, and return the files.

    README.md (heading, the contests, the published tables of the same data sets), turns.csv (every epoch or step,
    compressed if large), run.json (machine, versions, threads, seed), and the curves.
    """
    rows = tuple(rows)
    folder.mkdir(parents=True, exist_ok=True)
    curves = write_curves(folder, rows)
    contest, beside = contests.report(run, rows), paper.report(run, rows)
    trained = {row.dataset for row in rows}
    published = [table for name, table in paper.by_dataset(beside).items() if name in trained]
    gallery = "\n\n".join(f"![{path.stem}]({path.name})" for path in curves)
    title = f"Training on {run.machine.get('id', 'a machine without a name')}, {run.started[:10]}"
    before = f"{listed(beside.heading)}\n\n{_READING}"
    readme, about, turns = (folder / name for name in ("README.md", "run.json", "turns.csv"))
    readme.write_text(page(title, *contest.tables, *published, before=before, after=gallery), encoding="utf-8")
    about.write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
    contest.frame.to_csv(turns, index=False)
    return (readme, about, packed_if_large(turns), *curves)


def write_curves(folder: Path, rows: Iterable[Training]) -> tuple[Path, ...]:
    """Loss and accuracy of every experiment by epoch or step, all contestants and repetitions in one figure each.

    Numbers have no accuracy. The test data's figures stand after the last turn. What ended before its second turn has
    no curve.
    """
    figures = {}
    with_curves = sorted((row for row in rows if len(row.seconds) > 1), key=_experiment)
    for (name, structure, _), group in groupby(with_curves, _experiment):
        histories: dict[str, list[training_plots.History]] = {}
        title, turn = f"{name}: {structure}", "step"
        for row in group:
            histories.setdefault(row.contestant, []).append(history(row))
            turn = {0: "step", 1: "epoch"}.get(row.turn_epochs, "turn")
        if turn == "turn":
            title += f" {row.turn_epochs} epochs a turn"
        recorded = {metric for own in histories.values() for metric in own[0][0]}
        for metric in (metric for metric in METRICS if metric in recorded):
            figures[file_name(name, metric)] = training_plots.learning_curves(histories, metric, turn, title)
    return _write(folder, figures)


def history(row: Training) -> training_plots.History:
    """A training's turns as a Trainer keeps them; the last one has the test data's figures, where they are known."""
    turns = [_known(zip(METRICS, values, strict=True)) for values in zip(row.losses, row.accuracies, strict=True)]
    if row.test_loss is not None:
        turns[-1] |= _known([("test_loss", row.test_loss), ("test_accuracy", row.test_accuracy)])
    return turns


def _known(figures: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Those that there are."""
    return {name: value for name, value in figures if value is not None}


def write_learned(folder: Path, found: Learned) -> tuple[Path, ...]:
    """What a contestant answers to the test data: confusion, and of pictures the mistakes and the first filters.

    Without classes there is no figure, without a mistake none of mistakes, without a convolution none of filters.
    """
    row, split, answers = found.row, found.split, found.answers
    if not split.classes:
        return ()
    predicted = found.labels
    title = f"{row.name}, {row.contestant}, repetition {row.repetition + 1}"
    figures = {"confusion": training_plots.confusion_matrix(split.y_test, predicted, split.classes, title)}
    if split.x_test.shape[-1] in PICTURE_CHANNELS and min(split.x_test.shape[1:3]) > 1:
        if (predicted != split.y_test).any():
            figures["mistakes"] = training_plots.misclassified(
                split.x_test, split.y_test, answers, split.classes, title
            )
        first = next((step for step in found.network.steps if isinstance(step.layer, Conv)), None)
        if first:
            kernel, *_ = found.network.layer_weights(first.name)
            figures["filters"] = training_plots.filters(kernel, f"{title}, {first.name}")
    named = {file_name(row.name, row.contestant, what): figure for what, figure in figures.items()}
    return _write(folder, named, all_colours=True)


def write_profiles(folder: Path, profiles: Mapping[tuple[str, str], Profile]) -> tuple[Path, ...]:
    """A bar chart for each network and implementation that was asked for."""
    return _write(
        folder,
        {
            file_name(*names, "profile"): training_plots.profile(profile, ", ".join(names))
            for names, profile in profiles.items()
        },
    )


def file_name(*words: str) -> str:
    """A PNG's name of these words, in characters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", " ".join(words)).strip("-") + ".png"


def _experiment(row: Training) -> tuple[str, str, str]:
    return row.name, row.structure, row.plan


def _write(folder: Path, figures: Mapping[str, Figure], all_colours: bool = False) -> tuple[Path, ...]:
    """Write figures by the names of their files; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        plots.save(figure, folder / name, all_colours)
    return tuple(folder / name for name in figures)
