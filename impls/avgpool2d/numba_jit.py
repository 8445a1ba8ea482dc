"""Loops over windows in vectors of channels, compiled by Numba: each sum stays in a register, each value is read once.

Where windows tile the image the gradient spreads a window's share over its pixels; elsewhere each pixel adds up the
shares of the windows over it. Either way every pixel is written once.
"""

from __future__ import annotations

import math

import numpy as np

from impls.contract import DIRECT, Implementation, Plan, float32_only
from impls.numba_setup import njit, prange
from impls.parts import parts_for, shared
from impls.specs import FORWARD, GRAD_INPUT, PoolSpec
from impls.vectors import LANES, add, ask_to_read, ask_to_write, divide, first_lanes, load, spread, store, under
from impls.windows import tiles

SERIAL_BELOW = 1 << 15
"""Pixels times channels: fewer take less time than waking a second thread."""


@njit
def mean_of(x, at, rows, columns, line, channels, ahead, lanes):
    """The mean of a window whose first pixel is at ``at``; its rows are ``line`` values apart.

    The window ``ahead`` values on is asked for.
    """
    total = spread(np.float32(0))
    for h in range(rows):
        for w in range(columns):
            place = at + h * line + w * channels
            ask_to_read(x, place + ahead)
            total = add(total, load(x, place, lanes))
    return divide(total, spread(np.float32(rows * columns)))


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
                        mean = mean_of(x, place, 2, 2, line, channels, ahead, lanes)
                    elif size == (3, 3):
                        mean = mean_of(x, place, 3, 3, line, channels, ahead, lanes)
                    elif size == (4, 4):
                        mean = mean_of(x, place, 4, 4, line, channels, ahead, lanes)
                    else:
                        mean = mean_of(x, place, *size, line, channels, ahead, lanes)
                    store(mean, out, (row * out_w + j) * channels + c, lanes)


@shared
def grad_input_of_tiles(dy, dx, x_shape, y_shape, pool, step, before, parts):
    """Fill flat ``dx`` from flat dy where every pixel is under one window; parts share the rows of dy."""
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
                pixels = spread(np.float32((bottom - top) * (right - left)))
                for c in range(0, channels, LANES):
                    lanes = every if c < whole else last
                    share = divide(load(dy, (row * out_w + j) * channels + c, lanes), pixels)
                    for h in range(n * height + top, n * height + bottom):
                        for w in range(left, right):
                            ask_to_write(dx, h * line + w * channels + c + ahead)
                            store(share, dx, h * line + w * channels + c, lanes)


@shared
def grad_input(dy, dx, x_shape, y_shape, pool, step, before, rows, columns, parts):
    """Fill flat ``dx`` from flat dy; rows[h] and columns[w]: (first, past the last) of the windows over it."""
    batch, height, width, channels = x_shape
    _, out_h, out_w, _ = y_shape
    for part in prange(parts):
        for row in range(batch * height * part // parts, batch * height * (part + 1) // parts):
            n, h = row // height, row % height
            for c in range(0, channels, LANES):
                lanes = first_lanes(channels - c)
                for w in range(width):
                    total = spread(np.float32(0))
                    for i in range(rows[h, 0], rows[h, 1]):
                        top, bottom = under(i, pool[0], step[0], before[0], height)
                        for j in range(columns[w, 0], columns[w, 1]):
                            left, right = under(j, pool[1], step[1], before[1], width)
                            pixels = spread(np.float32((bottom - top) * (right - left)))
                            window = ((n * out_h + i) * out_w + j) * channels + c
                            total = add(total, divide(load(dy, window, lanes), pixels))
                    store(total, dx, (row * width + w) * channels + c, lanes)


class NumbaAverage(Plan):
    """One window, or one pixel of the gradient, after the other, LANES channels at a time."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    def prepare(self):
        spec = self.spec
        before = spec.pads[0][0], spec.pads[1][0]
        self.geometry = (spec.x_shape, spec.y_shape, spec.pool, spec.step, before)
        self.parts = parts_for(math.prod(spec.x_shape), SERIAL_BELOW)
        if tiles(spec):
            self.spread, self.windows = grad_input_of_tiles, ()
        else:
            axes = zip(spec.x_shape[1:3], spec.pool, spec.step, before, spec.y_shape[1:3], strict=True)
            self.spread, self.windows = grad_input, tuple(_windows_over(*axis) for axis in axes)
        nothing, empty = np.empty(0, np.float32), ((0, *spec.x_shape[1:]), (0, *spec.y_shape[1:]), *self.geometry[2:])
        if FORWARD in self.directions:
            forward(nothing, nothing, *empty, self.parts)
        if GRAD_INPUT in self.directions:
            self.spread(nothing, nothing, *empty, *self.windows, self.parts)

    def forward(self, x, out):
        forward(x.reshape(-1), out.reshape(-1), *self.geometry, self.parts)

    def grad_input(self, x, y, dy, dx):
        self.spread(dy.reshape(-1), dx.reshape(-1), *self.geometry, *self.windows, self.parts)


def _windows_over(side, pool, step, before, out):
    """(side, 2): the first and past the last of the windows over each pixel of an axis."""
    pixels = np.arange(side) + before
    return np.stack([np.maximum((pixels - pool) // step + 1, 0), np.minimum(pixels // step + 1, out)], axis=1)


IMPL = Implementation(
    NumbaAverage, algorithm=DIRECT, why_not=float32_only, note="vectors of channels, parallel over rows"
)
