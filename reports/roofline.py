"""The roofline figure: how many operations a second a problem can get at most, by its operations per byte.

S. Williams, A. Waterman, D. Patterson: Roofline: an insightful visual performance model for multicore architectures.
Communications of the ACM 52(4), 2009. Roofs are the best measured rates; points are measured rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.ceilings import CPU, GFLOPS, Ceiling, fastest_by_level, fastest_compute, in_force
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
    slopes = {level: c.value for level, c in fastest_by_level(limits).items()}
    if not has_roofs(ceilings, threads, device):
        raise ValueError(f"a roofline takes a rate of operations and one of memory; {device} has not both")
    points = [(_intensity(row), row.gflops, row) for row in timed(rows) if row.device == device and row.gflops]
    made = Figure((8.5, 5.6), layout="constrained")
    axis = made.subplots()
    low, high = min([LEAST, *(x / 2 for x, *_ in points)]), max([MOST, *(x * 2 for x, *_ in points)])
    _roofs(axis, peaks, slopes, low, high)
    handles = _points(axis, points)
    bottom = min([min(slopes.values()) * low, *(y for _, y, _ in points)])
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom / 2, max(peaks.values()) * 2))
    axis.set_xlabel("operations per byte that has to move (FLOP/byte)", fontsize=9)
    axis.set_ylabel("GFLOP/s", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color="#E4E4E4", lw=0.5)
    who = ", ".join(str(machine[name]) for name in ("id", "cpu", "commit") if machine.get(name))
    counted = f"{threads} thread{'s' * (threads != 1)}" if device == CPU else device
    axis.set_title(f"Roofline: {who}, {counted}\nroofs: best measured rates; points: medians of hot calls", fontsize=9)
    if handles:
        made.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    return made


def has_roofs(ceilings: Sequence[Ceiling], threads: int, device: str = CPU) -> bool:
    """Whether there is a rate of operations and one of memory."""
    limits = in_force(ceilings, device, threads)
    return bool(fastest_compute(limits) and fastest_by_level(limits))


def _intensity(row: Row) -> float:
    case = parse_case(f"{row.op}:{row.spec}")
    return case.spec.flops / case.least_traffic(row.direction)


def _roofs(axis: Axes, peaks: Mapping[str, float], slopes: Mapping[str, float], low: float, high: float) -> None:
    """Slopes up to the highest peak, named along them; the peaks from where the steepest slope meets them."""
    highest, steepest = max(peaks.values()), max(slopes.values())
    for level, rate in slopes.items():
        x = np.array([low, highest / rate])
        axis.plot(x, rate * x, color=_INK, lw=1.2)
        along: dict[str, Any] = {
            "rotation": np.degrees(np.arctan(rate)),
            "rotation_mode": "anchor",
            "transform_rotates_text": True,
        }
        text, start = f"{level}: {number(rate)} GB/s", 1.15 * low
        axis.text(start, 1.12 * rate * start, text, fontsize=7.5, color=_INK, **along)
    for name, rate in peaks.items():
        is_product = "GEMM" in name
        axis.plot([rate / steepest, high], [rate, rate], color=_INK, lw=0.9, ls="--" if is_product else "-")
        y, side = (rate / 1.05, "top") if is_product else (rate * 1.01, "bottom")
        axis.text(high, y, f"{name}: {number(rate)} ", fontsize=7.5, color=_INK, ha="right", va=side)


def _points(axis: Axes, points: Sequence[tuple[float, float, Row]]) -> list[Line2D]:
    """One mark per row; colours tell implementations apart, shapes operations. What the legend holds."""
    names = sorted({(row.competitor, row.implementation) for *_, row in points})
    colours = {False: cycle(OURS), True: cycle(COMPETITORS)}
    colour_of = {name: next(colours[is_competitor]) for is_competitor, name in names}
    for x, y, row in points:
        colour = colour_of[row.implementation]
        axis.plot(x, y, ls="", color=colour, marker=_MARKERS[row.op], ms=6, mec="white", mew=0.4)
    shapes = [op for op in _MARKERS if op in {row.op for *_, row in points}]
    handles = [Line2D([], [], ls="", marker=_MARKERS[op], color=_INK, ms=5, label=op) for op in shapes]
    return handles + [Line2D([], [], lw=5, color=colour, label=name) for name, colour in colour_of.items()]
