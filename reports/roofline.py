"""The roofline figure: how many operations a second a problem can get at most, by its operations per byte.

S. Williams, A. Waterman, D. Patterson: Roofline: an insightful visual performance model for multicore architectures.
Communications of the ACM 52(4), 2009. Roofs are the best measured rates; points are measured rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.ceilings import CPU, GFLOPS, Ceiling, in_force
from bench.results import Row
from impls import parse_case
from reports.formats import number
from reports.frames import timed
from reports.plots import COMPETITORS, OURS

LEAST, MOST = 2.0**-5, 2.0**10
"""Operations per byte that are shown, more where a point asks for it."""
_MARKERS = {"conv2d": "o", "dense": "s", "maxpool2d": "^", "avgpool2d": "v"}
_INK = "#444444"


def figure(
    machine: Mapping[str, Any], ceilings: Sequence[Ceiling], threads: int, rows: Iterable[Row] = (), device: str = CPU
) -> Figure:
    """Roofs of this device, or of so many threads; and the rows that were timed there, if any.

    Raises ValueError without a rate of operations and one of memory.
    """
    limits = in_force(ceilings, device, threads)
    peaks = {c.name: c.value for c in limits if c.unit == GFLOPS}
    slopes = _best_by_level(limits)
    if not peaks or not slopes:
        raise ValueError(f"a roofline takes a rate of operations and one of memory; {device} has not both")
    points = [(_intensity(row), row) for row in timed(rows) if row.device == device]
    made = Figure((8.5, 5.6), layout="constrained")
    axis = made.subplots()
    low, high = min([LEAST, *(x / 2 for x, _ in points)]), max([MOST, *(x * 2 for x, _ in points)])
    _roofs(axis, peaks, slopes, low, high)
    _points(axis, points)
    bottom = min([min(slopes.values()) * low, *(row.gflops or 1 for _, row in points)])
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom / 2, max(peaks.values()) * 2))
    axis.set_xlabel("operations per byte that has to move (FLOP/byte)", fontsize=9)
    axis.set_ylabel("GFLOP/s", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color="#E4E4E4", lw=0.5)
    who = ", ".join(str(machine[name]) for name in ("id", "cpu", "commit") if machine.get(name))
    counted = f"{threads} thread{'s' * (threads != 1)}" if device == CPU else device
    axis.set_title(f"Roofline: {who}, {counted}\nroofs: best measured rates; points: medians of hot calls", fontsize=9)
    if points:
        made.legend(loc="outside right upper", fontsize=8, frameon=False)
    return made


def _best_by_level(limits: Iterable[Ceiling]) -> dict[str, float]:
    """GB/s of each level, whichever way it was gone through."""
    found: dict[str, float] = {}
    for each in limits:
        if each.level:
            found[each.level] = max(found.get(each.level, 0.0), each.value)
    return found


def _intensity(row: Row) -> float:
    case = parse_case(f"{row.op}:{row.spec}")
    return case.spec.flops / case.least_traffic(row.direction)


def _roofs(axis: Axes, peaks: Mapping[str, float], slopes: Mapping[str, float], low: float, high: float) -> None:
    """Slopes up to the highest peak, with their names along them; the peaks from where the steepest slope meets them."""
    highest, steepest = max(peaks.values()), max(slopes.values())
    for level, rate in slopes.items():
        x = np.array([low, highest / rate])
        axis.plot(x, rate * x, color=_INK, lw=1.2)
        text = f"{level} {number(rate)} GB/s"
        axis.annotate(text, (low, rate * low), (4, 2), textcoords="offset points", fontsize=7, color=_INK)
    for name, rate in peaks.items():
        axis.plot([rate / steepest, high], [rate, rate], color=_INK, lw=1.2 if rate == highest else 0.8)
        text = f"{name}: {number(rate)}"
        axis.annotate(text, (high, rate), (-3, 2), textcoords="offset points", fontsize=7, color=_INK, ha="right")


def _points(axis: Axes, points: Sequence[tuple[float, Row]]) -> None:
    """One mark per row; colours tell implementations apart, shapes operations."""
    names = sorted({(row.competitor, row.implementation) for _, row in points})
    ours = [name for is_competitor, name in names if not is_competitor]
    theirs = [name for is_competitor, name in names if is_competitor]
    colour_of = {name: OURS[i % len(OURS)] for i, name in enumerate(ours)}
    colour_of |= {name: COMPETITORS[i % len(COMPETITORS)] for i, name in enumerate(theirs)}
    labelled: set[str] = set()
    for x, row in points:
        name = row.implementation
        label = None if name in labelled else name
        labelled.add(name)
        axis.scatter(x, row.gflops or np.nan, 16, colour_of[name], _MARKERS[row.op], alpha=0.75, lw=0, label=label)
