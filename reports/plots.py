"""matplotlib figures: time against image side in small multiples, and a map of who is fastest where."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from bench.ranking import ranking
from bench.results import Row, Run
from bench.statistics import speedup
from impls.specs import FORWARD
from reports import published
from reports.formats import number
from reports.frames import blocks, measurements, select, timed
from reports.tables import CONTENTS

OURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D1F", "#7A5195")
"""Okabe and Ito's colours, which the colour-blind tell apart; yellow is replaced by two that show as thin lines."""
COMPETITORS = ("#000000", "#777777", "#AAAAAA")
_MARKERS = "os^Dvp<>"
_GRID = 3
"""Image sides per panel from which curves say more than dots."""


@dataclass(frozen=True, slots=True)
class Style:
    """How an implementation looks in every figure of a run."""

    colour: str
    marker: str
    dash: str


@dataclass(frozen=True, slots=True)
class _Layout:
    """The columns of a measurement that make the axes of an operation's figures."""

    x: str
    x_label: str
    columns: tuple[str, ...]
    column_label: str


_IMAGE = "image side, pixels"
_LAYOUTS: Mapping[str, _Layout] = {
    "conv2d": _Layout("height", _IMAGE, ("channels", "filters"), "{} channels, {} filters"),
    "maxpool2d": _Layout("height", _IMAGE, ("channels",), "{} channels"),
    "avgpool2d": _Layout("height", _IMAGE, ("channels",), "{} channels"),
    "dense": _Layout("inputs", "inputs", ("units",), "{} units"),
}


def figures(run: Run, rows: Iterable[Row], with_published: bool = False) -> dict[str, Figure]:
    """Every figure that the rows allow, by file stem: times per op and direction, and winners where there is a grid."""
    rows = timed(rows)
    found = {}
    for op, direction in dict.fromkeys((row.op, row.direction) for row in rows):
        found[f"{op}-{direction}-times"] = times(run, rows, op, direction, with_published)
        if is_grid(rows, op, direction):
            found[f"{op}-{direction}-winners"] = winners(run, rows, op, direction)
    return found


def times(run: Run, rows: Iterable[Row], op: str, direction: str, with_published: bool = False) -> Figure:
    """Milliseconds per call of one op and direction: curves over a grid of sides, otherwise dots case by case.

    Bands and bars are the intervals of the medians. Over a grid, the published times of Keras and of the
    implementations shown are dotted if asked for. Raises ValueError if nothing was timed.
    """
    rows = timed(rows)
    frame = _panels(rows, op, direction)
    if is_grid(rows, op, direction):
        return _curves(run, frame, styles(rows, op), with_published)
    return _dots(run, frame, styles(rows, op))


def is_grid(rows: Iterable[Row], op: str, direction: str) -> bool:
    """Whether most panels hold several image sides. Raises ValueError if nothing was timed."""
    frame = _panels(rows, op, direction)
    return bool(frame.groupby(["row", "column"])["x"].nunique().median() >= _GRID)


def winners(run: Run, rows: Iterable[Row], op: str, direction: str) -> Figure:
    """Colour: the fastest implementation of each case. Number: how many times longer the second takes.

    One panel per kernel, rows of cells are channels and filters, columns of cells are sides. The equals sign is a tie.
    Raises ValueError if nothing was timed.
    """
    rows = timed(rows)
    frame = _panels(rows, op, direction)
    cells = frame.drop_duplicates("case")
    block_of = {case: block for (*key, case), block in blocks(rows).items() if key == [op, direction]}
    order_of = {case: ranking({row.implementation: row.samples_s for row in block}) for case, block in block_of.items()}
    panels, lines, sides = _sorted(cells["row"]), _sorted(cells["column"]), sorted(cells["x"].unique())
    style_of = styles(rows, op)
    figure, axes = _figure(1, len(panels), 0.62 * len(sides) + 0.3, 0.36 * len(lines) + 0.4, left=2.0)
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.set(xlim=(-0.5, len(sides) - 0.5), ylim=(len(lines) - 0.5, -0.5), title=panel)
        axis.set_xticks(range(len(sides)), [str(side) for side in sides])
        axis.set_yticks(range(len(lines)), lines)
        axis.set_xlabel(_LAYOUTS[op].x_label)
        axis.tick_params(length=0)
        for cell in cells[cells["row"] == panel].to_dict("records"):
            case = cell["case"]
            colour = style_of[order_of[case][0][0]].colour
            x, y = sides.index(cell["x"]), lines.index(cell["column"])
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
            lead = _lead(block_of[case], order_of[case])
            axis.text(x, y, lead, color=_ink(colour), ha="center", va="center", fontsize=8)
    wins = Counter(order[0][0] for order in order_of.values())
    handles = [
        Patch(color=style_of[name].colour, label=f"{name}: {n} of {len(cells)}") for name, n in wins.most_common()
    ]
    what = "the fastest (colour), and time of the second over it (number; = is a tie, compared round by round)"
    return _finish(figure, run, frame, what, handles)


