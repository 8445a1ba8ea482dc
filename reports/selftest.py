"""What the harness's test of itself found, and what the harness costs, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from bench.overhead import Overhead
from bench.results import Interval, Run
from bench.selftest import Trial, conclusions, findings
from bench.statistics import LEVEL, POWER
from reports.formats import Line, Report, Section, Table, number, with_interval
from reports.tables import heading

HEADINGS = ("injected", "pairs", "found", "95 %, exact", "reversed", "measured", "rounds", "could find")


def report(run: Run, trials: Sequence[Trial], budget_s: float, costs: Sequence[Overhead]) -> Report:
    """The heading, a line for each injected slow-down, what follows, and the costs; the frame has a line per pair."""
    frame = pd.DataFrame.from_records([_record(trial) for trial in trials])
    found = findings(trials)
    lines = tuple(
        Line(
            (
                _percent(finding.injected) if finding.injected else "none",
                str(finding.trials),
                _percent(finding.found.median),
                f"{_percent(finding.found.low)} to {_percent(finding.found.high)}",
                str(finding.reversed),
                f"{100 * finding.measured:+.2f}%",
                number(finding.rounds),
                _percent(finding.detectable),
            )
        )
        for finding in found
    )
    notes = (
        "found: the second of a pair was found slower; where nothing was injected, it was found different",
        "reversed: it was found faster. measured: the median of the ratios, less 1. rounds: their median",
        f"could find: what a pair's own interval promises to find in {POWER:.0%} at {LEVEL:.0%}, median over the pairs",
    )
    tables = (
        Table("Pairs whose difference is known", HEADINGS, (Section("", lines),), frame, notes=notes),
        Table(
            "What follows", ("",), (Section("", tuple(Line((s,)) for s in conclusions(found, budget_s))),), frame, ("",)
        ),
        overhead(costs),
    )
    return Report(heading(run, ()), tables, frame)


def overhead(costs: Sequence[Overhead]) -> Table:
    """What the harness itself costs, a line for each problem."""
    lines = tuple(
        Line(
            (
                each.case,
                str(each.loops),
                *(_spread(interval, 1e3) for interval in (each.sample, each.beside)),
                _spread(each.inside, 1e9),
                _spread(each.isolation),
            )
        )
        for each in costs
    )
    return Table(
        "What the harness costs",
        ("case", "calls", "sample, ms", "beside it, ms", "inside, ns a call", "apart / in one"),
        (Section("", lines),),
        pd.DataFrame.from_records([asdict(each) for each in costs]),
        ("case",),
        notes=(
            "beside it: to let a worker go on, an untimed call, to look at the outputs, to answer and to stop it",
            "inside: a call that does nothing, in samples of as many calls, with their two readings of the clock",
            "apart / in one: the time of a call in a process of its own over that of the same in one process",
        ),
    )


def _spread(interval: Interval, unit: float = 1.0) -> str:
    return with_interval(unit * interval.median, unit * interval.low, unit * interval.high)


def _record(trial: Trial) -> dict[str, object]:
    record = asdict(trial)
    ratio = record.pop("ratio")
    return record | {"ratio": ratio["median"], "low": ratio["low"], "high": ratio["high"]}


def _percent(share: float) -> str:
    return f"{number(100 * share, 2)}%"
