"""matplotlib figures of the studies: learning curves by arm, what is varied against what it does, signals, searches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.signals import Signals, Stack
from bench.studies import CLIP_AT, SMOOTHING, Outcome, best_rate, exponential_average
from reports.dressing import dress, finished
from reports.plots import OURS

Outcomes: TypeAlias = Sequence[Outcome]

PANEL = (4.2, 3.0)
"""Inches of one panel."""

TRAINING: Mapping[str, Any] = {"ls": "-"}
VALIDATION: Mapping[str, Any] = {"ls": "--"}


def figures(name: str, outcomes: Outcomes, title: str) -> dict[str, Figure]:
    """The figures of a study by file stem: learning curves of each group of arms, and what else is asked there."""
    found = {}
    if name not in _WITHOUT_CURVES:
        found = {_stem(name, group, "curves"): curves(own, _title(title, group)) for group, own in _groups(outcomes)}
    for what, draw in _FIGURES.get(name, {}).items():
        for group, own in _groups(outcomes) if draw in _BY_GROUP else [("", outcomes)]:
            found[_stem(name, group, what)] = draw(own, _title(title, group))
    return found


def curves(outcomes: Outcomes, title: str = "") -> Figure:
    """Loss and validation error by epoch, an arm a colour: pale as it was, strong smoothed; dashed: validation."""
    figure, (left, right) = _panels(2)
    for outcome, colour in _coloured(outcomes):
        training, validation = ([record[name] for record in outcome.history] for name in ("loss", "val_loss"))
        errors = [1 - record["val_accuracy"] for record in outcome.history]
        for axis, values, look in (
            (left, training, TRAINING),
            (left, validation, VALIDATION),
            (right, errors, TRAINING),
        ):
            epochs = np.arange(1, len(values) + 1)
            axis.plot(epochs, values, **look, color=colour, alpha=0.25, lw=0.8)
            axis.plot(epochs, exponential_average(values), **look, color=colour, lw=1.4)
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    right.set(xlabel="epoch", ylabel="validation error, 1 - accuracy", yscale="log")
    handles = _handles(outcomes)
    handles += [Line2D([], [], **TRAINING, color="black", label="training loss")]
    handles += [Line2D([], [], **VALIDATION, color="black", label="validation loss")]
    return finished(figure, f"{title}\npale: as it was; strong: smoothed by {SMOOTHING:g}", handles)


def norms(outcomes: Outcomes, title: str = "") -> Figure:
    """The gradient's norm by step before clipping and after it."""
    figure, panels = _panels(2, sharey=True)
    for axis, attribute, what in zip(panels, ("norms", "clipped"), ("before clipping", "after clipping"), strict=True):
        for outcome, colour in _coloured(outcomes):
            values = getattr(outcome, attribute)
            axis.plot(np.arange(1, len(values) + 1), values, color=colour, lw=1.2)
        axis.axhline(CLIP_AT, color="black", lw=0.6, ls=":")
        axis.set(xlabel="step", ylabel=f"gradient's norm, {what}", yscale="log")
    dotted = Line2D([], [], color="black", lw=0.6, ls=":", label=f"{CLIP_AT:g}")
    return finished(figure, title, [*_handles(outcomes), dotted])


def stopping(outcomes: Outcomes, title: str = "") -> Figure:
    """The validation loss by epoch: where each arm ended, and which epoch's weights it has."""
    figure, (axis,) = _panels(1, width=6.5)
    for outcome, colour in reversed(list(_coloured(outcomes))):
        values = [record["val_loss"] for record in outcome.history]
        axis.plot(np.arange(1, len(values) + 1), values, color=colour, lw=1)
        axis.plot(len(values), values[-1], "|", color=colour, ms=14, mew=2)
        restored = outcome.arm.settings.early_stopping is not None
        if restored:
            axis.plot(outcome.best_epoch, values[outcome.best_epoch - 1], "o", color=colour, mfc="none", ms=8, mew=1.6)
    axis.set(xlabel="epoch", ylabel="validation loss", yscale="log")
    marks = [
        Line2D([], [], color="black", ls="", marker="|", ms=10, mew=2, label="end"),
        Line2D([], [], color="black", ls="", marker="o", mfc="none", label="weights restored"),
    ]
    return finished(figure, title, [*_handles(outcomes), *marks])


def rates(outcomes: Outcomes, title: str = "") -> Figure:
    """The learning rate by step, and the validation loss it led to."""
    figure, (left, right) = _panels(2)
    for outcome, colour in _coloured(outcomes):
        left.plot(np.arange(1, len(outcome.rates) + 1), outcome.rates, color=colour, lw=1.4)
        right.plot(outcome.rates, [record["val_loss"] for record in outcome.history], color=colour, lw=1.4)
    left.set(xlabel="step", ylabel="learning rate")
    right.set(xlabel="learning rate at that step", ylabel="validation loss", yscale="log")
    return finished(figure, title, _handles(outcomes))


def rate_range(outcomes: Outcomes, title: str = "") -> Figure:
    """The loss while the rate grows with every step; a dot where it falls fastest."""
    figure, (axis,) = _panels(1, width=6.5)
    for outcome, colour in _coloured(outcomes):
        losses = [record["loss"] for record in outcome.history]
        axis.plot(outcome.rates[: len(losses)], losses, color=colour, lw=1.4)
        rate = best_rate(outcome)
        axis.plot(rate, losses[outcome.rates.index(rate)], "o", color=colour, ms=7)
    axis.set(xlabel="learning rate", ylabel="training loss", xscale="log", yscale="log")
    dot = Line2D([], [], color="black", ls="", marker="o", label="steepest fall")
    return finished(figure, title, [*_handles(outcomes), dot])


