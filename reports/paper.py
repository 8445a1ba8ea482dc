"""The paper's three tables of trained networks, with what was trained here beside the published figures.

P. Klęsk, Applied Sciences 2024, 14(21), 9972: 33 networks on Olivetti, MNIST and CIFAR-10, each trained by his system
hmdl and by Keras on two GPUs. What the published figures contain stands in ``published/README.md`` and in CONTENTS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

import pandas as pd

from bench.results import Interval, Run, Training
from bench.statistics import mean_interval, speedup
from reports import published
from reports.formats import MISSING, Line, Report, Section, Table, number, ratio, with_spread
from reports.tables import MARK, SHORT
from reports.tables import heading as run_heading

KERAS = "keras"

DATASETS = {"Olivetti": "olivetti", "MNIST": "mnist", "CIFAR-10": "cifar10"}
"""The data sets as the paper writes them, and as they are loaded."""

MACHINES = {"NVIDIA Quadro M4000M": "M4000M", "GRID A100-7-40C MIG 7g.40gb": "A100"}
"""The published GPUs, and how headings call them."""

NUMBER = "no."
"""Of a network within its data set: the heading."""

PUBLISHED_SYSTEMS = {"hmdl": "hmdl", KERAS: "Keras"}

CONTENTS = (
    (
        "published",
        "Klęsk 2024. 100 epochs of Adam, rate 0.001; Olivetti: means over 10 splits; MNIST and CIFAR-10: one training",
    ),
    (
        "published hmdl fit",
        "host arrays: every layer copies to the GPU and back, dense layers run on the CPU; statistics and printing "
        "after every batch. Dropout draws one mask per batch, shared by its samples",
    ),
    (
        "published Keras fit",
        "model.fit with graph tracing and progress bar, deterministic operations, one CPU thread. Adam with "
        "beta_2 = 0.9 instead of 0.999; dropout draws a mask per sample. Not the initial weights of hmdl",
    ),
    (
        "trained here",
        "all contestants in turns, epoch by epoch, with the same initial weights and the same batches in the same "
        "order; a fit is the sum of its epochs, without loading, without a first step that compiles, and without "
        "testing. Dropout draws a mask per sample. "
        "What was cut short has no fit time; its accuracy and loss stand with the steps it took",
    ),
    (
        "vs Keras",
        "of times: Keras' / the other's, above 1 Keras is slower; of accuracy and loss: the other's - Keras'. Here the "
        "median over the rounds, or the mean over the repetitions, that both finished",
    ),
    ("±", "the farther end of the 95 % bootstrap interval over rounds or repetitions; none for a single one"),
)
"""(label, text): what each figure contains, to be shown wherever they are."""


Key: TypeAlias = tuple[str, int, str]
"""Data set, number, contestant."""


@dataclass(frozen=True, slots=True)
class _Figure:
    """A section of a table. ``of``: the value of a training, ``column``: of a published row, None to keep it empty."""

    name: str
    title: str
    of: Callable[[Training], float | None]
    column: Callable[[Any, str], float]
    written: Callable[[float | None], str]
    is_time: bool


def _decimals(value: float | None) -> str:
    """As the paper writes accuracies and losses: four decimals, three from 1 on."""
    return MISSING if value is None or pd.isna(value) else f"{value:.{3 if value >= 1 else 4}f}"


FIGURES = (
    _Figure(
        "fit_s",
        "fit time, s",
        lambda training: training.fit_s,
        lambda row, system: getattr(row, f"{system}_fit_s"),
        number,
        is_time=True,
    ),
    _Figure(
        "step_ms",
        "time per step, ms",
        lambda training: _step_s(training) * 1e3,
        lambda row, system: getattr(row, f"{system}_fit_s") * 1e3 / _planned(row),
        number,
        is_time=True,
    ),
    _Figure(
        "test_accuracy",
        "test accuracy",
        lambda training: training.test_accuracy,
        lambda row, system: getattr(row, f"{system}_test_accuracy"),
        _decimals,
        is_time=False,
    ),
    _Figure(
        "test_loss",
        "test loss",
        lambda training: training.test_loss,
        lambda row, system: getattr(row, f"{system}_test_loss"),
        _decimals,
        is_time=False,
    ),
)


def report(run: Run | None = None, trainings: Iterable[Training] = ()) -> Report:
    """The networks and the three tables, under what the figures contain; without a run, what was published.

    Trainings of other networks, or in other batches than the paper's, are left out. The frame for CSV is ``frame``'s.
    """
    groups = _groups(trainings)
    tables = (_networks(), *(_table(name, groups) for name in DATASETS))
    heading = run_heading(run, ()) if run else ()
    return Report((*heading, *CONTENTS), tables, _frame(groups))


def by_dataset(shown: Report) -> dict[str, Table]:
    """The tables of a report by the data sets that they are about."""
    return dict(zip(DATASETS.values(), shown.tables[1:], strict=True))


def frame(trainings: Iterable[Training] = ()) -> pd.DataFrame:
    """One line per network, machine and contestant, published or here: means and their intervals.

    Published lines have the printed figures and no interval.
    """
    return _frame(_groups(trainings))


def _groups(trainings: Iterable[Training]) -> dict[Key, tuple[Training, ...]]:
    """The repetitions of each contestant in order; of several plans, the one that took the most steps."""
    known: dict[str, Any] = {str(row.experiment): row for row in published.experiments().itertuples()}
    found: dict[Key, dict[str, list[Training]]] = {}
    for training in trainings:
        row = known.get(training.experiment)
        if row is not None and _is_as_published(training, row):
            key = DATASETS[row.dataset], row.number, training.contestant
            found.setdefault(key, {}).setdefault(training.plan, []).append(training)
    return {
        key: tuple(sorted(max(plans.values(), key=_most_steps), key=lambda training: training.repetition))
        for key, plans in found.items()
    }


def _is_as_published(training: Training, row: Any) -> bool:
    """Whether its batches and its rate were those of the published row; how long it took is not asked."""
    return (training.batches, training.learning_rate) == (row.batches_per_epoch, row.learning_rate)


def _most_steps(trainings: Iterable[Training]) -> int:
    return max(_steps(training) for training in trainings)


def _steps(training: Training) -> int:
    """Taken in all."""
    return sum(training.steps)


def _step_s(training: Training) -> float:
    """Of the median turn."""
    return median(seconds / steps for seconds, steps in zip(training.seconds, training.steps, strict=True))


def _networks() -> Table:
    """What the numbers in the tables stand for."""
    rows = published.experiments().drop_duplicates("experiment")
    sections = [
        Section(
            f"{name}, {part['input_shape'].iloc[0]}, {part['train_samples'].iloc[0]} images in "
            f"{part['batches_per_epoch'].iloc[0]} batches",
            tuple(
                Line((str(r.number), str(r.structure), str(r.parameters), str(r.experiment))) for r in part.itertuples()
            ),
        )
        for name, part in rows.groupby("dataset", sort=False)
    ]
    return Table(
        "The published networks",
        (NUMBER, "structure", "parameters", "experiment"),
        tuple(sections),
        rows[["dataset", "number", "experiment", "parameters", "structure"]],
        left=("structure",),
    )


def _table(name: str, groups: Mapping[Key, tuple[Training, ...]]) -> Table:
    dataset = DATASETS[name]
    mine = {key: own for key, own in groups.items() if key[0] == dataset}
    contestants = _contestants(mine)
    rows = published.experiments()
    rows = rows[rows["dataset"] == name]
    numbers = sorted(set(rows["number"]))
    headings = [NUMBER]
    for contestant, is_competitor in contestants.items():
        headings.append(contestant + MARK * is_competitor)
        headings += ["vs Keras"] if _is_compared(contestant, contestants) else []
    for machine in MACHINES.values():
        headings += [*(f"{system} {machine}" for system in PUBLISHED_SYSTEMS.values()), "vs Keras"]
    row_of = {(row.machine, row.number): row for row in rows.itertuples()}
    sections = []
    for figure in FIGURES:
        lines = []
        for n in numbers:
            own = {contestant: mine.get((dataset, n, contestant), ()) for contestant in contestants}
            two = [row_of[machine, n] for machine in MACHINES]
            cells = _cells_here(figure, own, _planned(two[0])) + [
                c for row in two for c in _cells_published(figure, row)
            ]
            lines.append(Line((str(n), *cells)))
        sections.append(Section(figure.title, tuple(lines)))
    return Table(
        f"{name}: trained here, and published",
        tuple(headings),
        tuple(sections),
        _frame(mine, (name,)),
        notes=_why_missing(mine),
    )


def _contestants(groups: Mapping[Key, tuple[Training, ...]]) -> dict[str, bool]:
    """Whether each is a competitor: ours first, then Keras, then the others."""
    found = {contestant: own[0].competitor for (*_, contestant), own in groups.items()}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0] != KERAS, item[0])))


def _is_compared(contestant: str, contestants: Iterable[str]) -> bool:
    return contestant != KERAS and KERAS in contestants


def _cells_here(figure: _Figure, own: Mapping[str, tuple[Training, ...]], planned: int) -> list[str]:
    """For every contestant its cell, and how it compares with Keras."""
    cells = []
    for contestant, trainings in own.items():
        cells.append(_cell(figure, trainings, planned))
        if _is_compared(contestant, own):
            cells.append(_against(figure, trainings, own[KERAS], planned))
    return cells


def _cell(figure: _Figure, trainings: tuple[Training, ...], planned: int) -> str:
    """Mean and spread; steps where training was cut short; otherwise why there is nothing."""
    done = _done(trainings)
    if not done:
        return SHORT.get(trainings[-1].status, trainings[-1].status.lower()) if trainings else "not run"
    values = _values(figure, done, planned)
    if not values:
        return f"{_steps(done[0])} steps"
    interval = mean_interval(values)
    cut = figure.name.startswith("test") and _steps(done[0]) < planned
    return _spread_text(figure, interval) + (f" ({_steps(done[0])} steps)" if cut else "")


def _spread_text(figure: _Figure, interval: Interval) -> str:
    """A single repetition has no spread."""
    if figure.is_time:
        return with_spread(interval.median, interval.low, interval.high, figure.written)
    return figure.written(interval.median) + _plus_minus(interval)


def _plus_minus(interval: Interval) -> str:
    """The farther end of an interval; nothing where there is none."""
    if interval.low != interval.low:
        return ""
    return f" ±{max(interval.high - interval.median, interval.median - interval.low):.4f}"


def _against(figure: _Figure, ours: tuple[Training, ...], keras: tuple[Training, ...], planned: int) -> str:
    """Keras' time over the contestant's, or the contestant's value minus Keras'; only what both have."""
    pairs = _pairs(ours, keras)
    if not pairs or not _values(figure, [a for a, _ in pairs], planned) or _steps(pairs[0][0]) != _steps(pairs[0][1]):
        return MISSING
    if figure.name == "step_ms":
        rounds = [[s for training in side for s in training.seconds] for side in zip(*pairs, strict=True)]
        found, count = speedup(rounds[1], rounds[0]), len(rounds[0])
    elif figure.is_time:
        found, count = speedup([k.fit_s for _, k in pairs], [o.fit_s for o, _ in pairs]), len(pairs)
    else:
        both = [(figure.of(o), figure.of(k)) for o, k in pairs]
        differences = [o - k for o, k in both if o is not None and k is not None]
        if not differences:
            return MISSING
        found = mean_interval(differences)
        return f"{found.median:+.4f}{_plus_minus(found)}"
    return with_spread(found.median, found.low, found.high, ratio) if count > 1 else ratio(found.median)


def _cells_published(figure: _Figure, row: Any) -> list[str]:
    """hmdl, Keras, and how they compare."""
    hmdl, keras = (figure.column(row, system) for system in PUBLISHED_SYSTEMS)
    compared = ratio(keras / hmdl) if figure.is_time else f"{hmdl - keras:+.4f}"
    return [figure.written(hmdl), figure.written(keras), compared]


def _done(trainings: Iterable[Training]) -> list[Training]:
    return [training for training in trainings if training.status == "OK"]


def _pairs(ours: Iterable[Training], keras: Iterable[Training]) -> list[tuple[Training, Training]]:
    """The repetitions that both finished."""
    theirs = {training.repetition: training for training in _done(keras)}
    return [(training, theirs[training.repetition]) for training in _done(ours) if training.repetition in theirs]


def _values(figure: _Figure, done: Sequence[Training], planned: int) -> list[float]:
    """One value per repetition; no fit time of a training that was cut short."""
    if figure.name == "fit_s":
        done = [training for training in done if _steps(training) >= planned]
    return [value for training in done if (value := figure.of(training)) is not None]


def _planned(row: Any) -> int:
    """The steps of a published training."""
    return int(row.epochs * row.batches_per_epoch)


def _why_missing(groups: Mapping[Key, tuple[Training, ...]]) -> tuple[str, ...]:
    """The reasons behind the cells without a figure."""
    lost = [(key, t) for key, own in groups.items() if not _done(own) for t in own[-1:]]
    return tuple(f"{contestant}, no. {n}: {t.status} {t.reason}".strip() for (_, n, contestant), t in lost)


_ENDS = ("", "_low", "_high")


def _frame(groups: Mapping[Key, tuple[Training, ...]], names: Iterable[str] = tuple(DATASETS)) -> pd.DataFrame:
    """The lines of some of the paper's data sets."""
    records = []
    rows = published.experiments()
    for name in names:
        for n, part in rows[rows["dataset"] == name].groupby("number"):
            pair = {row.machine: row for row in part.itertuples()}
            first = next(iter(pair.values()))
            what = {
                "dataset": DATASETS[name],
                "number": n,
                "experiment": first.experiment,
                "structure": first.structure,
            }
            for (dataset, own_number, contestant), own in groups.items():
                if (dataset, own_number) == (DATASETS[name], n):
                    records.append(what | _record(contestant, own, _planned(first)))
            for machine, row in pair.items():
                for system in PUBLISHED_SYSTEMS:
                    figures = {figure.name: figure.column(row, system) for figure in FIGURES}
                    counts = {"repetitions": row.repetitions, "steps": _planned(row), "status": "OK", "reason": ""}
                    records.append(what | {"source": machine, "contestant": system} | counts | figures)
    columns = ["dataset", "number", "experiment", "structure", "source", "contestant", "repetitions", "steps", "status"]
    columns += ["reason", *(f"{figure.name}{end}" for figure in FIGURES for end in _ENDS)]
    return pd.DataFrame.from_records(records, columns=columns)


def _record(contestant: str, trainings: tuple[Training, ...], planned: int) -> dict[str, Any]:
    done = _done(trainings)
    last = trainings[-1]
    record: dict[str, Any] = {"source": "here", "contestant": contestant, "repetitions": len(done)}
    record |= {"steps": _steps(done[0] if done else last)}
    record |= {"status": "OK", "reason": ""} if done else {"status": last.status, "reason": last.reason}
    for figure in FIGURES:
        values = _values(figure, done, planned)
        if values:
            interval = mean_interval(values)
            parts = zip(_ENDS, (interval.median, interval.low, interval.high), strict=True)
            record |= {f"{figure.name}{end}": value for end, value in parts}
    return record
