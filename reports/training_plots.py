"""matplotlib figures of trained networks: learning curves, confusion, mistakes, first filters, time per layer."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator

from bench.profile_training import Lap, Profile
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS
from reports.formats import number
from reports.plots import OURS

Array = npt.NDArray[Any]

LABELLED_CELLS = 20
"""Classes up to which every cell of a confusion matrix is written out."""

CAPTION = 12
"""Letters of two names up to which both stand on one line under a picture."""

WIDTH = 7
"""Inches of a figure with curves."""

HEADING = 95
"""Letters in a line of a heading over so many inches."""

GOLDEN = 0.62

History: TypeAlias = Sequence[Mapping[str, float]]
"""The figures of each turn of a training."""

TEST = "test_"
PARTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "": ("training", {"ls": "-"}),
    "val_": ("validation", {"ls": "--"}),
    TEST: ("test", {"ls": "", "marker": "o", "ms": 7, "mew": 1.6, "mfc": "none"}),
}
"""How the names of figures begin, by the data that they are of; what the data are called, and how they look."""

WINDOW = 5
"""Turns that a smoothed value is the mean of; a twentieth of all, where that is more."""

DIRECTION_COLOURS = {FORWARD: OURS[0], GRAD_WEIGHTS: OURS[1], GRAD_INPUT: OURS[2]}
OTHER_COLOUR = "#999999"
"""Of what is no direction of a layer: activations, batch, loss, update."""

AROUND = "around the layers"
"""What stands for the layer where there is none."""


def learning_curves(
    histories: Mapping[str, Sequence[History]], metric: str = "loss", turn: str = "epoch", title: str = ""
) -> Figure:
    """A metric turn by turn, by contestant: pale each repetition as it was, strong their smoothed mean.

    ``histories``: for each contestant its repetitions, of each the records of its turns, as a Trainer keeps them. A
    record's "val_" figures are of the validation data, dashed; its "test_" figures of the test data, a dot. Losses
    stand on a logarithmic axis. Raises ValueError for a metric that no record has.
    """
    figure = Figure((WIDTH, WIDTH * GOLDEN), layout="constrained")
    axis = figure.subplots()
    handles, seen = [], set()
    window = max(WINDOW, max((len(h) for own in histories.values() for h in own), default=0) // 20 | 1)
    for (name, repetitions), colour in zip(histories.items(), cycle(OURS)):
        for prefix, (label, look) in PARTS.items():
            values = _recorded(repetitions, prefix + metric)
            if np.isnan(values).all():
                continue
            turns = np.arange(1, values.shape[1] + 1)
            mean = np.ma.masked_invalid(values).mean(axis=0).filled(np.nan)
            if prefix == TEST:
                axis.plot(turns, mean, **look, color=colour, clip_on=False)
            else:
                axis.plot(turns, values.T, **look, color=colour, alpha=0.4, lw=0.8)
                axis.plot(turns, smoothed(mean, window), **look, color=colour, lw=1.6)
            seen.add(label)
            handles += [Line2D([], [], color=colour, label=name)] if prefix == "" else []
    if not axis.lines:
        raise ValueError(f"no record has {metric!r}")
    if len(seen) > 1:
        handles += [
            Line2D([], [], **look, color="black", label=label) for label, look in PARTS.values() if label in seen
        ]
    axis.set(xlabel=turn, ylabel=metric, yscale="log" if metric.endswith("loss") else "linear", xmargin=0.02)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(color="#DDDDDD", lw=0.5)
    low, high = axis.get_ylim()
    if axis.get_yscale() == "log" and high / low > 10:
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    what = f"{metric} by {turn}; pale: each repetition, strong: their mean, over up to {window} {turn}s around"
    figure.suptitle(_lines(title, what), fontsize=9)
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def _recorded(repetitions: Sequence[History], key: str) -> Array:
    """A figure by repetition and turn, NaN where it was not recorded."""
    values = np.full((len(repetitions), max(map(len, repetitions), default=0)), np.nan)
    for line, history in zip(values, repetitions, strict=True):
        line[: len(history)] = [record.get(key, np.nan) for record in history]
    return values


def smoothed(values: Array, window: int) -> Array:
    """The mean of ``window`` values around each, of fewer towards both ends: as many before as after, no lag.

    NaN where a value in the window is NaN. ``window`` is odd; 1 changes nothing.
    """
    last = len(values) - 1
    reach = [min(i, last - i, window // 2) for i in range(len(values))]
    return np.array([values[i - r : i + r + 1].mean() for i, r in enumerate(reach)])


def confusion_matrix(truth: Array, predicted: Array, names: Sequence[str], title: str = "") -> Figure:
    """How often each class (lines) was taken for which (columns). Colour: the share of the line; numbers: counts.

    ``truth`` and ``predicted``: class numbers from 0, one per sample; ``names``: of all classes.
    """
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (truth, predicted), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + len(names) * (0.42 if len(names) <= LABELLED_CELLS else 0.12)
    figure = Figure((side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= LABELLED_CELLS:
        for (line, column), count in np.ndenumerate(counts):
            colour = "white" if shares[line, column] > 0.5 else "black"
            if count:
                axis.text(column, line, str(count), ha="center", va="center", fontsize=7, color=colour)
    size = 7 if len(names) <= LABELLED_CELLS else 5
    axis.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.set_xlabel("predicted", fontsize=8)
    axis.set_ylabel("true", fontsize=8)
    bar = figure.colorbar(image, shrink=0.8)
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    right = int(np.trace(counts))
    what = f"{title + ': ' if title else ''}{right} of {counts.sum()} right ({right / counts.sum():.2%})"
    figure.suptitle(_lines(what, inches=figure.get_figwidth()), fontsize=9)
    return figure


def misclassified(
    images: Array, truth: Array, probabilities: Array, names: Sequence[str], title: str = "", most: int = 24
) -> Figure:
    """The images (n, H, W, C) that were taken for another class, the most certain mistakes first, at most ``most``.

    ``truth``: class numbers; ``probabilities`` (n, classes). Under each image: true > predicted, and how certain.
    Raises ValueError where everything is right.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != truth)
    if not len(wrong):
        raise ValueError("no image is misclassified")
    certainty = probabilities[wrong, predicted[wrong]]
    order = np.argsort(-certainty, kind="stable")[:most]
    pairs = [(names[truth[i]], names[predicted[i]]) for i in wrong[order]]
    between = " > " if max(len(a) + len(b) for a, b in pairs) <= CAPTION else " >\n"
    captions = [
        f"{between.join(pair)}\n{probabilities[i, predicted[i]]:.0%}"
        for pair, i in zip(pairs, wrong[order], strict=True)
    ]
    what = f"{len(wrong)} of {len(truth)} misclassified; true > predicted, and its probability"
    if len(order) < len(wrong):
        what += f"; the {len(order)} most certain"
    return _gallery([as_picture(images[i]) for i in wrong[order]], captions, _lines(title, what))


