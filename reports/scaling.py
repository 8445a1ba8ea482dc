"""How a convolution's time grows with one parameter and falls with threads, beside what the machine allows at least.

What is shown are the store's latest runs of the suite ``scaling``, one for each number of threads, and of them what
computes on the processor. The model has two times for a case: its operations at the highest measured rate of
multiply-adds, and its bytes at the measured rates of the memories (bench.ceilings). The longer one binds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.ceilings import (
    CPU,
    IN_RUN,
    Bound,
    Ceiling,
    bound_by_bytes,
    bound_by_flops,
    ceiling_of,
    in_force,
    in_words,
    longer,
)
from bench.results import Row, Run
from bench.statistics import geometric_mean
from bench.store import Store, StoreError
from bench.suites import BASE, SCALING, SWEEPS
from impls import Case
from impls.specs import DIRECTIONS
from reports.formats import Line, Report, Section, Table, number, ratio, with_interval
from reports.frames import latest, timed
from reports.tables import MARK, heading

MODEL = "model"
"""The name of the model's lines among those of implementations."""
OPERATIONS = "operations"
"""What binds where no level of memory does."""

THREADS = "threads"
"""The file stem of the figure of threads."""

_COLUMNS = (
    *("parameter", "value", "threads", "direction", "case", "implementation", "competitor", "status"),
    *("flops", "median_ms", "low_ms", "high_ms", "operations_ms", "bytes_ms", "roof"),
)
_GAINS = ("direction", "threads", "implementation", "competitor", "cases", "speedup", "low", "high", "least", "most")
_SHARED = ("machine", "software", "a time is")
"""Lines of a run's heading that hold for runs with other threads as well."""

