"""How long a person waits for the first result: plans, the first of which compiles or loads, and first calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import pandas as pd

from bench.results import Row
from reports.formats import Line, Section, Table, number, ratio
from reports.frames import latest, timed


def starting(rows: Iterable[Row], where: str = "") -> Table:
    """Per op and implementation: the longest plan, the median of all, and of first calls; ours first."""
    by_name: dict[tuple[str, bool, str], list[Row]] = {}
    for row in timed(latest(rows)):
        if row.setup_s is not None and row.first_call_s is not None:
            by_name.setdefault((row.op, row.competitor, row.implementation), []).append(row)
    records = [_record(*key, found) for key, found in sorted(by_name.items())]
    ops = dict.fromkeys(record["op"] for record in records)
    return Table(
        f"Until the first result{where}",
        ("implementation", "plans", "longest, s", "median, ms", "first call, ms", "/ a call"),
        tuple(Section(op, tuple(_line(record) for record in records if record["op"] == op)) for op in ops),
        pd.DataFrame.from_records(records),
        left=("implementation",),
        notes=(
            "longest, median: making and binding a plan; the first of a process compiles, or loads what was compiled",
            "first call: median; / a call: over the time of later calls, median. † competitor",
        ),
    )


def _record(op: str, competitor: bool, name: str, found: Sequence[Row]) -> dict[str, Any]:
    setups = [row.setup_s for row in found if row.setup_s is not None]
    calls = [(row.first_call_s, row.median_s) for row in found if row.first_call_s is not None and row.median_s]
    return {
        "op": op,
        "implementation": name,
        "competitor": competitor,
        "plans": len(found),
        "longest_setup_s": max(setups),
        "setup_s": median(setups),
        "first_call_s": median(first for first, _ in calls),
        "first_call_over_call": median(first / later for first, later in calls),
    }


def _line(record: dict[str, Any]) -> Line:
    return Line(
        (
            record["implementation"] + (" †" if record["competitor"] else ""),
            str(record["plans"]),
            number(record["longest_setup_s"]),
            number(1e3 * record["setup_s"]),
            number(1e3 * record["first_call_s"]),
            ratio(record["first_call_over_call"]),
        )
    )
