"""pandas frames of what was measured: one line per measurement, units in the column names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.results import FIGURES, TIMED, Interval, Row, Run
from bench.statistics import detectable, median_interval, speedup
from impls.specs import SPEC_TYPES, parse

if TYPE_CHECKING:
    from bench.store import Store

SPEC_COLUMNS = tuple(dict.fromkeys(field.name for kind in SPEC_TYPES.values() for field in fields(kind)))
_COUNTS = (
    *("batch", "height", "width", "side", "channels", "filters", "groups", "inputs", "units", "rounds", "loops"),
    *("exposed_samples", "dirty_samples"),
)

_FIRST_COLUMNS = (
    *("suite", "op", "direction", "case", "implementation", "competitor", "device", "algorithm", "arithmetic"),
    *("status", "reason", "median_ms", "low_ms", "high_ms", "min_ms", "gflops", "gbytes_per_s", "fraction", "binding"),
    *("error_bounds", "dense_error", "ran_algorithm", "ran_arithmetic", "repeatable"),
)
_DEVICE_COLUMNS = ("clocks", "launched", "exposed_samples", "dirty_samples")
_LAST_COLUMNS = (
    *("setup_ms", "first_call_ms", "rounds", "loops", "stop", "state", "workspace_mb", "peak_mb"),
    *("minor_faults", "major_faults", "grown_bytes"),
    *_DEVICE_COLUMNS,
    *("side", *SPEC_COLUMNS),
)


FIRST = ("keras", "torch", "keras_reuse", "torch_reuse", "torch_cuda", "keras_jax_cuda")
"""The competitors that stand before all others."""

_ENDS = ("", "_low", "_high")
"""Of an interval's columns."""


def measurements(rows: Iterable[Row]) -> pd.DataFrame:
    """One line per row: identity, status, times in ms, rates, errors, ratios over each competitor, sizes.

    ``over_<competitor>`` is its time over ours, above 1 ours is faster; ``_low`` and ``_high`` bound it,
    ``_detectable`` is the smallest difference that it finds (bench.statistics.detectable). Missing values are NA.
    ``side`` is the height of a square image; pairs are texts such as 3x3. Each of the figures that a row has beside the
    resident one has columns of its own: ``kernel_ms``, ``kernel_over_<competitor>``, and their bounds.
    """
    rows = latest(rows)
    found = figures(rows)
    ratios = [f"over_{name}{end}" for name in competitors(rows) for end in _ENDS]
    finds = [f"over_{name}_detectable" for name in competitors(rows)]
    more = [f"{figure}{end}_ms" for figure in found for end in _ENDS]
    more += [f"{figure}_{ratio}" for figure in found for ratio in ratios]
    block_of = {id(row): block for block in blocks(rows).values() for row in block}
    frame = pd.DataFrame.from_records(
        [_record(row) | _figure_record(row, block_of[id(row)]) for row in rows],
        columns=[*_FIRST_COLUMNS, *ratios, *finds, *more, *_LAST_COLUMNS],
    )
    return frame.astype(dict.fromkeys(_COUNTS, "Int64"))


def stored(store: Store, run_id: int | None = None) -> pd.DataFrame:
    """The measurements of one run, or of every run, each preceded by its run, machine, commit and threads."""
    rows_of: dict[int, list[Row]] = {}
    for number, row in store.rows(run_id):
        rows_of.setdefault(number, []).append(row)
    parts = []
    for run in store.runs():
        if run.id in rows_of:
            part = measurements(rows_of[run.id])
            for position, (name, value) in enumerate(_run_record(run).items()):
                part.insert(position, name, value)
            parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else measurements(())


def select(
    rows: Iterable[Row],
    ops: Sequence[str] = (),
    suites: Sequence[str] = (),
    directions: Sequence[str] = (),
    implementations: Sequence[str] = (),
) -> tuple[Row, ...]:
    """The rows that match; nothing given is no restriction."""
    return tuple(
        row
        for row in rows
        if (not ops or row.op in ops)
        and (not suites or row.suite in suites)
        and (not directions or row.direction in directions)
        and (not implementations or row.implementation in implementations)
    )


