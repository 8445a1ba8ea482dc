"""The report of two runs beside each other: a verdict per case, and how many there are of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from bench.compare import ABSOLUTE, FASTER, SLOWER, VERDICTS, Comparison, Outcome
from bench.memory import HOT
from bench.results import Run
from bench.sources import Source, is_one_machine
from bench.statistics import LEVEL, POWER, detectable
from reports.formats import MISSING, Line, Report, Section, Table, number

CHANGES = ("cpu", "os", "gpu_driver", "python", "keras_backend")
"""Of a machine's description, what is said where it is not the same."""


def report(base: Source, new: Source, outcome: Outcome, margin: float) -> Report:
    """Everything about one comparison; the frame for CSV has a line for each case and implementation."""
    where = "" if is_one_machine(base, new) else f" · ACROSS MACHINES, {base.where} and {new.where}"
    tables = (summary(outcome, where), cases(outcome, margin, where), lost(outcome, where))
    frame = tables[1].frame
    return Report(heading(base, new, outcome), tuple(table for table in tables if table.sections), frame)


def heading(base: Source, new: Source, outcome: Outcome) -> tuple[tuple[str, str], ...]:
    """(label, text) lines: the two runs, what differs between them, what the times are."""
    anchors = Counter(each.anchor for each in outcome.comparisons)
    relative = [f"{count} relative to {name}" for name, count in anchors.items() if name != ABSOLUTE]
    absolute = anchors[ABSOLUTE]
    lines = (
        ("base", _described(base)),
        ("new", _described(new)),
        ("machines", "" if is_one_machine(base, new) else f"{base.where} and {new.where}: DIFFERENT"),
        ("differs", "; ".join(_differences(base.run, new.run))),
        ("times", ", ".join([*relative, *([f"{absolute} as measured"] if absolute else [])])),
        (
            "as measured",
            "the runs are of different times: a machine that was slower in one is a change here, and no interval knows "
            "of it; name an implementation that both have with --relative-to"
            if absolute
            else "",
        ),
        ("not compared", _uncompared(outcome)),
    )
    return tuple((label, text) for label, text in lines if text)


def summary(outcome: Outcome, where: str = "") -> Table:
    """How many cases of each operation and direction got which verdict."""
    counts: dict[str, Counter[str]] = {}
    for each in outcome.comparisons:
        counts.setdefault(f"{each.op} {each.direction}".strip(), Counter())[each.verdict] += 1
    total = sum(counts.values(), Counter())
    lines = [Line((name, *(str(found[verdict]) for verdict in VERDICTS))) for name, found in counts.items()]
    lines.append(Line(("all", *(str(total[verdict]) for verdict in VERDICTS)), strong=True))
    frame = pd.DataFrame.from_records([{"of": name, **found} for name, found in counts.items()])
    return Table(f"Verdicts{where}", ("", *VERDICTS), (Section("", tuple(lines)),), frame, ("",))


def cases(outcome: Outcome, margin: float, where: str = "") -> Table:
    """Every case: the change with its interval, what could have been found, and the verdict."""
    sections: dict[str, list[Line]] = {}
    for each in outcome.comparisons:
        sections.setdefault(f"{each.op} {each.direction}".strip(), []).append(_line(each))
    return Table(
        f"Every case{where}",
        ("case", "implementation", "change", "95 %", "finds", "relative to", "verdict"),
        tuple(Section(title, tuple(lines)) for title, lines in sections.items()),
        pd.DataFrame.from_records([_record(each) for each in outcome.comparisons]),
        left=("case", "implementation", "relative to", "verdict"),
        notes=(
            "change: NEW's time over BASE's, less 1: + is slower. 95 %: its interval, of this case alone",
            f"faster, slower: tested together over all cases; of these verdicts {LEVEL:.0%} are expected to be false "
            "(Benjamini-Hochberg)",
            f"same: the interval lies within {margin:.3g} of 1. can't tell: neither",
            f"finds: the smallest change that such a case finds in {POWER:.0%} of the times",
            f"!: slower by more than {margin:.1%}, tested together over all cases",
        ),
    )


def lost(outcome: Outcome, where: str = "") -> Table:
    """What has no time any more, with its status and reason."""
    lines = [
        Line((f"{row.op} {row.direction} {row.spec}", row.implementation, row.status, row.reason))
        for row in outcome.lost
    ]
    headings = ("case", "implementation", "status", "reason")
    frame = pd.DataFrame.from_records([line.cells for line in lines], columns=list(headings))
    return Table(f"No longer timed{where}", headings, (Section("", tuple(lines)),) if lines else (), frame, headings)


def _line(each: Comparison) -> Line:
    ratio = each.ratio
    interval = f"{_percent(ratio.low)} to {_percent(ratio.high)}" if ratio.low == ratio.low else MISSING
    cells = (
        each.case if each.state == HOT else f"{each.case}, {each.state}",
        each.implementation,
        _percent(ratio.median),
        interval,
        f"{number(100 * detectable(ratio), 2)}%",
        MISSING if each.anchor == ABSOLUTE else each.anchor,
        each.verdict + " !" * each.is_beyond,
    )
    return Line(cells, strong=each.verdict in (FASTER, SLOWER))


def _record(each: Comparison) -> dict[str, Any]:
    ratio = each.ratio
    names = ("op", "direction", "case", "state", "implementation", "anchor")
    return {name: getattr(each, name) for name in names} | {
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "detectable": detectable(ratio),
        "p": each.estimate.p(),
        "verdict": each.verdict,
        "is_beyond": each.is_beyond,
    }


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"


def _described(source: Source) -> str:
    commit = source.run.machine.get("commit")
    parts = (source.label, f"commit {commit}" if commit else "", source.run.started, source.machine)
    return ", ".join(filter(None, parts))


def _differences(base: Run, new: Run) -> Iterable[str]:
    """What else is known to have changed between the runs: a cause that the verdicts cannot tell from the code."""
    pairs: dict[str, tuple[Any, Any]] = {"threads": (base.threads, new.threads)}
    pairs |= {name: (base.machine.get(name), new.machine.get(name)) for name in CHANGES}
    pairs |= {name: (value, new.options.get(name)) for name, value in base.options.items()}
    versions = base.machine.get("versions", {}), new.machine.get("versions", {})
    if all(versions):
        pairs |= {
            name: (versions[0].get(name, "none"), versions[1].get(name, "none")) for name in versions[0] | versions[1]
        }
    return [f"{name} {one} -> {other}" for name, (one, other) in pairs.items() if one and other and one != other]


def _uncompared(outcome: Outcome) -> str:
    counts = ((outcome.only_in_base, "timed in base only"), (outcome.only_in_new, "timed in new only"))
    return ", ".join(f"{count} {words}" for count, words in counts if count)
