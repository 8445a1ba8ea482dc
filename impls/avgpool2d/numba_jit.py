"""Loops compiled by Numba: rows in parallel, contiguous innermost loops that vectorise.

Forward sums over the rows of a window first, over a whole line of W * C values, then over its columns: PH + PW passes
instead of PH * PW, and the first of them is wide however few the channels. The gradient is its transpose: a line of
shares summed over the windows above a row, then spread over their columns.
"""

from __future__ import annotations

import numpy as np

from impls.contract import DIRECT, Implementation, Plan
from impls.numba_setup import njit, numba, prange
from impls.specs import FORWARD, GRAD_INPUT, PoolSpec
from impls.windows import counts, float32_only, line_length

PARTS = numba.config.NUMBA_NUM_THREADS
"""Bands of rows computed in parallel; each has its own scratch, and the result does not depend on their number."""


@njit
def windows_over(pixel, pool, step, out):
    """(first, past the last) of the windows over a pixel of the padded image."""
    return max(0, (pixel - pool) // step + 1), min(out, pixel // step + 1)


@njit(parallel=True)
def forward(x, out, counts, pool, step, before, lines):
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
                    line[t] += x[n, h, t]
            for j in range(out_w):
                left = j * step[1] - before[1]
                first = max(left, 0) * channels
                for c in range(channels):
                    out[n, i, j, c] = line[first + c]
                for w in range(max(left, 0) + 1, min(left + pool[1], length // channels)):
                    for c in range(channels):
                        out[n, i, j, c] += line[w * channels + c]
                for c in range(channels):
                    out[n, i, j, c] /= counts[i, j]


@njit(parallel=True)
def grad_input(dy, dx, counts, pool, step, before, lines):
    """Fill ``dx`` (N, H, W, C) from dy (N, OH, OW, C); band p uses ``lines[p]``, at least OW * C values."""
    batch, height, width, channels = dx.shape
    _, out_h, out_w, _ = dy.shape
    for part in prange(len(lines)):
        line = lines[part]
        for row in range(batch * height * part // len(lines), batch * height * (part + 1) // len(lines)):
            n, h = row // height, row % height
            line[: out_w * channels] = 0
            for i in range(*windows_over(h + before[0], pool[0], step[0], out_h)):
                for j in range(out_w):
                    for c in range(channels):
                        line[j * channels + c] += dy[n, i, j, c] / counts[i, j]
            for w in range(width):
                dx[n, h, w] = 0
                for j in range(*windows_over(w + before[1], pool[1], step[1], out_w)):
                    for c in range(channels):
                        dx[n, h, w, c] += line[j * channels + c]


class NumbaAverage(Plan):
    """Every row of a band one after the other, all channels of a pixel at a time."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    @classmethod
    def scratch_bytes(cls, spec, directions):
        return 4 * PARTS * _line_length(spec)

    def prepare(self):
        spec = self.spec
        counted = counts(spec)[..., 0].astype(np.float32)
        lines = self.scratch((PARTS, _line_length(spec)))
        self.geometry = (counted, spec.pool, spec.step, (spec.pads[0][0], spec.pads[1][0]), lines)
        nothing = np.empty((0, 1, 1, 1), np.float32)
        if FORWARD in self.directions:
            self.forward(nothing, nothing)
        if GRAD_INPUT in self.directions:
            self.grad_input(nothing, nothing, nothing, nothing)

    def forward(self, x, out):
        forward(x.reshape(*x.shape[:2], x.shape[2] * x.shape[3]), out, *self.geometry)

    def grad_input(self, x, y, dy, dx):
        grad_input(dy, dx, *self.geometry)


def _line_length(spec):
    """Values of the longer line: of pixels in forward, of windows in the gradient."""
    return line_length(max(spec.width, spec.y_shape[2]) * spec.channels)


IMPL = Implementation(NumbaAverage, algorithm=DIRECT, why_not=float32_only, note="parallel over bands of rows")
