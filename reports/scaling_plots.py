"""Figures of how times scale: by one parameter of a convolution, and by threads, both beside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from reports.plots import Style, legend_of, styles
from reports.scaling import MODEL, THREADS, Measured, base_text, curves, gains, stem_of, threads_text

WIDTH, HEIGHT = 3.3, 2.7
"""Inches of a panel."""
INK = "#000000"
OF_MODEL = {"operations_ms": ("model: operations / peak", "--"), "bytes_ms": ("model: bytes / bandwidth", ":")}
"""What is drawn of the model: columns, their names and lines."""
SPREAD = 0.35
"""Of the way from one doubling of the threads to the next, over which implementations stand side by side."""


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
    """Milliseconds by a parameter's value: directions side by side, above each other the fewest and most threads."""
    directions = [direction for direction in DIRECTIONS if direction in set(part["direction"])]
    threads = sorted({part["threads"].min(), part["threads"].max()})
    figure, axes = _panels(len(threads), len(directions))
    for i, count in enumerate(threads):
        for j, direction in enumerate(directions):
            axis = axes[i, j]
            _curves(axis, part[(part["threads"] == count) & (part["direction"] == direction)], style_of)
            axis.set_title(f"{direction}, {threads_text(count)}", fontsize=8)
            axis.set(xscale="log", yscale="log")
            axis.set_xlabel(part["parameter"].iloc[0] if i == len(threads) - 1 else "")
            axis.set_ylabel("ms per call" if j == 0 else "")
    shown = {name: style for name, style in style_of.items() if name in set(part["implementation"])}
    of_model = [Line2D([], [], color=INK, ls=dash, lw=1.3, label=label) for label, dash in OF_MODEL.values()]
    finished(figure, title, [*legend_of(shown), *(of_model if part["roof"].any() else [])])
    _ticks(axes, sorted(part["value"].unique()))
    return figure


def by_threads(gained: pd.DataFrame, fewest: int, style_of: Mapping[str, Style], title: str) -> Figure:
    """Speed-ups by threads, directions side by side, with the ideal and with what the model gives."""
    directions = list(dict.fromkeys(gained["direction"]))
    counts = [fewest, *sorted(gained["threads"].unique())]
    names = [name for name in style_of if name in set(gained["implementation"])]
    figure, axes = _panels(1, len(directions))
    for axis, direction in zip(axes[0], directions, strict=True):
        axis.set(xscale="log", yscale="log", title=direction, xlabel="threads")
        axis.title.set_fontsize(8)
        axis.plot(counts, [count / fewest for count in counts], color="#BBBBBB", lw=2.5)
        here = gained[gained["direction"] == direction].sort_values("threads")
        for position, name in enumerate(names):
            style, aside = style_of[name], 2 ** (SPREAD * ((position + 0.5) / len(names) - 0.5))
            look = {"color": style.colour, "ls": style.dash, "marker": style.marker}
            _gain(axis, here[here["implementation"] == name], fewest, aside, look)
        _gain(axis, here[here["implementation"] == MODEL], fewest, 1.0, {"color": INK, "ls": "--", "marker": "_"})
    axes[0, 0].set_ylabel(f"speed-up over {threads_text(fewest)}")
    others = [Line2D([], [], color="#BBBBBB", lw=2.5, label="ideal")]
    if MODEL in set(gained["implementation"]):
        others.append(Line2D([], [], color=INK, ls="--", marker="_", label=MODEL))
    finished(figure, title, [*legend_of({name: style_of[name] for name in names}), *others])
    _ticks(axes, counts)
    return figure


def _curves(axis: Axes, points: pd.DataFrame, style_of: Mapping[str, Style]) -> None:
    for name, style in style_of.items():
        curve = points[points["implementation"] == name]
        axis.plot(
            curve["value"], curve["median_ms"], color=style.colour, marker=style.marker, ls=style.dash, ms=3, lw=1.1
        )
        axis.fill_between(curve["value"], curve["low_ms"], curve["high_ms"], color=style.colour, alpha=0.25, lw=0)
    cases = points.drop_duplicates("value").sort_values("value")
    for column, (_, dash) in OF_MODEL.items():
        axis.plot(cases["value"], cases[column].where(cases[column] > 0), color=INK, ls=dash, lw=1.3)


def _gain(axis: Axes, points: pd.DataFrame, fewest: int, aside: float, look: Mapping[str, Any]) -> None:
    """A line from 1 through the means, and a bar for the cases of each, ``aside`` of the number of threads."""
    if points.empty:
        return
    x, mean = points["threads"].to_numpy(float) * aside, points["speedup"].to_numpy(float)
    axis.plot([fewest, *x], [1.0, *mean], ms=4, lw=1, **look)
    axis.vlines(x, points["least"], points["most"], color=look["color"], lw=1, alpha=0.6)


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
    return f"time of a convolution by {parameter} ({base_text(parameter)}); bands: 95 % interval of the median"


def _where(taken: Sequence[Measured]) -> str:
    machine = taken[-1].run.machine
    commit = f"commit {machine['commit']}" if "commit" in machine else ""
    return ", ".join(filter(None, (machine.get("id", ""), machine.get("cpu", ""), commit)))
