"""How figures of studies and searches look: grid, small letters, plain numbers on short axes, one legend below."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

READABLE = 1e4
"""Largest over smallest value up to which a logarithmic axis has plain numbers."""
ROOMY = 1e3
"""The same, up to which twos and fives have theirs as well."""

LONG = 24
"""Letters of a label of which fewer stand side by side."""


def finished(figure: Figure, title: str, handles: Sequence[Artist] = ()) -> Figure:
    """The same figure with its title above, every axis dressed, and a legend below where there are handles."""
    for axis in figure.axes:
        dress(axis)
    figure.suptitle(title, fontsize=9)
    if handles:
        columns = 3 if max(len(str(handle.get_label())) for handle in handles) > LONG else 5
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def dress(axis: Axes) -> None:
    """Give one axis its grid, sizes of letters, and readable numbers."""
    axis.grid(color="#DDDDDD", lw=0.5)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", labelsize=7)
    axis.set_xlabel(axis.get_xlabel(), fontsize=8)
    axis.set_ylabel(axis.get_ylabel(), fontsize=8)
    for each, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        if each.get_scale() == "log":
            _number(each, limits[1] / limits[0])


def _number(axis: Axis, span: float) -> None:
    """Plain numbers on a logarithmic axis, as many as there is room for; powers of ten alone on a long one."""
    if span >= READABLE:
        axis.set_minor_formatter(NullFormatter())
        return
    axis.set_minor_locator(LogLocator(subs=(2, 5) if span > 10 else range(2, 10)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(FormatStrFormatter("%g") if span < ROOMY else NullFormatter())