def against(label: str) -> Callable[[Outcomes, str], Figure]:
    """A figure of the last losses and of the best validation accuracy against what is varied, a group a colour."""

    def draw(outcomes: Outcomes, title: str = "") -> Figure:
        figure, (left, right) = _panels(2)
        groups = [(group, [each for each in own if each.history]) for group, own in _groups(outcomes)]
        for (_, own), colour in zip(groups, cycle(OURS), strict=False):
            x = [outcome.arm.x for outcome in own]
            for metric, look in (("loss", TRAINING), ("val_loss", VALIDATION)):
                left.plot(x, [each.history[-1][metric] for each in own], "o", **look, color=colour, ms=4, lw=1.2)
            best = [max(record["val_accuracy"] for record in each.history) for each in own]
            right.plot(x, best, "o", **VALIDATION, color=colour, ms=4, lw=1.2)
        left.set(xlabel=label, ylabel="loss of the last epoch", yscale="log")
        right.set(xlabel=label, ylabel="best validation accuracy")
        handles = [
            Line2D([], [], color=colour, label=group)
            for (group, _), colour in zip(groups, cycle(OURS), strict=False)
            if group
        ]
        handles += [Line2D([], [], **TRAINING, color="black", label="training loss")]
        handles += [Line2D([], [], **VALIDATION, color="black", label="validation loss")]
        return finished(figure, title, handles)

    return draw


def signals(found: Iterable[Signals], title: str = "") -> Figure:
    """Variances by layer before the first step: of what layers give above, of their kernels' gradients below.

    What is zero has no place on a logarithmic axis, and is left out.
    """
    found = [each for each in found if any(each.outputs)]
    activations = list(dict.fromkeys(each.activation for each in found))
    names = list(dict.fromkeys(each.initializer for each in found))
    figure = Figure((3.2 * len(activations), 5.4), layout="constrained")
    axes = figure.subplots(2, len(activations), sharex=True, sharey="row", squeeze=False)
    for each in found:
        colour = OURS[names.index(each.initializer)]
        column = activations.index(each.activation)
        for row, values in enumerate((each.outputs, each.gradients)):
            shown = np.where(np.array(values) > 0, values, np.nan)
            axes[row, column].plot(np.arange(1, len(values) + 1), shown, "o-", color=colour, ms=3, lw=1.2)
    for column, activation in enumerate(activations):
        axes[0, column].set_title(activation, fontsize=9)
        axes[1, column].set_xlabel("hidden layer", fontsize=8)
    for row, what in enumerate(("output", "kernel's gradient")):
        axes[row, 0].set_ylabel(f"variance of the {what}", fontsize=8)
    for axis in axes.flat:
        axis.set_yscale("log")
        dress(axis)
    handles = [Line2D([], [], color=OURS[i], marker="o", ms=3, label=name) for i, name in enumerate(names)]
    figure.suptitle(title, fontsize=9)
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def stacks(found: Iterable[Stack], title: str = "") -> Figure:
    """The deviation of the values after each product; where a curve ends, a value is not finite, or all are zero."""
    figure, (axis,) = _panels(1, width=6.5)
    handles = []
    for each, colour in zip(found, cycle(OURS), strict=False):
        values = np.array(each.deviations)
        shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
        label = each.label
        for event in ("not_a_number", "vanished"):
            at = getattr(each, event)
            if at is not None:
                label += f": {'NaN' if event == 'not_a_number' else 'all 0'} after {at}"
                axis.axvline(at, color=colour, lw=0.8, ls=":")
        axis.plot(np.arange(1, len(values) + 1), shown, color=colour, lw=1.4)
        handles.append(Line2D([], [], color=colour, label=label))
    axis.set(xlabel="products of 512 x 512 matrices", ylabel="standard deviation of the values", yscale="log")
    return finished(figure, title, handles)


_FIGURES: Mapping[str, Mapping[str, Callable[[Outcomes, str], Figure]]] = MappingProxyType(
    {
        "dropout": {"rates": against("fraction dropped")},
        "clipping": {"norms": norms},
        "stopping": {"ends": stopping},
        "range": {"test": rate_range},
        "schedules": {"rates": rates},
        "depth": {"layers": against("hidden layers")},
    }
)
_BY_GROUP = (norms,)
"""Figures that show one group of arms; the others show all together."""
_WITHOUT_CURVES = ("stopping", "range", "depth")
"""Studies of which another figure has the curves, whose epochs are steps of a test, or which have too many arms."""


def _groups(outcomes: Outcomes) -> list[tuple[str, list[Outcome]]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.arm.group, []).append(outcome)
    return list(groups.items())


def _coloured(outcomes: Outcomes) -> list[tuple[Outcome, str]]:
    return list(zip(outcomes, cycle(OURS), strict=False))


def _handles(outcomes: Outcomes) -> list[Line2D]:
    """One for each arm; arms that came to the same hide one another, and share the one that is seen."""
    seen: dict[tuple[float, ...], tuple[list[str], str]] = {}
    for outcome, colour in _coloured(outcomes):
        key = tuple(record["loss"] for record in outcome.history)
        labels, _ = seen.get(key, ([], ""))
        seen[key] = [*labels, outcome.arm.label], colour
    return [Line2D([], [], color=colour, label=" = ".join(labels)) for labels, colour in seen.values()]


def _panels(count: int, width: float = PANEL[0], **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure((width * count, PANEL[1] + 0.6), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False, **options)[0])
    return figure, axes


def _stem(*words: str) -> str:
    return "-".join(word.replace(" ", "-") for word in words if word)


def _title(title: str, group: str) -> str:
    return f"{title}; {group}" if group else title
