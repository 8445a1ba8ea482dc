"""Loops compiled by Numba: bands of rows in parallel, contiguous innermost loops that vectorise.

Forward takes the maximum over the rows of a window first, over a whole line of W * C values, then over its columns:
PH + PW passes instead of PH * PW, and the first of them is wide however few the channels.
"""

from __future__ import annotations

import numpy as np

from impls.contract import DIRECT, Implementation, Plan
from impls.numba_setup import njit, numba, prange
from impls.specs import FORWARD, GRAD_INPUT, PoolSpec
from impls.windows import float32_only, line_length

PARTS = numba.config.NUMBA_NUM_THREADS
"""Bands of rows computed in parallel; each has its own scratch, and the result does not depend on their number."""


@njit
def larger(a, b):
    """The larger of two numbers; NaN if either is."""
    return b if b > a or b != b else a


@njit(parallel=True)
def forward(x, out, pool, step, before, lines):
    """Fill ``out`` (N, OH, OW, C) from x (N, H, W * C); band p uses ``lines[p]``, at least W * C values."""
    _, height, length = x.shape
    batch, out_h, out_w, channels = out.shape
    for part in prange(len(lines)):
        line = lines[part]
        for row in range(batch * out_h * part // len(lines), batch * out_h * (part + 1) // len(lines)):
            n, i = row // out_h, row % out_h
            top = i * step[0] - before[0]
            line[:length] = x[n, max(top, 0)]
            for h in range(max(top, 0) + 1, min(top + pool[0], height)):
                for t in range(length):
                    line[t] = larger(line[t], x[n, h, t])
            for j in range(out_w):
                left = j * step[1] - before[1]
                first = max(left, 0) * channels
                for c in range(channels):
                    out[n, i, j, c] = line[first + c]
                for w in range(max(left, 0) + 1, min(left + pool[1], length // channels)):
                    for c in range(channels):
                        out[n, i, j, c] = larger(out[n, i, j, c], line[w * channels + c])


@njit
def give(x, y, rest, dx):
    """Where x is the maximum y, move ``rest`` to ``dx``: the next pixel that equals y is given 0."""
    for c in range(len(x)):
        hit = x[c] == y[c] or x[c] != x[c]
        dx[c] += rest[c] if hit else np.float32(0)
        rest[c] = np.float32(0) if hit else rest[c]


@njit(parallel=True)
def grad_input(x, y, dy, dx, pool, step, before, lines):
    """Fill ``dx``; band p computes the windows over its rows of all images, with ``lines[p]``, two of >= C values.

    The first line holds a window's gradient until the maximum is met, the second takes what belongs to another band.
    """
    batch, height, width, channels = x.shape
    _, out_h, out_w, _ = y.shape
    for part in prange(len(lines)):
        rest, elsewhere = lines[part, 0, :channels], lines[part, 1, :channels]
        elsewhere[:] = 0
        first, last = batch * height * part // len(lines), batch * height * (part + 1) // len(lines)
        for n in range(first // height, (last + height - 1) // height):
            start, stop = max(first - n * height, 0), min(last - n * height, height)
            dx[n, start:stop] = 0
            lowest = max(0, (start + before[0] - pool[0]) // step[0] + 1)
            for i in range(lowest, min(out_h, (stop - 1 + before[0]) // step[0] + 1)):
                top = i * step[0] - before[0]
                for j in range(out_w):
                    left = j * step[1] - before[1]
                    rest[:] = dy[n, i, j]
                    for h in range(max(top, 0), min(top + pool[0], height)):
                        for w in range(max(left, 0), min(left + pool[1], width)):
                            give(x[n, h, w], y[n, i, j], rest, dx[n, h, w] if start <= h < stop else elsewhere)


class NumbaMax(Plan):
    """Every window of a band one after the other, all its channels at a time."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    @classmethod
    def scratch_bytes(cls, spec, directions):
        return 4 * PARTS * max(line_length(spec.width * spec.channels), 2 * line_length(spec.channels))

    def prepare(self):
        spec = self.spec
        self.geometry = (spec.pool, spec.step, (spec.pads[0][0], spec.pads[1][0]))
        self.lines = self.scratch((PARTS, line_length(spec.width * spec.channels)))
        self.pairs = self.scratch((PARTS, 2, line_length(spec.channels)))
        nothing = np.empty((0, 1, 1, 1), np.float32)
        if FORWARD in self.directions:
            self.forward(nothing, nothing)
        if GRAD_INPUT in self.directions:
            self.grad_input(nothing, nothing, nothing, nothing)

    def forward(self, x, out):
        forward(x.reshape(*x.shape[:2], x.shape[2] * x.shape[3]), out, *self.geometry, self.lines)

    def grad_input(self, x, y, dy, dx):
        grad_input(x, y, dy, dx, *self.geometry, self.pairs)


IMPL = Implementation(NumbaMax, algorithm=DIRECT, why_not=float32_only, note="parallel over bands of rows")
