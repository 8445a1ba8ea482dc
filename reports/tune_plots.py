"""matplotlib figures of a search: history, curves and pruning, what each parameter did, what mattered, the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.optuna_study import Trial
from bench.tuning import Objective
from reports.dressing import finished
from reports.plots import OURS

GREY = "#AAAAAA"
COLUMNS = 4
"""Panels side by side where each parameter has one."""

LOGARITHMIC = ("rate",)
"""Parameters that were drawn on a logarithmic scale."""


def figures(
    objective: Objective, trials: Sequence[Trial], importance: Mapping[str, float], title: str = ""
) -> dict[str, Figure]:
    """Every figure that the trials allow, by file stem."""
    judged = [trial for trial in trials if trial.values and math.isfinite(trial.values[0])]
    found = {}
    if judged:
        found["history"] = history(objective, judged, title)
        found["parameters"] = parameters(objective, judged, title)
    if any(trial.curve for trial in trials):
        found["curves"] = curves(objective, trials, title)
    if importance:
        found["importance"] = importances(importance, title)
    if objective.timed and judged:
        found["front"] = front(judged, title)
    return found


def history(objective: Objective, trials: Sequence[Trial], title: str = "") -> Figure:
    """Every trial's value by its number, and the best so far."""
    figure = Figure((6.5, 3.6), layout="constrained")
    axis = figure.subplots()
    complete = [trial for trial in trials if trial.state == "COMPLETE"]
    pruned = [trial for trial in trials if trial.state == "PRUNED"]
    axis.plot([t.number for t in complete], [t.values[0] for t in complete], "o", color=OURS[0], ms=4, label="finished")
    if pruned:
        x, y = [t.number for t in pruned], [t.values[0] for t in pruned]
        axis.plot(x, y, "x", color=GREY, ms=4, label="pruned, its last value")
    best = np.maximum if objective.directions[0] == "maximize" else np.minimum
    values = best.accumulate([trial.values[0] for trial in complete])
    axis.step([t.number for t in complete], values, where="post", color=OURS[3], lw=1.2, label="best so far")
    axis.set(xlabel="trial", ylabel=_said(objective), yscale=_scale(objective))
    return finished(figure, title, axis.get_legend_handles_labels()[0])


def curves(objective: Objective, trials: Sequence[Trial], title: str = "") -> Figure:
    """The judging figure by epoch: the best trials strong, the pruned ones grey."""
    figure = Figure((6.5, 3.6), layout="constrained")
    axis = figure.subplots()
    for trial in sorted(trials, key=lambda trial: (trial.on_front, trial.state == "COMPLETE")):
        look: dict[str, Any] = {"color": GREY, "lw": 0.7}
        if trial.on_front:
            look = {"color": OURS[3], "lw": 1.4}
        elif trial.state == "COMPLETE":
            look = {"color": OURS[0], "lw": 0.8, "alpha": 0.6}
        marker = "x" if trial.state == "PRUNED" else ""
        last = len(trial.curve) - 1
        axis.plot(np.arange(1, last + 2), trial.curve, marker=marker, markevery=[max(last, 0)], ms=4, **look)
    axis.set(xlabel="epoch", ylabel=_said(objective), yscale=_scale(objective))
    handles = [
        Line2D([], [], color=OURS[3], lw=1.4, label="best"),
        Line2D([], [], color=OURS[0], label="finished"),
        Line2D([], [], color=GREY, marker="x", ms=4, label="pruned"),
    ]
    return finished(figure, title, handles)


def parameters(objective: Objective, trials: Sequence[Trial], title: str = "") -> Figure:
    """The value against each parameter that every trial has, a panel each; lighter dots are later trials."""
    names = [name for name in trials[0].params if all(name in trial.params for trial in trials)]
    names = [name for name in names if len({trial.params[name] for trial in trials}) > 1] or names[:1]
    rows = math.ceil(len(names) / COLUMNS)
    columns = min(COLUMNS, len(names))
    figure = Figure((2.7 * columns, 2.5 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    numbers = [trial.number for trial in trials]
    values = [trial.values[0] for trial in trials]
    for axis, name in zip(axes.flat, names, strict=False):
        own = [trial.params[name] for trial in trials]
        if isinstance(own[0], str):
            known = sorted(set(own))
            axis.set_xticks(range(len(known)), known, rotation=90)
            own = [known.index(value) for value in own]
        axis.scatter(own, values, c=numbers, cmap="viridis", s=12)
        axis.set_xlabel(name)
        axis.set_yscale(_scale(objective))
        if name in LOGARITHMIC:
            axis.set_xscale("log")
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel(_said(objective))
    return finished(figure, f"{title}\nlighter: later trials" if title else "lighter: later trials")


def importances(importance: Mapping[str, float], title: str = "") -> Figure:
    """A bar for each parameter, the most important one above."""
    figure = Figure((6.5, 0.9 + 0.28 * len(importance)), layout="constrained")
    axis = figure.subplots()
    names = sorted(importance, key=lambda name: importance[name])
    axis.barh(names, [importance[name] for name in names], color=OURS[0])
    for place, name in enumerate(names):
        axis.text(importance[name], place, f" {importance[name]:.1%}", va="center", fontsize=7)
    axis.set(xlabel="share of the variance explained", xlim=(0, 1.15 * max(importance.values())))
    return finished(figure, title)


def front(trials: Sequence[Trial], title: str = "") -> Figure:
    """Accuracy against seconds of training until it was reached, by implementation; the front is a line."""
    figure = Figure((6.5, 3.9), layout="constrained")
    axis = figure.subplots()
    names = sorted({str(trial.params["implementation"]) for trial in trials})
    for name, colour in zip(names, OURS, strict=False):
        own = [trial for trial in trials if trial.params["implementation"] == name]
        axis.plot([t.values[1] for t in own], [t.values[0] for t in own], "o", color=colour, ms=4, label=name)
    best = sorted((trial.values[1], trial.values[0]) for trial in trials if trial.on_front)
    axis.step(*zip(*best, strict=True), where="post", color="black", lw=1, label="front")
    axis.set(xlabel="seconds of training until then", ylabel="validation accuracy", xscale="log")
    return finished(figure, title, axis.get_legend_handles_labels()[0])


def _said(objective: Objective) -> str:
    return objective.metric.replace("val_", "validation ")


def _scale(objective: Objective) -> str:
    return "linear" if objective.metric.endswith("accuracy") else "log"
