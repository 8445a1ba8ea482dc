"""Every direction of a convolution as one pattern: a correlation with chosen taps, cut into blocks of pixels.

A correlation reads, for result i and tap t of an axis, the source at ``i * stride + t * dilation - pad``. The forward
pass is one such problem. The input gradient is one per residue of the stride (one in all for stride 1), with dy as
the source and the taps of the kernel in reverse. The weight gradient walks the windows of the forward pass.
Taps that meet nothing but padding are dropped: a 7x7 kernel on a 2x2 image is a 3x3 kernel.

Compiled kernels take a problem and its layout as one record of integers (``record``): ``record[0].rows.out``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import gcd, prod
from typing import NamedTuple

import numpy as np

from impls.contract import ALIGNMENT, FLOAT32, Plan
from impls.conv2d import _tiles
from impls.conv2d._tiles import LANES, TILE
from impls.numba_setup import numba
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ITEMSIZE, ConvSpec, arguments

MOST_BYTES = 32 << 20
"""Of the blocks of all workers together, and of the partial sums of all parts together."""
UNBOUNDED = 1 << 30
"""A batch beyond which no scratch memory grows."""


class Axis(NamedTuple):
    """Rows or columns of a correlation: where results, taps and source meet."""

    out: int
    """Results along this axis."""
    side: int
    """Pixels of the source."""
    taps: int
    stride: int
    dilation: int
    pad: int
    tap_first: int
    """Tap t is the kernel's tap ``tap_first + t * tap_step``."""
    tap_step: int
    out_first: int
    """Result i lands on pixel ``out_first + i * out_step``."""
    out_step: int


class Problem(NamedTuple):
    """A correlation of (batch, rows.side, columns.side, groups * inner) to groups * outer results per pixel."""

    rows: Axis
    columns: Axis
    batch: int
    groups: int
    inner: int
    outer: int

    @property
    def pixels(self) -> int:
        """Windows, each with groups * outer results."""
        return self.batch * self.rows.out * self.columns.out

    @property
    def packed_rows(self) -> int:
        """Rows of packed weights: every group's results, rounded up to whole tiles."""
        return self.groups * round_up(self.outer, TILE)


class Layout(NamedTuple):
    """How a block of windows lies in scratch memory; packed weights lie the same way."""

    row_step: int
    """Floats from one row of taps to the next."""
    column_step: int
    """Floats from one column of taps to the next."""
    terms: int
    """Floats of one window, a multiple of LANES; those that are no product are zero."""
    pixels: int
    """Windows of one block."""
    lowered: int
    """Floats of one block of windows, which may overlap."""


def record(problem: Problem, layout: NamedTuple) -> np.ndarray:
    """(1,): the fields of a problem, its axes nested, and of its layout, as compiled kernels read them."""
    axis = np.dtype([(name, np.int64) for name in Axis._fields])
    fields = [(name, axis if name in ("rows", "columns") else np.int64) for name in Problem._fields + layout._fields]
    return np.array([(*problem, *layout)], fields)


def round_up(count: int, multiple: int) -> int:
    """The least multiple that is not below ``count``."""
    return -(-count // multiple) * multiple


def bytes_of(shapes: Iterable[tuple[int, ...]]) -> int:
    """What float32 arrays of these shapes take in scratch memory, where each begins a line: see ``views_of``."""
    return sum(round_up(ITEMSIZE[FLOAT32] * prod(shape), ALIGNMENT) for shape in shapes)


def views_of(plan: Plan, shapes: Iterable[tuple[int, ...]]) -> list[np.ndarray]:
    """Float32 arrays of these shapes, one after the other in a plan's scratch memory."""
    views, offset = [], 0
    for shape in shapes:
        views.append(plan.scratch(shape, offset=offset))
        offset += bytes_of([shape])
    return views


def cropped(axis: Axis) -> Axis:
    """The same axis without the leading and trailing taps that meet only padding; perhaps without any tap."""
    reads = np.arange(axis.out)[:, None] * axis.stride + np.arange(axis.taps) * axis.dilation - axis.pad
    seen = np.flatnonzero(((reads >= 0) & (reads < axis.side)).any(axis=0))
    first, end = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)
    return axis._replace(
        taps=end - first,
        pad=axis.pad - first * axis.dilation,
        tap_first=axis.tap_first + first * axis.tap_step,
    )