def latest(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The last row of each op, direction, case and implementation: a resumed run may hold two."""
    return tuple({(row.op, row.direction, row.spec, row.implementation): row for row in rows}.values())


def competitors(rows: Iterable[Row]) -> tuple[str, ...]:
    """The competitors over which a ratio was formed: those of FIRST in their order, then by name."""
    found = {name for row in rows for name in row.speedups}
    return (*(name for name in FIRST if name in found), *sorted(found.difference(FIRST)))


def figures(rows: Iterable[Row]) -> tuple[str, ...]:
    """The figures beside the resident one that any of these rows has, in the order of bench.results.FIGURES."""
    rows = tuple(rows)
    return tuple(figure for figure in FIGURES if any(row.figures.get(figure) for row in rows))


def figure_interval(row: Row, figure: str) -> Interval | None:
    """The median of a figure's samples in seconds, with its interval; None where it was not taken."""
    samples = row.figures.get(figure)
    return median_interval(samples) if samples else None


def figure_speedups(row: Row, figure: str, block: Iterable[Row]) -> dict[str, Interval]:
    """A figure's speed-ups over the competitors that the resident time is compared with, round by round.

    ``block``: the rows of the same op, direction and case. One that lacks the figure is left out.
    """
    ours = row.figures.get(figure)
    theirs = {other.implementation: other.figures.get(figure) for other in block}
    return {name: speedup(samples, ours) for name in row.speedups if ours and (samples := theirs.get(name))}


def blocks(rows: Iterable[Row]) -> dict[tuple[str, str, str], tuple[Row, ...]]:
    """Rows by (op, direction, case): what was measured in the same rounds, in the order of the run."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in latest(rows):
        found.setdefault((row.op, row.direction, row.spec), []).append(row)
    return {key: tuple(block) for key, block in found.items()}


def timed(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows that carry a time."""
    return tuple(row for row in rows if row.status in TIMED and row.median_s is not None)


def _record(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {name: getattr(row, name) for name in _FIRST_COLUMNS + _LAST_COLUMNS if hasattr(row, name)}
    record |= {"case": row.spec, "rounds": len(row.samples_s)}
    for name in ("median", "low", "high", "min", "setup", "first_call"):
        seconds = getattr(row, f"{name}_s")
        record[f"{name}_ms"] = None if seconds is None else seconds * 1e3
    for name in ("workspace", "peak"):
        count = getattr(row, f"{name}_bytes")
        record[f"{name}_mb"] = None if count is None else count / 1e6
    for name, ratio in row.speedups.items():
        record |= {f"over_{name}": ratio.median, f"over_{name}_low": ratio.low, f"over_{name}_high": ratio.high}
        record[f"over_{name}_detectable"] = detectable(ratio)
    return record | _spec_record(row.op, row.spec)


def _figure_record(row: Row, block: Iterable[Row]) -> dict[str, Any]:
    """A row's further figures as cells."""
    record: dict[str, Any] = {}
    for figure in figures([row]):
        interval = figure_interval(row, figure)
        if interval:
            times = zip(_ENDS, (interval.median, interval.low, interval.high), strict=True)
            record |= {f"{figure}{end}_ms": seconds * 1e3 for end, seconds in times}
        for name, ratio in figure_speedups(row, figure, block).items():
            values = zip(_ENDS, (ratio.median, ratio.low, ratio.high), strict=True)
            record |= {f"{figure}_over_{name}{end}": value for end, value in values}
    return record


@cache
def _spec_record(op: str, text: str) -> dict[str, Any]:
    """A spec's fields as cells; pairs are texts, explicit padding is top:bottom:left:right."""
    spec = parse(op, text)
    record = {field.name: getattr(spec, field.name) for field in fields(spec)}
    if not isinstance(record.get("padding", ""), str):
        record["padding"] = ":".join(str(side) for pair in record["padding"] for side in pair)
    record = {name: "x".join(map(str, v)) if isinstance(v, tuple) else v for name, v in record.items()}
    height = record.get("height")
    return record | {"side": height if height == record.get("width") else None}


def _run_record(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "started": run.started,
        "machine": run.machine.get("id", ""),
        "commit": run.machine.get("commit", ""),
        "threads": run.threads,
    }
