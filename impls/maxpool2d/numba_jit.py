"""Loops over windows in vectors of channels, compiled by Numba: every window is read once, its maximum in a register.

The gradient keeps what a window has to give in a register too, until the first maximum takes it. Rows of dx are
cleared right before the first window that reaches them, so that they are in cache when it does; what windows without
overlap or gaps cover is not cleared, but written once.

Loops are compiled for the sides of the usual windows, and the gradient's for each way of writing, when a plan first
needs them: with all in one function LLVM no longer keeps the addresses in registers. The lengths of two tuples say
which, so that numba's cache tells them apart. An unaligned large dx has its loops compiled by the first call.
"""

from __future__ import annotations

import math

import numpy as np

from impls.contract import ALIGNMENT, DIRECT, FLOAT32, Implementation, Plan, float32_only
from impls.numba_setup import njit, prange
from impls.parts import parts_for, shared
from impls.specs import FORWARD, GRAD_INPUT, ITEMSIZE, PoolSpec
from impls.vectors import (
    LANES,
    above,
    add,
    ask_to_read,
    ask_to_write,
    clear,
    either,
    equal,
    fence,
    first_lanes,
    is_nan,
    load,
    select,
    some,
    spread,
    store,
    store_past_caches,
    under,
)

SERIAL_BELOW = 1 << 15
"""Pixels times channels: fewer take less time than waking a second thread."""

ADD, WRITE, PAST_CACHES = 1, 2, 3
"""How a window's pixels get their gradient: added to that of other windows, written, written past the caches."""
LARGE_BYTES = 4 << 20
"""Of dx, from which on it is written past the caches: little of it would be found there, and a line that is not there
is read before it is written."""
ANY = 1
"""The side, to the compiler, of windows that are not UNROLLED."""
UNROLLED = ((2, 2), (3, 3), (4, 4))
"""Windows that loops are compiled for, each as it is first needed."""

LOWEST, NAN = np.float32(-np.inf), np.float32(np.nan)


@njit
def largest_of(x, at, rows, columns, line, channels, ahead, lanes):
    """The maximum of a window whose first pixel is at ``at``; its rows are ``line`` values apart. NaN wins.

    NaN is looked for apart, so that a step from one maximum to the next is a single instruction. The window ``ahead``
    values on is asked for.
    """
    largest, nan = spread(LOWEST), first_lanes(0)
    for h in range(rows):
        for w in range(columns):
            place = at + h * line + w * channels
            ask_to_read(x, place + ahead)
            pixel = load(x, place, lanes)
            largest = select(above(pixel, largest), pixel, largest)
            nan = either(nan, is_nan(pixel))
    return select(nan, spread(NAN), largest)


