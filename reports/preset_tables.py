"""Tables of the presets: a line against least squares, people misclassified, losses by epoch, and who pays when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from statistics import median

import numpy as np
import pandas as pd

import datasets
from bench.contestant import PLAIN
from bench.presets import HOUSING, MNIST, PRESETS, TITANIC
from bench.results import Training
from bench.statistics import mean_interval
from reports.formats import MISSING, Line, Section, Table, number, with_interval
from reports.published import perceptron


def tables(rows: Iterable[Training]) -> tuple[Table, ...]:
    """Those that the rows, of any trainings, have something for; of what came to its end."""
    done = [row for row in rows if row.status == "OK"]
    single_steps = [row for row in done if not row.turn_epochs]
    whole = [row for row in done if row.turn_epochs]
    found = (
        lines([row for row in whole if row.experiment == HOUSING]),
        misclassified([row for row in whole if row.experiment.startswith(TITANIC)]),
        losses([row for row in whole if row.experiment == MNIST]),
        break_even(single_steps),
    )
    return tuple(table for table in found if table.sections)


def lines(rows: Sequence[Training]) -> Table:
    """The price's slope and intercept that each contestant found, and those of least squares, in the data's units."""
    preset = next(preset for preset in PRESETS if preset.id == HOUSING)
    sections = []
    for repetition in sorted({row.repetition for row in rows}):
        which = repetition % datasets.splits(preset.dataset)
        raw = datasets.load(preset.dataset, split=which, scaling=None)
        scaled = datasets.load(preset.dataset, split=which, scaling=preset.scaling)
        best = np.polyfit(raw.x_train[:, 0], raw.y_train, 1)
        deviation, centre = np.polyfit(scaled.x_train[:, 0], raw.x_train[:, 0], 1)
        cells = [Line(("least squares", *_four(best), MISSING, MISSING), strong=True)]
        for row in rows:
            if row.repetition == repetition and row.parameters:
                w, b = row.parameters
                line = w / deviation, b - w * centre / deviation
                off = [f"{ours / exact - 1:+.1e}" for ours, exact in zip(line, best, strict=True)]
                cells.append(Line((row.contestant, *_four(line), *off)))
        sections.append(Section(f"{HOUSING}  repetition {repetition + 1}  {rows[0].plan}", tuple(cells)))
    headings = ("contestant", "w", "b", "w off by", "b off by")
    notes = ("price = w area + b; least squares in closed form on the same rows; off by: relative to it",)
    return Table("The line against least squares", headings, tuple(sections), _frame(rows), ("contestant",), notes)


def misclassified(rows: Sequence[Training]) -> Table:
    """How many people each contestant took for dead or alive who were not: mean with its interval, least and most."""
    figures = perceptron(TITANIC).set_index("figure")["value"]
    published = {name: f"{value:.0f}" for name, value in figures.items()}
    sections = []
    for title, group in by(rows, lambda row: f"{row.name}  {row.structure}  {row.plan}").items():
        cells = []
        for contestant, own in by(group, lambda row: row.contestant).items():
            people = [
                round((1 - row.test_accuracy) * row.test_samples)
                for row in own
                if row.test_accuracy is not None and row.test_samples
            ]
            found = mean_interval(people)
            average = with_interval(found.median, found.low, found.high, "{:.1f}".format)
            extremes = str(min(people)), str(max(people))
            cells.append(Line((contestant, str(len(people)), average, *extremes, str(own[0].test_samples))))
        average = f"{published['misclassified_least']} to {published['misclassified_most']}"
        of = published["test_samples"]
        cells.append(Line(("published", published["experiments"], average, MISSING, MISSING, of)))
        sections.append(Section(title, tuple(cells)))
    headings = ("contestant", "experiments", "misclassified, mean", "least", "most", "of")
    notes = ("mean over the experiments, which differ in weights and batches, with its 95 % interval",)
    return Table("People misclassified", headings, tuple(sections), _frame(rows), ("contestant",), notes)


def losses(rows: Sequence[Training]) -> Table:
    """The mean loss of every epoch, beside what was published."""
    published = perceptron(MNIST)
    sections = []
    for title, group in by(rows, lambda row: f"{row.name}  {row.structure}  {row.plan}").items():
        epochs = max(len(row.losses) for row in group)
        cells = [
            Line((_who(row), *(f"{x:.3f}" for x in row.losses), number(row.fit_s), number(row.test_accuracy, 4)))
            for row in group
        ]
        for library, own in published.groupby("library", sort=False):
            known = {int(e): v for e, v in zip(own["epoch"], own["value"], strict=True) if not pd.isna(e)}
            (fit,) = own.loc[own["figure"] == "fit_s", "value"]
            by_epoch = (f"{known[e]:.3f}" if e in known else MISSING for e in range(1, epochs + 1))
            cells.append(Line((f"published, {library}", *by_epoch, number(fit), MISSING)))
        sections.append(Section(title, tuple(cells)))
    epochs = max((len(row.losses) for row in rows), default=0)
    headings = ("contestant", *map(str, range(1, epochs + 1)), "fit s", "test accuracy")
    notes = ("columns 1, 2, ...: mean loss of the epoch while the weights moved; published: on another machine",)
    return Table("Loss by epoch", headings, tuple(sections), _frame(rows), ("contestant",), notes)


def break_even(rows: Sequence[Training]) -> Table:
    """The time of a step at several batch sizes, and from which of them on each contestant beats the plain perceptron.

    Nothing where there is only one size.
    """
    sections = []
    sizes = sorted({row.batch for row in rows if row.batch})
    for title, group in by(rows, lambda row: f"{row.name}  {row.structure}").items():
        steps = {
            name: {size: median(s for row in own if row.batch == size for s in row.seconds) for size in _sizes(own)}
            for name, own in by(group, lambda row: row.contestant).items()
        }
        if len(_sizes(group)) < 2:
            continue
        yardstick = steps.get(PLAIN, {})
        cells = [
            Line(
                (
                    name,
                    *(number(1e3 * own[size]) if size in own else MISSING for size in sizes),
                    MISSING if name == PLAIN else pays_from(own, yardstick),
                )
            )
            for name, own in steps.items()
        ]
        sections.append(Section(title, tuple(cells)))
    headings = ("contestant", *(f"{size}" for size in sizes), "pays from")
    notes = (
        "columns 1, 8, ...: milliseconds of a step on so many samples, median over the steps",
        "pays from: the smallest of these batches from which on it is faster than the plain perceptron on NumPy",
        "cupy: the plain perceptron on the GPU, data there; cupy_copies: every batch is copied over first",
    )
    return Table("Time of a step by batch size", headings, tuple(sections), _frame(rows), ("contestant",), notes)


def pays_from(own: dict[int, float], yardstick: dict[int, float]) -> str:
    """The smallest batch size from which on all steps take less time than the yardstick's; "never", or a dash."""
    common = sorted(set(own) & set(yardstick), reverse=True)
    if not common:
        return MISSING
    found = "never"
    for size in common:
        if own[size] >= yardstick[size]:
            break
        found = str(size)
    return found


def by(rows: Iterable[Training], key: Callable[[Training], str]) -> dict[str, list[Training]]:
    """Rows in groups, in the order in which the groups come first."""
    groups: dict[str, list[Training]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _sizes(rows: Iterable[Training]) -> list[int]:
    return sorted({row.batch for row in rows if row.batch})


def _four(line: Iterable[float]) -> tuple[str, ...]:
    return tuple(number(value, 5) for value in line)


def _who(row: Training) -> str:
    return f"{row.contestant}, {row.repetition + 1}" if row.repetition else row.contestant


def _frame(rows: Iterable[Training]) -> pd.DataFrame:
    return pd.DataFrame.from_records([asdict(row) for row in rows])
