"""Loops over windows in vectors of channels, compiled by Numba: every window is read once, its maximum in a register.

The gradient keeps what a window has to give in a register too, until the first maximum takes it. Rows of dx are
cleared right before the first window that reaches them, so that they are in cache when it does; where windows tile
the image, each pixel is written once.
"""

from __future__ import annotations

import math

import numpy as np

from impls.contract import DIRECT, Implementation, Plan, float32_only
from impls.numba_setup import njit, prange
from impls.parts import parts_for, shared
from impls.specs import FORWARD, GRAD_INPUT, PoolSpec
from impls.vectors import (
    LANES,
    above,
    add,
    ask_to_read,
    clear,
    either,
    equal,
    first_lanes,
    is_nan,
    load,
    select,
    some,
    spread,
    store,
    under,
)

SERIAL_BELOW = 1 << 15
"""Pixels times channels: fewer take less time than waking a second thread."""

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
def forward(x, out, x_shape, y_shape, pool, step, before, parts):
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
                    if size == (2, 2):  # with constants LLVM unrolls the loops
                        largest = largest_of(x, place, 2, 2, line, channels, ahead, lanes)
                    elif size == (3, 3):
                        largest = largest_of(x, place, 3, 3, line, channels, ahead, lanes)
                    elif size == (4, 4):
                        largest = largest_of(x, place, 4, 4, line, channels, ahead, lanes)
                    else:
                        largest = largest_of(x, place, *size, line, channels, ahead, lanes)
                    store(largest, out, (row * out_w + j) * channels + c, lanes)


@njit
def give(x, dx, at, rows, columns, line, channels, ahead, lanes, largest, rest, nans, apart):
    """Add ``rest`` to dx where the first maximum of a window is; where none overlap, write all pixels of this one.

    Only with ``nans`` may there be NaN: it costs half of the comparisons. The window ``ahead`` values on is asked for.
    """
    nothing = spread(np.float32(0))
    for h in range(rows):
        for w in range(columns):
            place = at + h * line + w * channels
            ask_to_read(x, place + ahead)
            pixel = load(x, place, lanes)
            hit = either(equal(pixel, largest), is_nan(pixel)) if nans else equal(pixel, largest)
            given = select(hit, rest, nothing)
            store(given if apart else add(given, load(dx, place, lanes)), dx, place, lanes)
            rest = select(hit, nothing, rest)


@njit
def give_all(x, y, dy, dx, first, at, count, along, rows, columns, line, channels, ahead, apart):
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
                give(x, dx, place, rows, columns, line, channels, ahead, lanes, largest, rest, True, apart)
            else:
                give(x, dx, place, rows, columns, line, channels, ahead, lanes, largest, rest, False, apart)


@njit
def clear_around(dx, origin, start, top, bottom, end, left, right, line, channels):
    """Zero the image rows from ``start`` to before ``end``, but for the columns from ``left`` to before ``right`` of
    those from ``top`` to before ``bottom``."""
    clear(dx, origin + start * line, origin + top * line)
    for h in range(top, bottom):
        clear(dx, origin + h * line, origin + h * line + left * channels)
        clear(dx, origin + h * line + right * channels, origin + (h + 1) * line)
    clear(dx, origin + bottom * line, origin + end * line)


@shared
def grad_input(x, y, dy, dx, x_shape, y_shape, pool, step, before, apart, parts):
    """Fill flat ``dx``, all NHWC; each part takes its share of the rows of y, of whole samples where these overlap.

    ``apart``: no windows overlap. Of those that do in a row, each turn takes some that do not.
    """
    batch, height, width, channels = x_shape
    _, out_h, out_w, _ = y_shape
    line = width * channels
    ahead = step[0] * line
    unit = 1 if step[0] >= pool[0] else out_h
    turns = -(-pool[1] // step[1])
    along = turns, turns * step[1]
    last_whole = min(out_w - 1, (width + before[1] - pool[1]) // step[1])
    leftmost = under(0, pool[1], step[1], before[1], width)[0]
    rightmost = under(out_w - 1, pool[1], step[1], before[1], width)[1] if apart and step[1] == pool[1] else leftmost
    units = batch * out_h // unit
    for part in prange(parts):
        for row in range(units * part // parts * unit, units * (part + 1) // parts * unit):
            n, i = row // out_h, row % out_h
            top, bottom = under(i, pool[0], step[0], before[0], height)
            start = under(i - 1, pool[0], step[0], before[0], height)[1] if i > 0 else 0
            end = bottom if i + 1 < out_h else height
            origin, rows = n * height * line, bottom - top
            clear_around(dx, origin, start, max(start, top), bottom, end, leftmost, rightmost, line, channels)
            for turn in range(min(turns, out_w)):
                j = np.int64(turn)
                while j < out_w:
                    left, right = under(j, pool[1], step[1], before[1], width)
                    columns = right - left
                    count = (last_whole - j) // turns + 1 if columns == pool[1] else np.int64(1)
                    first, at = (row * out_w + j) * channels, origin + top * line + left * channels
                    if apart and (rows, columns) == (2, 2):  # with constants LLVM unrolls the loops
                        give_all(x, y, dy, dx, first, at, count, along, 2, 2, line, channels, ahead, True)
                    elif apart and (rows, columns) == (4, 4):
                        give_all(x, y, dy, dx, first, at, count, along, 4, 4, line, channels, ahead, True)
                    elif (rows, columns) == (3, 3):
                        give_all(x, y, dy, dx, first, at, count, along, 3, 3, line, channels, ahead, apart)
                    else:
                        give_all(x, y, dy, dx, first, at, count, along, rows, columns, line, channels, ahead, apart)
                    j += count * turns


class NumbaMax(Plan):
    """One window after the other, LANES channels at a time."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    def prepare(self):
        spec = self.spec
        before = spec.pads[0][0], spec.pads[1][0]
        self.geometry = (spec.x_shape, spec.y_shape, spec.pool, spec.step, before)
        self.parts = parts_for(math.prod(spec.x_shape), SERIAL_BELOW)
        self.apart = spec.step[0] >= spec.pool[0] and spec.step[1] >= spec.pool[1]
        nothing, empty = np.empty(0, np.float32), ((0, *spec.x_shape[1:]), (0, *spec.y_shape[1:]), *self.geometry[2:])
        if FORWARD in self.directions:
            forward(nothing, nothing, *empty, self.parts)
        if GRAD_INPUT in self.directions:
            grad_input(nothing, nothing, nothing, nothing, *empty, self.apart, self.parts)

    def forward(self, x, out):
        forward(x.reshape(-1), out.reshape(-1), *self.geometry, self.parts)

    def grad_input(self, x, y, dy, dx):
        flat = (array.reshape(-1) for array in (x, y, dy, dx))
        grad_input(*flat, *self.geometry, self.apart, self.parts)


IMPL = Implementation(NumbaMax, algorithm=DIRECT, why_not=float32_only, note="vectors of channels, parallel over rows")