def save(figure: Figure, path: Path, all_colours: bool = False) -> None:
    """Write a PNG of at most 128 colours: a third of the size, no visible difference but in photographs."""
    if all_colours:
        figure.savefig(path, format="png", dpi=100)
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def _curves(run: Run, frame: pd.DataFrame, style_of: Mapping[str, Style], with_published: bool) -> Figure:
    names = [name for name in style_of if name in set(frame["implementation"])]
    theirs = _published(frame if with_published else frame[:0])
    panels, columns = _sorted(frame["row"]), _sorted(frame["column"])
    sides = sorted(frame["x"].unique())
    figure, axes = _figure(len(panels), len(columns), 1.75, 2.1)
    for (i, panel), (j, column) in product(enumerate(panels), enumerate(columns)):
        axis = axes[i, j]
        here = frame[(frame["row"] == panel) & (frame["column"] == column)].sort_values("x")
        for name in names:
            style, curve = style_of[name], here[here["implementation"] == name]
            look = {"color": style.colour, "marker": style.marker, "ls": style.dash}
            axis.plot(curve["x"], curve["median_ms"], ms=3, lw=1.1, **look)
            axis.fill_between(curve["x"], curve["low_ms"], curve["high_ms"], color=style.colour, alpha=0.25, lw=0)
            curve = theirs[theirs["case"].isin(here["case"]) & (theirs["implementation"] == name)]
            axis.plot(curve["x"], curve["published_ms"], ":", color=style.colour, lw=1)
        axis.set(xscale="log", yscale="log", title=column if i == 0 else "")
        axis.grid(color="#DDDDDD", lw=0.5)
        if j == 0:
            axis.set_ylabel(f"{panel}\nms per call")
        if i == len(panels) - 1:
            axis.set_xlabel(_LAYOUTS[frame["op"].iloc[0]].x_label)
    axes[0, 0].set_xticks(sides, [str(side) for side in sides])
    axes[0, 0].minorticks_off()
    handles = legend_of({name: style_of[name] for name in names})
    doubly = [name for name in names if name in set(theirs["implementation"])]
    handles += [Line2D([], [], ls=":", color=style_of[name].colour, label=f"{name} *") for name in doubly]
    notes = published.CONTENTS if len(theirs) else ()
    return _finish(figure, run, frame, "time of a call; bands: 95 % interval of the median", handles, notes)


def _dots(run: Run, frame: pd.DataFrame, style_of: Mapping[str, Style]) -> Figure:
    names = [name for name in style_of if name in set(frame["implementation"])]
    cases = list(dict.fromkeys(frame["case"]))
    figure, axes = _figure(1, 1, 7.5, len(cases) * (0.08 * len(names) + 0.1), left=2.6)
    axis = axes[0, 0]
    for position, name in enumerate(names):
        style, part = style_of[name], frame[frame["implementation"] == name]
        offset = 0.8 * ((position + 0.5) / len(names) - 0.5)
        heights = [cases.index(case) + offset for case in part["case"]]
        spread = np.abs(part[["low_ms", "high_ms"]].to_numpy(float).T - part["median_ms"].to_numpy(float))
        axis.errorbar(part["median_ms"], heights, xerr=spread, fmt=style.marker, color=style.colour, ms=4, lw=1)
    axis.set(xscale="log", xlabel="ms per call", ylim=(len(cases) - 0.5, -0.5))
    axis.set_yticks(range(len(cases)), cases)
    axis.set_yticks(np.arange(len(cases) - 1) + 0.5, minor=True)
    axis.tick_params(axis="y", which="both", length=0)
    axis.grid(axis="y", which="minor", color="#BBBBBB", lw=0.6)
    axis.grid(axis="x", color="#DDDDDD", lw=0.5)
    handles = legend_of({name: style_of[name] for name in names})
    return _finish(figure, run, frame, "time of a call; bars: 95 % interval of the median", handles)


