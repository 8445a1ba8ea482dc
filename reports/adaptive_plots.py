"""The figures of the adaptive models: any study as a row of panels."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.adaptive_studies import BARS, DASHES, DOTS, LINE, Curve, Panel, Study
from reports.dressing import finished
from reports.plots import OURS

WIDTH, HEIGHT = 4.2, 3.2
"""Of a panel, in inches."""

LOOKS: dict[str, dict[str, Any]] = {
    LINE: {"ls": "-", "lw": 1.5},
    DASHES: {"ls": "--", "lw": 1.5},
    DOTS: {"ls": "", "marker": "o", "ms": 3.5, "alpha": 0.8},
    BARS: {"ls": "", "marker": "o", "ms": 3.5, "elinewidth": 1},
}
CROWD = 100
"""Dots from which on they are small and grey."""


def figure(study: Study) -> Figure:
    """A study's panels side by side, each with its legend."""
    drawn = Figure((WIDTH * len(study.panels), HEIGHT), layout="constrained")
    axes = drawn.subplots(1, len(study.panels), squeeze=False)[0]
    for axis, panel in zip(axes, study.panels, strict=True):
        _draw(axis, panel)
    return finished(drawn, study.title)


def _draw(axis: Any, panel: Panel) -> None:
    colours = cycle(OURS)
    for curve in panel.curves:
        crowd = curve.look == DOTS and len(curve.x) >= CROWD
        look = LOOKS[curve.look] | ({"color": "#BBBBBB", "ms": 2} if crowd else {"color": next(colours)})
        _plot(axis, curve, look)
    axis.set_title(panel.title, fontsize=9)
    axis.set(xlabel=panel.x_label, ylabel=panel.y_label)
    if panel.log_x:
        axis.set_xscale("log")
    if panel.log_y:
        axis.set_yscale("log")
    if all(float(x).is_integer() for curve in panel.curves for x in curve.x) and not panel.log_x:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(panel.curves) > 1:
        axis.legend(fontsize=7, framealpha=0.8)


def _plot(axis: Any, curve: Curve, look: dict[str, Any]) -> None:
    if curve.errors is None:
        axis.plot(curve.x, curve.y, label=curve.label, **look)
    else:
        axis.errorbar(curve.x, curve.y, curve.errors, label=curve.label, **look)