SWEEP_NOTES = (
    "ms per call: the median over rounds; ~: noisy, its interval is wider than asked. † competitor",
    "operations, bytes: the least time by the measured rates of multiply-adds and of memories; the longer one binds. "
    "Winograd does fewer operations and may take less",
)
GAIN_NOTES = (
    "speed-up: time with the fewest threads / time with these, geometric mean over the cases with its 95 % interval; "
    "least, most: of single cases",
    "The two times come from different runs, not from the same rounds: a drift of the machine between them is in it",
    f"{MODEL}: the same ratio of the times that bind: what the machine can give",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """A run of the suite, and its rows."""

    run: Run
    rows: tuple[Row, ...]

    @property
    def threads(self) -> int:
        """Of every pool."""
        return self.run.threads

    @property
    def timed(self) -> tuple[Row, ...]:
        """The rows that carry a time of the processor."""
        return timed(row for row in self.rows if row.device == CPU)

    @property
    def ceilings(self) -> tuple[Ceiling, ...]:
        """What was measured in this run of the processor with these threads."""
        return in_force(map(ceiling_of, self.run.machine.get(IN_RUN, ())), CPU, self.threads)


def measured(store: Store) -> tuple[Measured, ...]:
    """The latest run of the suite with each number of threads, fewest first, on the machine of the very latest.

    Runs without a time are passed over. Raises StoreError where none is left.
    """
    found = []
    for run in store.runs():
        if run.suite == SCALING:
            each = Measured(run, latest(row for _, row in store.rows(run.id)))
            found += [each] if each.timed else []
    if not found:
        command = f"layerbench run --suite {SCALING} --threads N --db {store.address}"
        raise StoreError(f"{store.address} holds no time of suite {SCALING}; make some, for each number N: {command}")
    here = found[-1].run.machine.get("id")
    by_threads = {each.threads: each for each in found if each.run.machine.get("id") == here}
    return tuple(by_threads[threads] for threads in sorted(by_threads))


def report(taken: Sequence[Measured]) -> Report:
    """A table for threads, and one for each parameter; the frame holds every point with its model."""
    frame = curves(taken)
    return Report(heading_of(taken), tuple(tables(frame).values()), frame)


def tables(frame: pd.DataFrame) -> dict[str, Table]:
    """The tables that these points allow, by the stem of the figure with the same numbers."""
    found = {THREADS: threads_table(gains(frame))}
    found |= {stem_of(parameter): sweep_table(frame, parameter) for parameter in SWEEPS}
    return {stem: table for stem, table in found.items() if table.sections}


def stem_of(parameter: str) -> str:
    """The file stem of a parameter's figure."""
    return parameter.replace(" ", "-")


def heading_of(taken: Sequence[Measured]) -> tuple[tuple[str, str], ...]:
    """(label, text) lines: what the runs have in common, then each run with its ceilings."""
    newest = taken[-1]
    lines = [(label, text) for label, text in heading(newest.run, newest.timed) if label in _SHARED]
    for each in taken:
        run = each.run
        commit = f"commit {run.machine['commit']}" if "commit" in run.machine else None
        parts = (f"run {run.id}", run.started, commit, in_words(each.ceilings))
        lines.append((threads_text(each.threads), ", ".join(filter(None, parts))))
    return tuple(lines)


def threads_text(count: int) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{count} thread{'s' * (count != 1)}"


def base_text(parameter: str) -> str:
    """What stays the same while a parameter is varied: ``batch 32, image 32x32, ...``."""
    sizes = {
        "batch": f"batch {BASE.batch}",
        "image side": f"images {BASE.height}x{BASE.width}",
        "channels and filters": f"{BASE.channels} channels, {BASE.filters} filters",
        "kernel side": f"kernel {BASE.kernel[0]}x{BASE.kernel[1]}",
    }
    return ", ".join(text for name, text in sizes.items() if name != parameter)


def curves(taken: Iterable[Measured]) -> pd.DataFrame:
    """A line for every point of every curve: parameter and value, time with its interval, and the model's two times.

    A case that is in several sweeps has a line in each. Without ceilings in the run the model's times are NaN.
    """
    records = []
    for each in taken:
        limits = each.ceilings
        for parameter, sweep in SWEEPS.items():
            value_of = {str(spec): value for value, spec in sweep.items()}
            own = [row for row in each.timed if row.op == "conv2d" and row.spec in value_of]
            for row in sorted(own, key=lambda row: (DIRECTIONS.index(row.direction), value_of[row.spec])):
                value = value_of[row.spec]
                place = {"parameter": parameter, "value": value, "threads": each.threads, "flops": sweep[value].flops}
                records.append(place | _point(row) | _model(Case("conv2d", sweep[value]), row.direction, limits))
    return pd.DataFrame.from_records(records, columns=list(_COLUMNS))


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    """Speed-ups over the fewest threads, a line per direction, number of threads and implementation; the model's last.

    Geometric mean over the cases with its interval, and the least and most of single cases. Empty for one number of
    threads.
    """
    records = []
    pairs = _pairs(frame)
    for (direction, threads), part in pairs.groupby(["direction", "threads"], sort=False):
        place = {"direction": direction, "threads": threads}
        for (competitor, name), own in part.groupby(["competitor", "implementation"]):
            records.append(place | {"implementation": name, "competitor": competitor} | _gain(own["speedup"]))
        bound = part.drop_duplicates("case")["model"].dropna()
        if len(bound):
            records.append(place | {"implementation": MODEL, "competitor": False} | _gain(bound))
    return pd.DataFrame.from_records(records, columns=list(_GAINS))


def sweep_table(frame: pd.DataFrame, parameter: str) -> Table:
    """Milliseconds by the parameter's value, a section per direction and number of threads; the model's below."""
    part = frame[frame["parameter"] == parameter]
    values = sorted(part["value"].unique())
    sections = []
    for direction, threads in sorted({*zip(part["direction"], part["threads"], strict=True)}, key=_by_direction):
        block = part[(part["direction"] == direction) & (part["threads"] == threads)]
        lines = [
            Line((name + MARK * competitor, *_cells(own, values, _time_text)))
            for (competitor, name), own in block.groupby(["competitor", "implementation"])
        ]
        cases = block.drop_duplicates("value")
        if (cases["roof"] != "").any():
            lines += [
                Line((f"{MODEL}: operations", *_cells(cases, values, lambda point: number(point["operations_ms"])))),
                Line((f"{MODEL}: bytes", *_cells(cases, values, lambda point: number(point["bytes_ms"])))),
                Line(("what binds", *_cells(cases, values, lambda point: point["roof"]))),
            ]
        sections.append(Section(f"{direction}, {threads_text(threads)}", tuple(lines)))
    return Table(
        f"By {parameter}: {base_text(parameter)}",
        ("ms per call", *map(str, values)),
        tuple(sections),
        part,
        left=("ms per call",),
        notes=SWEEP_NOTES,
    )


def threads_table(found: pd.DataFrame) -> Table:
    """The speed-ups of ``gains``, a section per direction."""
    sections = [
        Section(str(direction), tuple(_gain_line(record) for _, record in part.iterrows()))
        for direction, part in found.groupby("direction", sort=False)
    ]
    return Table(
        "By threads",
        ("implementation", "threads", "cases", "speed-up", "least", "most"),
        tuple(sections),
        found,
        left=("implementation",),
        notes=GAIN_NOTES,
    )


def _by_direction(section: tuple[str, int]) -> tuple[int, int]:
    direction, threads = section
    return DIRECTIONS.index(direction), threads


def _point(row: Row) -> dict[str, Any]:
    known = {name: getattr(row, name) for name in ("direction", "implementation", "competitor", "status")}
    times = {f"{name}_ms": 1e3 * getattr(row, f"{name}_s") for name in ("median", "low", "high")}
    return known | times | {"case": row.spec}


def _model(case: Case, direction: str, limits: Sequence[Ceiling]) -> dict[str, Any]:
    by_operations, by_bytes = bound_by_flops(case, limits), bound_by_bytes(case, direction, limits)
    binding = longer(by_operations, by_bytes)
    roof = binding.ceiling.level or OPERATIONS if binding else ""
    return {"operations_ms": _ms(by_operations), "bytes_ms": _ms(by_bytes), "roof": roof}


def _ms(bound: Bound | None) -> float:
    return 1e3 * bound.seconds if bound else math.nan


def _pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Every case of more than the fewest threads beside itself with these: ``speedup``, and ``model``, the bounds'."""
    key = ["direction", "case", "implementation"]
    each = frame.drop_duplicates(["threads", *key])
    each = each.assign(bound_ms=each[["operations_ms", "bytes_ms"]].max(axis=1))
    is_fewest = each["threads"] == each["threads"].min()
    both: pd.DataFrame = each[~is_fewest].merge(each[is_fewest], on=key, suffixes=("", "_fewest"))
    both["speedup"] = both["median_ms_fewest"] / both["median_ms"]
    both["model"] = both["bound_ms_fewest"] / both["bound_ms"]
    return both


def _gain(ratios: pd.Series[float]) -> dict[str, Any]:
    mean = geometric_mean(ratios.tolist())
    interval = {"speedup": mean.median, "low": mean.low, "high": mean.high}
    return {"cases": len(ratios), **interval, "least": ratios.min(), "most": ratios.max()}


def _gain_line(record: pd.Series[Any]) -> Line:
    mean = with_interval(record["speedup"], record["low"], record["high"], ratio)
    name = record["implementation"] + MARK * record["competitor"]
    counts = (str(record["threads"]), str(record["cases"]))
    return Line((name, *counts, mean, ratio(record["least"]), ratio(record["most"])))


def _cells(points: pd.DataFrame, values: Iterable[int], written: Any) -> list[str]:
    """A text for each value; a dash where there is no point."""
    by_value = {point["value"]: point for point in points.to_dict("records")}
    return [written(by_value[value]) if value in by_value else number(None) for value in values]


def _time_text(point: Mapping[str, Any]) -> str:
    return f"{'~' * (point['status'] == 'NOISY')}{number(point['median_ms'])}"