def _panels(rows: Iterable[Row], op: str, direction: str) -> pd.DataFrame:
    """Measurements with their place in the figure: ``x``, ``row`` (kernel and options) and ``column`` (sizes)."""
    frame = measurements(timed(select(rows, ops=(op,), directions=(direction,))))
    if frame.empty:
        raise ValueError(f"nothing was timed for {op} {direction}")
    layout = _LAYOUTS[op]
    several_batches = frame["batch"].nunique() > 1
    sizes = frame[list(layout.columns)].itertuples(index=False)
    options = (_options(case) for case in frame["case"])
    batches = (f"batch {batch}" * several_batches for batch in frame["batch"])
    return frame.assign(
        x=frame[layout.x].astype(int),
        row=[", ".join(filter(None, parts)) for parts in zip(options, batches, strict=True)],
        column=[layout.column_label.format(*size) for size in sizes],
    )


def _options(case: str) -> str:
    """The parts of a spec's text that are not sizes: ``kernel 3x3, s2x2``."""
    parts = (part for part in case.split(",")[1:] if not re.fullmatch(r"[fu]\d+", part))
    return ", ".join(re.sub(r"^k(?=\d)", "kernel ", part) for part in parts)


def _published(frame: pd.DataFrame) -> pd.DataFrame:
    """The published times of the frame's cases and implementations, by ``x``, in milliseconds."""
    found = published.conv_forward_ms().merge(frame[["case", "x", "implementation"]].drop_duplicates())
    return found.sort_values("x") if frame["direction"].eq(FORWARD).all() else found[:0]


def _sorted(texts: Iterable[str]) -> list[str]:
    """Distinct texts, the numbers in them compared as numbers."""
    return sorted(set(texts), key=lambda text: ([int(digits) for digits in re.findall(r"\d+", text)], text))


def styles(rows: Iterable[Row], op: str) -> dict[str, Style]:
    """A colour, a marker and a line for each name, the same in every direction; competitors grey and dashed."""
    found = sorted({(row.competitor, row.implementation) for row in rows if row.op == op})
    ours = [name for is_competitor, name in found if not is_competitor]
    theirs = [name for is_competitor, name in found if is_competitor]
    solid = zip(ours, cycle(OURS), cycle(_MARKERS), cycle("-"))
    dashed = zip(theirs, cycle(COMPETITORS), cycle("xP*1"), cycle(("--", "--", "--", "-.")))
    return {name: Style(*look) for name, *look in chain(solid, dashed)}


def legend_of(style_of: Mapping[str, Style]) -> list[Line2D]:
    """A line of the legend for each name."""
    return [
        Line2D([], [], color=style.colour, marker=style.marker, ls=style.dash, ms=4, label=name)
        for name, style in style_of.items()
    ]


def _figure(rows: int, columns: int, width: float, height: float, left: float = 0.8) -> tuple[Figure, np.ndarray]:
    """A figure of equal panels of the given inches each, with shared axes, and room for title and legend."""
    figure = Figure((left + columns * width, 1.5 + rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)


def _finish(
    figure: Figure,
    run: Run,
    frame: pd.DataFrame,
    what: str,
    handles: Sequence[Artist],
    notes: Sequence[str] = (),
) -> Figure:
    """Title with machine and contents, legend below, small type."""
    machine = [run.machine.get("id"), run.machine.get("cpu"), f"{run.threads} threads"]
    machine += [f"commit {run.machine['commit']}" if "commit" in run.machine else None]
    machine += [f"batch {batch}" for batch in frame["batch"].unique() if frame["batch"].nunique() == 1]
    contents = [CONTENTS.get(state, state) for state in frame["state"].unique()]
    first = f"{frame['op'].iloc[0]} {frame['direction'].iloc[0]}: {what}"
    figure.suptitle("\n".join([first, ", ".join(filter(None, machine)), *contents, *notes]), fontsize=8, wrap=True)
    for axis in figure.axes:
        axis.title.set_fontsize(8)
        axis.xaxis.label.set_fontsize(8)
        axis.yaxis.label.set_fontsize(8)
        axis.tick_params(labelsize=7)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8, frameon=False)
    return figure


def _lead(block: Sequence[Row], order: Sequence[Sequence[str]]) -> str:
    """``1.3``: the second takes 1.3 times as long; ``=``: they tie; nothing: there is no second."""
    if len(order[0]) > 1:
        return "="
    if len(order) == 1:
        return ""
    samples = {row.implementation: row.samples_s for row in block}
    return number(speedup(samples[order[1][0]], samples[order[0][0]]).median)


def _ink(colour: str) -> str:
    """Black or white, whichever reads better on a colour (#RRGGBB)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