def filters(kernel: Array, title: str = "first layer") -> Figure:
    """The filters of a convolution's kernel (KH, KW, C, F): in colour for three channels, otherwise channel by channel.

    Grey pictures share one scale around zero, blue below and red above; coloured ones are each spread over their range.
    """
    height, width, channels, count = kernel.shape
    if channels == 3:
        pictures = [as_picture(kernel[..., f]) for f in range(count)]
        return _gallery(
            pictures, [str(f) for f in range(count)], f"{title}: {count} filters of {height}x{width}, in colour"
        )
    shown = [(f, c) for f in range(count) for c in range(channels)]
    captions = [f"{f}" if channels == 1 else f"{f}, channel {c}" for f, c in shown]
    limit = float(np.abs(kernel).max()) or 1.0
    caption = f"{title}: {count} filters of {height}x{width}; blue below 0, red above, up to {number(limit)}"
    return _gallery([kernel[:, :, c, f] for f, c in shown], captions, caption, cmap="RdBu_r", vmin=-limit, vmax=limit)


def as_picture(image: Array) -> Array:
    """An image (H, W, C) spread over [0, 1]; a single channel is dropped, so that it is shown in grey."""
    low, high = float(image.min()), float(image.max())
    picture: Array = (image - low) / ((high - low) or 1.0)
    return picture[..., 0] if picture.shape[-1] == 1 else picture


def profile(found: Profile, title: str = "") -> Figure:
    """Milliseconds of a step by layer, top to bottom as data flow, one bar per direction; what computed it beside it.

    What is around the layers stands below them.
    """
    groups: dict[str, list[Lap]] = {}
    for lap in found.laps:
        groups.setdefault(lap.layer or AROUND, []).append(lap)
    figure = Figure((8, 1.3 + 0.22 * len(found.laps) + 0.1 * len(groups)), layout="constrained")
    axis = figure.subplots()
    position, ticks = 0.0, []
    for laps in groups.values():
        ticks.append(position + (len(laps) - 1) / 2)
        for lap in laps:
            colour = DIRECTION_COLOURS.get(lap.direction, OTHER_COLOUR)
            axis.barh(position, lap.seconds * 1e3, 0.85, color=colour)
            rate = f", {number(lap.gflops)} GFLOP/s" if lap.gflops is not None else ""
            text = f" {lap.seconds / found.step_s:.1%} {lap.implementation or lap.direction}{rate}"
            axis.text(lap.seconds * 1e3, position, text, va="center", fontsize=7)
            position += 1
        position += 0.5
    axis.set_yticks(ticks, list(groups), fontsize=8)
    axis.set(ylim=(position - 1, -1), xlim=(0, max(lap.seconds for lap in found.laps) * 1e3 * 1.45))
    axis.set_xlabel("ms per step", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(axis="x", color="#DDDDDD", lw=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    directions = {lap.direction for lap in found.laps}
    handles = [Patch(color=colour, label=name) for name, colour in DIRECTION_COLOURS.items() if name in directions]
    handles.append(Patch(color=OTHER_COLOUR, label="other"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    what = f"{number(found.step_s * 1e3)} ms per step of {found.batch} samples, by layer and direction"
    figure.suptitle(_lines(f"{title + ': ' if title else ''}{what}", found.structure), fontsize=9)
    return figure


def _lines(*parts: str, inches: float = WIDTH) -> str:
    """The lines of a heading; a structure that is too long for one is broken between layers."""
    letters = int(HEADING * inches / WIDTH)
    return "\n".join(textwrap.fill(re.sub(r";(?=\S)", "; ", part), letters) for part in parts if part)


def _gallery(pictures: Sequence[Array], captions: Sequence[str], title: str, **look: Any) -> Figure:
    """Small pictures in lines of equal length, a caption under each."""
    columns = min(8, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    lines = max(caption.count("\n") for caption in captions) + 1
    figure = Figure((max(5.0, 1.05 * columns), 0.5 + rows * (1.0 + 0.16 * lines)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    look = {"cmap": "gray", "vmin": 0, "vmax": 1} | look
    for axis, picture, caption in zip(axes.flat, pictures, captions, strict=False):
        axis.imshow(picture, interpolation="nearest", **look)
        axis.set_title(caption, fontsize=7, y=0, va="top", pad=-3)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=9)
    return figure