def forward_axis(spec: ConvSpec, k: int) -> Axis:
    """Rows (k = 0) or columns (k = 1) of the forward pass."""
    return cropped(
        Axis(
            out=spec.y_shape[1 + k],
            side=spec.x_shape[1 + k],
            taps=spec.kernel[k],
            stride=spec.stride[k],
            dilation=spec.dilation[k],
            pad=spec.pads[k][0],
            tap_first=0,
            tap_step=1,
            out_first=0,
            out_step=1,
        )
    )


def input_axes(spec: ConvSpec, k: int) -> list[Axis]:
    """Rows (k = 0) or columns (k = 1) of the input gradient, one axis per residue of the stride.

    Pixel u of dx receives w[a] * dy[(u + pad - a * dilation) / stride] from every tap a for which that is whole:
    every ``stride / gcd(stride, dilation)``-th tap, and from one such tap to the next dy moves by ``dilation / gcd``.
    """
    side, stride, dilation, pad = spec.x_shape[1 + k], spec.stride[k], spec.dilation[k], spec.pads[k][0]
    shared = gcd(stride, dilation)
    step, moved = stride // shared, dilation // shared
    axes = []
    for first in range(min(stride, side)):
        taps = [a for a in range(spec.kernel[k]) if (first + pad - a * dilation) % stride == 0]
        last = taps[-1] if taps else 0
        axis = Axis(
            out=-(-(side - first) // stride),
            side=spec.y_shape[1 + k],
            taps=len(taps),
            stride=1,
            dilation=moved,
            pad=-((first + pad - last * dilation) // stride),
            tap_first=last,
            tap_step=-step,
            out_first=first,
            out_step=stride,
        )
        axes.append(cropped(axis))
    return axes


def problems(spec: ConvSpec, direction: str) -> list[Problem]:
    """The correlations that make up a direction; the weight gradient walks the windows of the forward pass."""
    channels, filters = spec.channels // spec.groups, spec.filters // spec.groups
    if direction == GRAD_INPUT:
        return [
            Problem(rows, columns, spec.batch, spec.groups, filters, channels)
            for rows in input_axes(spec, 0)
            for columns in input_axes(spec, 1)
        ]
    return [Problem(forward_axis(spec, 0), forward_axis(spec, 1), spec.batch, spec.groups, channels, filters)]


@dataclass(frozen=True)
class Step:
    """One correlation with its layout, and views of the scratch memory that its kernels use."""

    record: np.ndarray
    windows: np.ndarray
    """(pixels of a block, rounded up to whole tiles; 3): where each window starts, its first tap column inside the
    source, and the end of those."""
    packed: np.ndarray
    """(parts, packed rows, terms): weights, or partial sums of their gradient."""
    lowered: np.ndarray
    """(workers, floats): a block of windows for each worker."""
    results: np.ndarray
    """(workers, pixels of a block, outer), both rounded up to whole tiles: results, or the dy of a block."""
    sums: np.ndarray
    """(parts, packed rows): partial sums of the bias gradient."""


SMALLEST = ConvSpec(1, 1, 1, 1, 1, (1, 1))
"""One product: what the loops are compiled on, since their types do not depend on the shapes."""


@cache
def compile_loops(plan_type: type[Plan], direction: str, spec: ConvSpec = SMALLEST) -> None:
    """Have numba compile a direction's loops, or load them from its cache, by running them on a small problem."""
    shapes = [argument.shape for argument in arguments(spec, direction)]
    plan_type(spec, (direction,)).bind(direction, *(np.ones(shape, FLOAT32) for shape in shapes))()


class CorrelationPlan(Plan):
    """Turns a spec into steps; a subclass gives the layout, the windows, and the two compiled loops.

    ``correlate(x, b, relu, record, windows, packed, lowered, results, out)`` fills the pixels of out.
    ``accumulate(x, dy, record, windows, packed, lowered, results, sums)`` fills packed and sums.
    """

    spec: ConvSpec

    @staticmethod
    def layout(problem: Problem) -> Layout:
        """How this plan lays out a block of windows."""
        raise NotImplementedError

    @staticmethod
    def windows(problem: Problem, layout: Layout) -> np.ndarray:
        """The table of ``Step.windows`` for the windows of one block."""
        raise NotImplementedError

    correlate: staticmethod
    accumulate: staticmethod

    @classmethod
    def scratch_bytes(cls, spec, directions):
        """What the problem would need with an unbounded batch: no shape shrinks as the batch grows."""
        needs = [
            bytes_of(cls._shapes(problem._replace(batch=UNBOUNDED), direction))
            for direction in directions
            for problem in problems(spec, direction)
        ]
        return max(needs, default=0)

    @classmethod
    def _shapes(cls, problem: Problem, direction: str) -> list[tuple[int, ...]]:
        """Shapes of packed, lowered, results and sums."""
        layout = cls.layout(problem)
        lowered = round_up(layout.lowered, LANES)
        if direction == GRAD_WEIGHTS:
            parts, splits = division(problem, layout)
            workers = parts * splits
        else:
            parts, blocks = 1, -(-problem.pixels // layout.pixels)
            room = MOST_BYTES // (ITEMSIZE[FLOAT32] * max(lowered, 1))
            workers = max(1, min(numba.get_num_threads(), blocks, room))
        rows = problem.packed_rows
        return [
            (parts, rows, layout.terms),
            (workers, lowered),
            (workers, round_up(layout.pixels, TILE), rows // problem.groups),
            (parts, rows),
        ]

    def prepare(self):
        self._steps = {d: [self._step(p, d) for p in problems(self.spec, d)] for d in self.directions}
        self._no_bias = np.zeros(max(self.spec.filters, self.spec.channels), FLOAT32)
        self._no_db = np.empty(self.spec.filters, FLOAT32)
        if self.spec != SMALLEST:
            for direction in self.directions:
                compile_loops(type(self), direction)

    def _step(self, problem: Problem, direction: str) -> Step:
        layout = self.layout(problem)
        views = views_of(self, self._shapes(problem, direction))
        return Step(record(problem, layout), self.windows(problem, layout), *views)

    def forward(self, x, w, b, out):
        bias = self._no_bias if b is None else b
        self._correlate(FORWARD, x, w, bias, self.spec.activation == "relu", out)

    def grad_input(self, dy, w, dx):
        self._correlate(GRAD_INPUT, dy, w, self._no_bias, False, dx)

    def _correlate(self, direction, x, w, b, relu, out):
        for s in self._steps[direction]:
            _tiles.pack(w, direction == GRAD_INPUT, s.record, s.packed[0])
            self.correlate(x, b, relu, s.record, s.windows, s.packed[0], s.lowered, s.results, out)

    def grad_weights(self, x, dy, dw, db):
        (s,) = self._steps[GRAD_WEIGHTS]
        self.accumulate(x, dy, s.record, s.windows, s.packed, s.lowered, s.results, s.sums)
        _tiles.reduce_parts(s.packed, s.sums)
        _tiles.unpack(s.packed[0], s.sums[0], s.record, dw, self._no_db if db is None else db)


def division(problem: Problem, layout: Layout) -> tuple[int, int]:
    """(parts, splits) of the weight gradient: parts of the batch with sums of their own, splits of the filters.

    A function of the problem alone, so that the order of additions does not depend on the number of threads. A part
    pays for clearing and adding up its sums: it gets at least 1024 windows. A split pays for copying the windows once
    more: filters are split only where there are too few parts. Parts are a power of two, so that the memory of
    parts and splits together never shrinks as the batch grows.
    """
    size = ITEMSIZE[FLOAT32] * max(1, problem.packed_rows * layout.terms)
    parts = max(1, min(16, problem.pixels // 1024, MOST_BYTES // size))
    parts = 1 << parts.bit_length() - 1
    return parts, max(1, min(4 // parts, -(-problem.outer // TILE)))
