"""The table of a training contest: how long each contestant trained, and what it learned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from operator import attrgetter

import pandas as pd

from bench.results import Interval, Run, Training
from bench.statistics import Equivalence, equivalence, equivalence_of_shares, mean_interval, median_interval, speedup
from reports import preset_tables
from reports.formats import MISSING, TIMES, Line, Report, Section, Table, number, ratio, with_interval, with_spread
from reports.preset_tables import by
from reports.tables import heading

MARGIN = 0.02
"""Accuracies that differ by less are as good as equal: two percentage points."""

PER_TURN = ("steps", "seconds", "losses", "accuracies")

HEADINGS = (
    *("contestant", "repetitions", "fit s", "turn ms", f"{TIMES} ours", "set-up s", "first step s"),
    *("test accuracy", "test loss", "accuracy - ours, points", "equivalent"),
)


def report(run: Run, rows: Iterable[Training], margin: float = MARGIN) -> Report:
    """Everything about one run of contests; the frame for CSV has a line for each turn of each contestant."""
    rows = tuple(rows)
    tables = (contests(rows, margin), *preset_tables.tables(rows), not_trained(rows))
    return Report(heading(run, ()), tuple(table for table in tables if table.sections), turns(rows))


def contests(rows: Iterable[Training], margin: float = MARGIN) -> Table:
    """A section for every experiment, a line for every contestant."""
    rows = tuple(rows)
    sections = tuple(_section(group, margin) for group in by(rows, _title).values())
    frame = pd.DataFrame.from_records([asdict(row) | {"fit_s": row.fit_s} for row in rows])
    notes = (
        "fit: all epochs or steps, without set-up (making the network) and without the first step, which compiles; "
        "median over repetitions with its interval",
        "turn: an epoch, as many as the title says, or with --steps a step; median ± the farther end of its 95 % "
        "interval",
        f"{TIMES} ours: its time / ours in the same turn, above 1 ours is faster",
        "test accuracy and loss: mean over repetitions with its 95 % interval",
        f"equivalent: two one-sided t tests at 5 % of the accuracies' difference, margin {100 * margin:g} points, "
        "paired by repetition; the bracket is its 90 % interval. Of a single repetition (1x): over the test images, as "
        "independent shares, which says nothing about another training",
    )
    return Table("Training in turns", HEADINGS, sections, frame, ("contestant",), notes)


def not_trained(rows: Iterable[Training]) -> Table:
    """Every repetition that did not come to its end, with the status and the reason."""
    rows = tuple(row for row in rows if row.status != "OK")
    sections = tuple(
        Section(title, tuple(Line((r.contestant, str(r.repetition + 1), _words(r.status), r.reason)) for r in group))
        for title, group in by(rows, _title).items()
    )
    headings = ("contestant", "repetition", "status", "reason")
    frame = pd.DataFrame.from_records([asdict(row) for row in rows])
    return Table("Not trained to the end", headings, sections, frame, ("contestant", "status", "reason"))


def turns(rows: Iterable[Training]) -> pd.DataFrame:
    """One line per turn: who, which repetition, seconds, loss, accuracy."""
    records = []
    for row in rows:
        common = {name: value for name, value in asdict(row).items() if name not in PER_TURN}
        parts = zip(*(getattr(row, name) for name in PER_TURN), strict=True)
        found = [dict(zip(("steps", "seconds", "loss", "accuracy"), part, strict=True)) for part in parts]
        records += [common | {"turn": i} | part for i, part in enumerate(found, start=1)] or [common]
    return pd.DataFrame.from_records(records)


def compared(ours: Sequence[Training], theirs: Sequence[Training], margin: float) -> Equivalence | None:
    """Their accuracy less ours, repetition by repetition; None where no repetition has both."""
    pairs = list(_pairs(ours, theirs))
    accuracies = [(t.test_accuracy, o.test_accuracy, o.test_samples) for o, t in pairs]
    found = [(t, o, n) for t, o, n in accuracies if t is not None and o is not None and n is not None]
    if len(found) == 1:
        return equivalence_of_shares(*found[0], margin)
    return equivalence([t - o for t, o, _ in found], margin) if found else None


def _section(rows: Sequence[Training], margin: float) -> Section:
    by_contestant = by(rows, attrgetter("contestant"))
    first = next((own for own in by_contestant.values() if not own[0].competitor), [])
    lines = [_line(name, own, first, margin) for name, own in by_contestant.items()]
    return Section(_title(rows[0]), tuple(lines))


def _words(status: str) -> str:
    return status.lower().replace("_", " ")


def _title(row: Training) -> str:
    return f"{row.name}  {row.structure}  {row.plan}"


def _line(name: str, rows: Sequence[Training], ours: Sequence[Training], margin: float) -> Line:
    done = [row for row in rows if row.status == "OK"]
    if not done:
        return Line((name, "0", *[MISSING] * (len(HEADINGS) - 2)))
    fit = median_interval([row.fit_s for row in done])
    turn = median_interval([1e3 * seconds for row in done for seconds in row.seconds])
    accuracy = _mean(row.test_accuracy for row in done)
    loss = _mean(row.test_loss for row in done)
    is_first = rows is ours
    pairs = [] if is_first else list(_pairs(ours, done))
    both = [(t, o) for our, their in pairs for o, t in zip(our.seconds, their.seconds, strict=True)]
    over = speedup(*map(list, zip(*both, strict=True))) if both else None
    found = None if is_first else compared(ours, done, margin)
    return Line(
        (
            name,
            str(len(done)),
            number(fit.median) if len(done) == 1 else with_interval(fit.median, fit.low, fit.high),
            with_spread(turn.median, turn.low, turn.high),
            with_interval(over.median, over.low, over.high, ratio) if over else MISSING,
            number(median_interval([row.setup_s or 0.0 for row in done]).median),
            number(median_interval([row.first_step_s or 0.0 for row in done]).median),
            with_interval(accuracy.median, accuracy.low, accuracy.high, _four),
            with_interval(loss.median, loss.low, loss.high),
            f"{100 * found.difference:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]" if found else MISSING,
            _verdict(found, len(pairs)),
        ),
        strong=is_first,
    )


def _mean(values: Iterable[float | None]) -> Interval:
    """The mean of those that there are; numbers have no accuracy."""
    known = [value for value in values if value is not None]
    return mean_interval(known) if known else Interval(math.nan, math.nan, math.nan)


def _pairs(ours: Sequence[Training], theirs: Sequence[Training]) -> Iterable[tuple[Training, Training]]:
    """Finished rows of the same repetition."""
    by_repetition = {row.repetition: row for row in ours if row.status == "OK"}
    for row in theirs:
        if row.repetition in by_repetition:
            yield by_repetition[row.repetition], row


def _verdict(found: Equivalence | None, repetitions: int) -> str:
    if found is None:
        return MISSING
    return f"{'yes' if found.is_shown else 'not shown'}, p {number(found.p, 2)}{' (1x)' if repetitions == 1 else ''}"


def _four(value: float | None) -> str:
    return number(value, 4)
