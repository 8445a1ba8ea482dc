"""The best of ours beside the best competitor, case by case: what is won by choosing, and where it is lost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.results import Interval, Row
from bench.statistics import geometric_mean
from reports.formats import Line, Section, Table, ratio, with_interval
from reports.frames import blocks, latest, timed

WORST = 5
"""Cases of a direction that are listed."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """One case and direction: the fastest of ours, and the competitor that it beats least or loses to most."""

    op: str
    direction: str
    case: str
    ours: str
    theirs: str
    speedup: Interval
    """Their time over ours in the same rounds."""


def meetings(rows: Iterable[Row]) -> tuple[Meeting, ...]:
    """One for every case and direction in which one of ours and a competitor were timed together on one device."""
    found = []
    for (op, direction, case), block in blocks(latest(rows)).items():
        device_of = {row.implementation: row.device for row in timed(block) if row.competitor}
        own = [_hardest(row, device_of) for row in timed(block) if not row.competitor]
        met = [each for each in own if each is not None]
        if met:
            ours, theirs, speedup = max(met, key=lambda each: each[2].median)
            found.append(Meeting(op, direction, case, ours, theirs, speedup))
    return tuple(found)


def _hardest(row: Row, device_of: dict[str, str]) -> tuple[str, str, Interval] | None:
    """(name, competitor, speed-up) over the competitor on its device over which the row's speed-up is least."""
    over = {name: speedup for name, speedup in row.speedups.items() if device_of.get(name) == row.device}
    if not over:
        return None
    theirs = min(over, key=lambda name: over[name].median)
    return row.implementation, theirs, over[theirs]


def best_of_each(rows: Iterable[Row], where: str = "") -> Table:
    """Per op and direction the geometric mean of the meetings' speed-ups, and the worst case."""
    by_direction: dict[tuple[str, str], list[Meeting]] = defaultdict(list)
    for meeting in meetings(rows):
        by_direction[meeting.op, meeting.direction].append(meeting)
    records = [_record(op, direction, found) for (op, direction), found in by_direction.items()]
    return Table(
        f"Best of ours beside the best competitor{where}",
        ("", "cases", "speed-up", "lowest", "slower"),
        (Section("", tuple(map(_line, records))),) if records else (),
        pd.DataFrame.from_records(records),
        left=("",),
        notes=(
            "speed-up: time of the case's best competitor / time of the fastest of ours, in the same rounds and on one "
            "device; geometric mean over the cases (95 % bootstrap interval)",
            "lowest: in the worst case. slower: cases in which the best of ours took longer",
        ),
    )


def worst_cases(rows: Iterable[Row], where: str = "") -> Table:
    """Per op and direction the cases in which the best of ours is furthest behind the best competitor."""
    worst = sorted(meetings(rows), key=lambda meeting: meeting.speedup.median)
    by_direction: dict[str, list[Meeting]] = defaultdict(list)
    for meeting in worst:
        by_direction[f"{meeting.op} {meeting.direction}"].append(meeting)
    sections = (
        Section(title, tuple(Line((m.case, m.ours, m.theirs, _interval(m.speedup))) for m in found[:WORST]))
        for title, found in by_direction.items()
    )
    return Table(
        f"Worst cases of ours{where}",
        ("case", "best of ours", "best competitor", "speed-up"),
        tuple(sections),
        pd.DataFrame.from_records([_of(m) for m in worst]),
        left=("case", "best of ours", "best competitor"),
    )


def _of(meeting: Meeting) -> dict[str, Any]:
    return {
        "op": meeting.op,
        "direction": meeting.direction,
        "case": meeting.case,
        "ours": meeting.ours,
        "theirs": meeting.theirs,
        "speedup": meeting.speedup.median,
    }


def _record(op: str, direction: str, found: Sequence[Meeting]) -> dict[str, Any]:
    mean = geometric_mean([meeting.speedup.median for meeting in found])
    lowest = min(found, key=lambda meeting: meeting.speedup.median)
    return {
        "op": op,
        "direction": direction,
        "cases": len(found),
        "speedup": mean.median,
        "speedup_low": mean.low,
        "speedup_high": mean.high,
        "lowest": lowest.speedup.median,
        "where": lowest.case,
        "slower": sum(meeting.speedup.median < 1 for meeting in found),
        "ours": _counted(meeting.ours for meeting in found),
        "theirs": _counted(meeting.theirs for meeting in found),
    }


def _line(record: dict[str, Any]) -> Line:
    mean = Interval(record["speedup"], record["speedup_low"], record["speedup_high"])
    return Line(
        (
            f"{record['op']} {record['direction']}",
            str(record["cases"]),
            _interval(mean),
            ratio(record["lowest"]),
            str(record["slower"]),
        )
    )


def _interval(interval: Interval) -> str:
    return with_interval(interval.median, interval.low, interval.high, ratio)


def _counted(names: Iterable[str]) -> str:
    """Names with how often each occurs, the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())