@shared
def forward(x, out, x_shape, y_shape, pool, step, before, side, parts):
    """Fill flat ``out`` from flat x, both NHWC; each part takes its share of the rows of ``out``."""
    batch, height, width, channels = x_shape
    _, out_h, out_w, _ = y_shape
    line = width * channels
    ahead = step[0] * line
    whole = channels // LANES * LANES
    every, last = first_lanes(LANES), first_lanes(channels - whole)
    for part in prange(parts):
        for row in range(batch * out_h * part // parts, batch * out_h * (part + 1) // parts):
            n, i = row // out_h, row % out_h
            top, bottom = under(i, pool[0], step[0], before[0], height)
            for j in range(out_w):
                left, right = under(j, pool[1], step[1], before[1], width)
                size = (bottom - top, right - left)
                at = (n * height + top) * line + left * channels
                for c in range(0, channels, LANES):
                    lanes, place = every if c < whole else last, at + c
                    if len(side) != ANY and size == (len(side), len(side)):
                        largest = largest_of(x, place, len(side), len(side), line, channels, ahead, lanes)
                    else:
                        largest = largest_of(x, place, *size, line, channels, ahead, lanes)
                    store(largest, out, (row * out_w + j) * channels + c, lanes)


@njit
def give(x, dx, at, rows, columns, line, channels, ahead, lanes, largest, rest, nans, how):
    """Give ``rest`` to dx, in one of the ways above, where the first maximum of a window is.

    Only with ``nans`` may there be NaN: it costs half of the comparisons. The window ``ahead`` values on is asked for.
    """
    nothing = spread(np.float32(0))
    for h in range(rows):
        for w in range(columns):
            place = at + h * line + w * channels
            ask_to_read(x, place + ahead)
            if how != PAST_CACHES:
                ask_to_write(dx, place + ahead)
            pixel = load(x, place, lanes)
            hit = either(equal(pixel, largest), is_nan(pixel)) if nans else equal(pixel, largest)
            given = select(hit, rest, nothing)
            if how == PAST_CACHES:
                store_past_caches(given, dx, place, channels < LANES)
            elif how == WRITE:
                store(given, dx, place, lanes)
            else:
                store(add(given, load(dx, place, lanes)), dx, place, lanes)
            rest = select(hit, nothing, rest)


@njit
def give_all(x, y, dy, dx, first, at, count, along, rows, columns, line, channels, ahead, how):
    """``give`` of ``count`` windows of one size, ``along`` = (windows, pixels) from each to the next.

    The first one is at ``first`` in y and dy, and at ``at`` in x and dx. Memory is walked in its order; where one
    vector holds all channels, the inner loop is the one over windows.
    """
    whole = channels // LANES * LANES
    every, last = first_lanes(LANES), first_lanes(channels - whole)
    few = channels <= LANES
    for outer in range(1 if few else count):
        for inner in range(count if few else -(-channels // LANES)):
            j, c = (inner, 0) if few else (outer, inner * LANES)
            lanes = every if c < whole else last
            window, place = first + j * along[0] * channels + c, at + j * along[1] * channels + c
            largest, rest = load(y, window, lanes), load(dy, window, lanes)
            if some(is_nan(largest)):
                give(x, dx, place, rows, columns, line, channels, ahead, lanes, largest, rest, True, how)
            else:
                give(x, dx, place, rows, columns, line, channels, ahead, lanes, largest, rest, False, how)


@njit
def clear_around(dx, origin, start, top, bottom, end, right, line, channels):
    """Zero the image rows from ``start`` to before ``end``, but for the columns before ``right`` of those from ``top``
    to before ``bottom``."""
    clear(dx, origin + start * line, origin + top * line)
    for h in range(top, bottom):
        clear(dx, origin + h * line + right * channels, origin + (h + 1) * line)
    clear(dx, origin + bottom * line, origin + end * line)


@shared
def grad_input(x, y, dy, dx, x_shape, y_shape, pool, step, before, side, way, parts):
    """Fill flat ``dx``, all NHWC; each part takes its share of the rows of y, of whole samples where these overlap.

    Of the windows of a row that overlap, each turn takes some that do not. ``side`` and ``way`` are of a length that
    tells the compiler what to unroll, and how pixels get their gradient.
    """
    batch, height, width, channels = x_shape
    _, out_h, out_w, _ = y_shape
    line = width * channels
    ahead = step[0] * line
    unit = 1 if step[0] >= pool[0] else out_h
    turns = -(-pool[1] // step[1])
    along = turns, turns * step[1]
    last_whole = min(out_w - 1, (width + before[1] - pool[1]) // step[1])
    covered = np.int64(0)  # columns that windows write without a gap
    if len(way) != ADD and step[1] == pool[1]:
        covered = under(out_w - 1, pool[1], step[1], before[1], width)[1]
    units = batch * out_h // unit
    for part in prange(parts):
        for row in range(units * part // parts * unit, units * (part + 1) // parts * unit):
            n, i = row // out_h, row % out_h
            top, bottom = under(i, pool[0], step[0], before[0], height)
            start = under(i - 1, pool[0], step[0], before[0], height)[1] if i > 0 else 0
            end = bottom if i + 1 < out_h else height
            origin, rows = n * height * line, bottom - top
            clear_around(dx, origin, start, max(start, top), bottom, end, covered, line, channels)
            for turn in range(min(turns, out_w)):
                j = np.int64(turn)
                while j < out_w:
                    left, right = under(j, pool[1], step[1], before[1], width)
                    columns = right - left
                    count = (last_whole - j) // turns + 1 if columns == pool[1] else np.int64(1)
                    first, at = (row * out_w + j) * channels, origin + top * line + left * channels
                    if len(side) != ANY and (rows, columns) == (len(side), len(side)):
                        give_all(
                            x, y, dy, dx, first, at, count, along, len(side), len(side), line, channels, ahead, len(way)
                        )
                    else:
                        give_all(x, y, dy, dx, first, at, count, along, rows, columns, line, channels, ahead, len(way))
                    j += count * turns
        if len(way) == PAST_CACHES:
            fence()


def ways(spec: PoolSpec) -> tuple[int, ...]:
    """How ``grad_input`` may give to the pixels, the best first; past the caches only what is aligned.

    That takes whole vectors or halves of them, and windows without gaps, which would have to be cleared before.
    """
    if spec.step[0] < spec.pool[0] or spec.step[1] < spec.pool[1]:
        return (ADD,)
    in_whole = spec.channels % LANES == 0 or spec.channels == LANES // 2
    large = ITEMSIZE[FLOAT32] * math.prod(spec.x_shape) >= LARGE_BYTES
    return (PAST_CACHES, WRITE) if in_whole and large and spec.step == spec.pool else (WRITE,)


class NumbaMax(Plan):
    """One window after the other, LANES channels at a time."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    def prepare(self):
        spec = self.spec
        before = spec.pads[0][0], spec.pads[1][0]
        self.geometry = (spec.x_shape, spec.y_shape, spec.pool, spec.step, before)
        self.side = (0,) * (spec.pool[0] if spec.pool in UNROLLED else ANY)
        self.ways = [(0,) * way for way in ways(spec)]
        self.parts = parts_for(math.prod(spec.x_shape), SERIAL_BELOW)
        nothing, empty = np.empty(0, np.float32), ((0, *spec.x_shape[1:]), (0, *spec.y_shape[1:]), *self.geometry[2:])
        if FORWARD in self.directions:
            forward(nothing, nothing, *empty, self.side, self.parts)
        if GRAD_INPUT in self.directions:
            grad_input(nothing, nothing, nothing, nothing, *empty, self.side, self.ways[0], self.parts)

    def forward(self, x, out):
        forward(x.reshape(-1), out.reshape(-1), *self.geometry, self.side, self.parts)

    def grad_input(self, x, y, dy, dx):
        flat = (array.reshape(-1) for array in (x, y, dy, dx))
        way, *others = self.ways
        if others and dx.ctypes.data % ALIGNMENT != 0:
            (way,) = others
        grad_input(*flat, *self.geometry, self.side, way, self.parts)


IMPL = Implementation(NumbaMax, algorithm=DIRECT, why_not=float32_only, note="vectors of channels, parallel over rows")
