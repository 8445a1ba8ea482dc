"""Figures of how times scale: by one parameter of a convolution, and by threads, both beside the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from bench.suites import SWEEPS
from impls.specs import DIRECTIONS
from reports.dressing import finished
from reports.formats import number
from reports.plots import Style, legend_of, styles
from reports.scaling import MODEL, THREADS, Measured, base_text, curves, gains, stem_of, threads_text

WIDTH, HEIGHT = 3.3, 2.7
"""Inches of a panel."""
INK = "#000000"
PALE = "#BBBBBB"
OF_MODEL = {"operations_ms": ("model: multiply-adds", "-"), "bytes_ms": ("model: memories", ":")}
"""What is drawn of the model: columns, their names and lines."""
BELOW, ABOVE = 4.0, 1.6
"""Factors from the lowest rate down to a panel's bottom, which has a text, and from the highest up to its top: where
memory allows more it does not bind."""
SPREAD = 0.7
"""Of the way from a number of threads to its double, over which implementations stand side by side."""


def figures(taken: Sequence[Measured]) -> dict[str, Figure]:
    """Every figure that the runs allow, by file stem: one per parameter with two values or more, and one of threads."""
    frame, style_of = curves(taken), styles([row for each in taken for row in each.timed], "conv2d")
    where = _where(taken)
    found = {}
    for parameter in SWEEPS:
        part = frame[frame["parameter"] == parameter]
        if part["value"].nunique() > 1:
            found[stem_of(parameter)] = by_parameter(part, style_of, f"{_title(parameter)}\n{where}")
    gained = gains(frame)
    if len(gained):
        title = "speed-up over the fewest threads: geometric mean over the cases; bars: from the least to the most"
        found[THREADS] = by_threads(gained, int(frame["threads"].min()), style_of, f"{title}\n{where}")
    return found


def by_parameter(part: pd.DataFrame, style_of: Mapping[str, Style], title: str) -> Figure:
    """Operations a second by a parameter's value: directions side by side, above each other fewest and most threads.

    In milliseconds, over four powers of ten, the curves could not be told apart.
    """
    directions = [direction for direction in DIRECTIONS if direction in set(part["direction"])]
    threads = sorted({int(part["threads"].min()), int(part["threads"].max())})
    figure, axes = _panels(len(threads), len(directions))
    for i, count in enumerate(threads):
        for j, direction in enumerate(directions):
            axis = axes[i, j]
            _curves(axis, part[(part["threads"] == count) & (part["direction"] == direction)], style_of)
            axis.set_title(f"{direction}, {threads_text(count)}", fontsize=8)
            axis.set(xscale="log", yscale="log")
            axis.set_xlabel(part["parameter"].iloc[0] if i == len(threads) - 1 else "")
            axis.set_ylabel("GFLOP/s" if j == 0 else "")
    shown = {name: style for name, style in style_of.items() if name in set(part["implementation"])}
    of_model = [Line2D([], [], color=INK, ls=dash, lw=1.8, label=label) for label, dash in OF_MODEL.values()]
    rates = part[["median_ms", "operations_ms"]].rdiv(1e-6 * part["flops"], axis=0)
    axes[0, 0].set_ylim(rates.min().min() / BELOW, rates.max().max() * ABOVE)
    finished(figure, title, [*legend_of(shown), *(of_model if (part["roof"] != "").any() else [])])
    _ticks(axes, sorted(part["value"].unique()))
    return figure


def by_threads(gained: pd.DataFrame, fewest: int, style_of: Mapping[str, Style], title: str) -> Figure:
    """Speed-ups by threads, directions side by side, with the ideal and with what the model gives."""
    directions = list(dict.fromkeys(gained["direction"]))
    counts = sorted(gained["threads"].unique())
    names = [name for name in style_of if name in set(gained["implementation"])]
    asides = np.exp2(SPREAD * ((np.arange(len(names)) + 0.5) / max(len(names), 1) - 0.5))
    figure, axes = _panels(1, len(directions))
    for axis, direction in zip(axes[0], directions, strict=True):
        axis.set(xscale="log", xlabel="threads")
        axis.set_title(direction, fontsize=8)
        here = gained[gained["direction"] == direction].sort_values("threads")
        _segments(axis, counts, [count / fewest for count in counts], {"color": PALE, "lw": 3})
        of_model = here[here["implementation"] == MODEL]
        _segments(axis, of_model["threads"], of_model["speedup"], {"color": INK, "lw": 1.2})
        for name, aside in zip(names, asides, strict=True):
            points, style = here[here["implementation"] == name], style_of[name]
            x = aside * points["threads"]
            axis.plot(x, points["speedup"], color=style.colour, marker=style.marker, ls=style.dash, ms=5, lw=0.8)
            axis.vlines(x, points["least"], points["most"], color=style.colour, lw=1.2)
    axes[0, 0].set_ylabel(f"speed-up over {threads_text(fewest)}")
    axes[0, 0].set_ylim(bottom=0)
    others = [Line2D([], [], color=PALE, lw=3, label="ideal")]
    others += [Line2D([], [], color=INK, lw=1.2, label=MODEL)] if MODEL in set(gained["implementation"]) else []
    finished(figure, title, [*legend_of({name: style_of[name] for name in names}), *others])
    _ticks(axes, counts)
    return figure


def _curves(axis: Axes, points: pd.DataFrame, style_of: Mapping[str, Style]) -> None:
    for name, style in style_of.items():
        curve = points[points["implementation"] == name]
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "ls": style.dash}
        axis.plot(curve["value"], _gflops(curve, "median_ms"), ms=4, lw=1.1, **look)
        low, high = _gflops(curve, "high_ms"), _gflops(curve, "low_ms")
        axis.fill_between(curve["value"], low, high, color=style.colour, alpha=0.25, lw=0)
    cases = points.drop_duplicates("value").sort_values("value")
    for column, (_, dash) in OF_MODEL.items():
        axis.plot(cases["value"], _gflops(cases, column), color=INK, ls=dash, lw=1.8)
    axis.text(0.02, 0.03, binding_text(cases), transform=axis.transAxes, fontsize=7, va="bottom", in_layout=False)


def binding_text(cases: pd.DataFrame) -> str:
    """What binds from which value to which, and how many times the operations memories allow; empty where unknown.

    ``cases``: points of one curve, by rising value.
    """
    if cases.empty or (cases["roof"] == "").any():
        return ""
    parts = []
    for roof, group in groupby(zip(cases["roof"], cases["value"], strict=True), key=lambda case: case[0]):
        values = [str(value) for _, value in group]
        parts.append(f"{roof} ({' to '.join(dict.fromkeys((values[0], values[-1])))})")
    faster = cases["operations_ms"] / cases["bytes_ms"]
    text = f"binding: {', '.join(parts)}"
    if faster.isna().any():
        return text
    span = " to ".join(dict.fromkeys((number(faster.min(), 2), number(faster.max(), 2))))
    return f"{text}\nmemories allow {span} times as much"


def _gflops(points: pd.DataFrame, column: str) -> pd.Series[float]:
    """The rate at which a case's operations are done in these milliseconds; a time of zero allows any."""
    return 1e-6 * points["flops"] / points[column]


def _segments(axis: Axes, counts: Iterable[int], heights: Iterable[float], look: Mapping[str, Any]) -> None:
    """A level line at each number of threads, as wide as implementations stand side by side there."""
    for count, height in zip(counts, heights, strict=True):
        axis.plot([count * 2 ** (-SPREAD / 2), count * 2 ** (SPREAD / 2)], [height, height], **look)


def _panels(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure((0.5 + WIDTH * columns, 1.3 + HEIGHT * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)


def _ticks(axes: np.ndarray, values: Sequence[int]) -> None:
    """The values themselves along x, which all panels share."""
    axis = axes[0, 0]
    axis.set_xticks(values, [str(value) for value in values])
    axis.set_xticks([], minor=True)
    axis.xaxis.set_minor_formatter(NullFormatter())


def _title(parameter: str) -> str:
    return f"operations a second by {parameter} ({base_text(parameter)}); bands: 95 % interval of the median"


def _where(taken: Sequence[Measured]) -> str:
    machine = taken[-1].run.machine
    commit = f"commit {machine['commit']}" if "commit" in machine else ""
    return ", ".join(filter(None, (machine.get("id", ""), machine.get("cpu", ""), commit)))
