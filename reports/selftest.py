"""What the harness's test of itself found, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from bench.results import Run
from bench.selftest import Trial, conclusions, findings
from bench.statistics import LEVEL, POWER
from reports.formats import Line, Report, Section, Table, number
from reports.tables import heading

HEADINGS = ("injected", "pairs", "found", "95 %, exact", "reversed", "measured", "rounds", "could find")


def report(run: Run, trials: Sequence[Trial], budget_s: float) -> Report:
    """The heading, a line for each injected slow-down, and what follows; the frame has a line for every pair."""
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
    )
    return Report(heading(run, ()), tables, frame)


def _record(trial: Trial) -> dict[str, object]:
    record = asdict(trial)
    ratio = record.pop("ratio")
    return record | {"ratio": ratio["median"], "low": ratio["low"], "high": ratio["high"]}


def _percent(share: float) -> str:
    return f"{number(100 * share, 2)}%"
