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
    ask_to_write,
    clear,
    either,
    equal,
    first_lanes,
    is_nan,
    load,
    select,
    spread,
    store,
    under,
)
from impls.windows import tiles

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
def give(x, dx, at, rows, columns, line, channels, ahead, lanes, largest, rest, tiles):
    """Add ``rest`` to dx where the first maximum of a window is; where windows tile, write all pixels of this one.

    The window ``ahead`` values on is asked for.
    """
    nothing = spread(np.float32(0))
    for h in range(rows):
        for w in range(columns):
            place = at + h * line + w * channels
            ask_to_read(x, place + ahead)
            ask_to_write(dx, place + ahead)
            pixel = load(x, place, lanes)
            hit = either(equal(pixel, largest), is_nan(pixel))
            given = select(hit, rest, nothing)
            store(given if tiles else add(given, load(dx, place, lanes)), dx, place, lanes)
            rest = select(hit, nothing, rest)


@shared
def grad_input(x, y, dy, dx, x_shape, y_shape, pool, step, before, tiles, parts):
    """Fill flat ``dx``, all NHWC; each part takes its share of the rows of y, of whole samples where these overlap."""
    batch, height, width, channels = x_shape
    _, out_h, out_w, _ = y_shape
    line = width * channels
    ahead = step[0] * line
    whole = channels // LANES * LANES
    every, last = first_lanes(LANES), first_lanes(channels - whole)
    unit = 1 if step[0] >= pool[0] else out_h
    overlap = -(-pool[1] // step[1])
    units = batch * out_h // unit
    for part in prange(parts):
        for row in range(units * part // parts * unit, units * (part + 1) // parts * unit):
            n, i = row // out_h, row % out_h
            top, bottom = under(i, pool[0], step[0], before[0], height)
            if not tiles:
                cleared = under(i - 1, pool[0], step[0], before[0], height)[1] if i > 0 else 0
                end = bottom if i + 1 < out_h else height
                clear(dx, (n * height + cleared) * line, (n * height + end) * line)
            for first in range(overlap):
                for j in range(first, out_w, overlap):
                    left, right = under(j, pool[1], step[1], before[1], width)
                    size = (bottom - top, right - left)
                    at = (n * height + top) * line + left * channels
                    for c in range(0, channels, LANES):
                        lanes, place = every if c < whole else last, at + c
                        window = (row * out_w + j) * channels + c
                        largest, rest = load(y, window, lanes), load(dy, window, lanes)
                        if tiles and size == (2, 2):
                            give(x, dx, place, 2, 2, line, channels, ahead, lanes, largest, rest, True)
                        elif tiles and size == (4, 4):
                            give(x, dx, place, 4, 4, line, channels, ahead, lanes, largest, rest, True)
                        elif tiles:
                            give(x, dx, place, *size, line, channels, ahead, lanes, largest, rest, True)
                        elif size == (3, 3):
                            give(x, dx, place, 3, 3, line, channels, ahead, lanes, largest, rest, False)
                        else:
                            give(x, dx, place, *size, line, channels, ahead, lanes, largest, rest, False)


class NumbaMax(Plan):
    """One window after the other, LANES channels at a time."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    def prepare(self):
        spec = self.spec
        before = spec.pads[0][0], spec.pads[1][0]
        self.geometry = (spec.x_shape, spec.y_shape, spec.pool, spec.step, before)
        self.parts = parts_for(math.prod(spec.x_shape), SERIAL_BELOW)
        self.tiles = tiles(spec)
        nothing, empty = np.empty(0, np.float32), ((0, *spec.x_shape[1:]), (0, *spec.y_shape[1:]), *self.geometry[2:])
        if FORWARD in self.directions:
            forward(nothing, nothing, *empty, self.parts)
        if GRAD_INPUT in self.directions:
            grad_input(nothing, nothing, nothing, nothing, *empty, self.tiles, self.parts)

    def forward(self, x, out):
        forward(x.reshape(-1), out.reshape(-1), *self.geometry, self.parts)

    def grad_input(self, x, y, dy, dx):
        flat = (array.reshape(-1) for array in (x, y, dy, dx))
        grad_input(*flat, *self.geometry, self.tiles, self.parts)


IMPL = Implementation(NumbaMax, algorithm=DIRECT, why_not=float32_only, note="vectors of channels, parallel over rows")
