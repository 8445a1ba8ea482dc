"""A matrix product in loops compiled by Numba: rows times rows, in tiles of four by four.

The sixteen sums of a tile stay in vector registers and need eight loads for sixteen multiply-adds; LLVM vectorises
them as they stand. What does not lie in rows is turned first, a panel at a time: w in forward, x and dy in the weight
gradient, in blocks of samples. The input gradient multiplies rows of dy and w as they are.

Memory: one turned panel for each part, and one turned block of dy. Weak where there is little to sum for each turned
value (forward with few samples), and where sums are short (the weight gradient of a small batch).
"""

from __future__ import annotations

import numpy as np

from impls.contract import FLOAT32, GEMM, Implementation, Plan
from impls.numba_setup import njit, numba, prange
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, DenseSpec

PARTS = numba.config.NUMBA_NUM_THREADS
"""Parts of the work computed in parallel, each with a panel of its own; sums do not depend on their number."""

PANEL = 64
"""Rows of a turned panel: with a thousand columns, a quarter of a megabyte."""

SAMPLES = 256
"""Samples in one block of the weight gradient."""

LINE = 16
"""float32 values of a cache line."""


@njit
def tile(a, b, length, i, j, m, n):
    """Four by four sums over k < length of a[i + r, k] * b[j + s, k]; beyond the m-th row or n-th, the last again."""
    i1, i2, i3 = min(i + 1, m - 1), min(i + 2, m - 1), min(i + 3, m - 1)
    j1, j2, j3 = min(j + 1, n - 1), min(j + 2, n - 1), min(j + 3, n - 1)
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.float32(0)
    for k in range(length):
        a0, a1, a2, a3 = a[i, k], a[i1, k], a[i2, k], a[i3, k]
        b0, b1, b2, b3 = b[j, k], b[j1, k], b[j2, k], b[j3, k]
        s00, s01, s02, s03 = s00 + a0 * b0, s01 + a0 * b1, s02 + a0 * b2, s03 + a0 * b3
        s10, s11, s12, s13 = s10 + a1 * b0, s11 + a1 * b1, s12 + a1 * b2, s13 + a1 * b3
        s20, s21, s22, s23 = s20 + a2 * b0, s21 + a2 * b1, s22 + a2 * b2, s23 + a2 * b3
        s30, s31, s32, s33 = s30 + a3 * b0, s31 + a3 * b1, s32 + a3 * b2, s33 + a3 * b3
    return ((s00, s01, s02, s03), (s10, s11, s12, s13), (s20, s21, s22, s23), (s30, s31, s32, s33))


@njit
def add_product(a, b, length, rows, m, out, columns, n):
    """out[rows + i, columns + j] += sum over k < length of a[rows + i, k] * b[j, k], for i < m and j < n."""
    for i in range(0, m, 4):
        for j in range(0, n, 4):
            sums = tile(a, b, length, rows + i, j, rows + m, n)
            for r in range(min(4, m - i)):
                for s in range(min(4, n - j)):
                    out[rows + i + r, columns + j + s] += sums[r][s]


@njit
def turn(source, column, n, out):
    """out[j, k] = source[k, column + j] for j < n, in squares as wide as a cache line."""
    for first in range(0, len(source), LINE):
        for j in range(n):
            for k in range(first, min(first + LINE, len(source))):
                out[j, k] = source[k, column + j]


@njit(parallel=True)
def forward(x, w, bias, relu, bands, out, panels):
    """out = x @ w + bias, then ReLU if asked: every task is a band of rows times a panel of columns."""
    batch, inputs = x.shape
    units = w.shape[1]
    tasks = bands * ((units + PANEL - 1) // PANEL)
    for part in prange(len(panels)):
        for task in range(tasks * part // len(panels), tasks * (part + 1) // len(panels)):
            column, band = task // bands * PANEL, task % bands
            width = min(PANEL, units - column)
            rows, past = batch * band // bands, batch * (band + 1) // bands
            turn(w, column, width, panels[part])
            for i in range(rows, past):
                out[i, column : column + width] = bias[column : column + width]
            add_product(x, panels[part], inputs, rows, past - rows, out, column, width)
            if relu:
                for i in range(rows, past):
                    for j in range(column, column + width):
                        out[i, j] = np.float32(0) if out[i, j] < 0 else out[i, j]


@njit(parallel=True)
def add_grad_weights(x, dy, dw, db, turned, panels):
    """dw += x.T @ dy and db += the sums of dy's columns, for at most SAMPLES rows."""
    samples, inputs = x.shape
    units = dy.shape[1]
    for part in prange(len(panels)):
        first, past = units * part // len(panels), units * (part + 1) // len(panels)
        turn(dy, first, past - first, turned[first:past])
        for j in range(first, past):
            total = np.float32(0)
            for k in range(samples):
                total += turned[j, k]
            db[j] += total
    tasks = (inputs + PANEL - 1) // PANEL
    for part in prange(len(panels)):
        for task in range(tasks * part // len(panels), tasks * (part + 1) // len(panels)):
            row = task * PANEL
            height = min(PANEL, inputs - row)
            turn(x, row, height, panels[part])
            add_product(panels[part], turned, samples, 0, height, dw[row : row + height], 0, units)


@njit(parallel=True)
def grad_input(dy, w, dx, parts):
    """dx = dy @ w.T, a band of w's rows, which are columns of dx, for each part."""
    batch, units = dy.shape
    inputs = len(w)
    for part in prange(parts):
        column, past = inputs * part // parts, inputs * (part + 1) // parts
        for i in range(batch):
            dx[i, column:past] = 0
        for first in range(column, past, PANEL):
            width = min(PANEL, past - first)
            add_product(dy, w[first : first + width], units, 0, batch, dx, first, width)


class NumbaDense(Plan):
    """Panels of PANEL columns; where they are fewer than the threads, the rows are cut into bands too."""

    spec: DenseSpec

    @classmethod
    def scratch_bytes(cls, spec, directions):
        forward = PARTS * PANEL * _row_length(spec.inputs) * (FORWARD in directions)
        weights = (spec.units + PARTS * PANEL) * _row_length(_samples(spec)) * (GRAD_WEIGHTS in directions)
        return 4 * max(forward, weights)

    def prepare(self):
        spec, length = self.spec, _row_length(_samples(self.spec))
        self.bands = min(-(-PARTS * PANEL // spec.units), -(-spec.batch // 4))
        self.no_bias = np.zeros(spec.units, np.float32)
        self.unused_db = np.empty(spec.units, np.float32)
        if FORWARD in self.directions:
            self.panels = self.scratch((PARTS, PANEL, _row_length(spec.inputs)))
        if GRAD_WEIGHTS in self.directions:
            self.turned = self.scratch((spec.units, length))
            self.turned_x = self.scratch((PARTS, PANEL, length), offset=self.turned.nbytes)
        self._compile()

    def forward(self, x, w, b, out):
        bias = self.no_bias if b is None else b
        forward(x, w, bias, self.spec.activation == "relu", self.bands, out, self.panels)

    def grad_weights(self, x, dy, dw, db):
        db = self.unused_db if db is None else db
        dw.fill(0)
        db.fill(0)
        for first in range(0, self.spec.batch, SAMPLES):
            block = slice(first, first + SAMPLES)
            add_grad_weights(x[block], dy[block], dw, db, self.turned, self.turned_x)

    def grad_input(self, dy, w, dx):
        grad_input(dy, w, dx, PARTS)

    def _compile(self):
        """Call what will be called with arrays of no rows."""
        nothing, none = np.empty((0, 0), np.float32), np.empty(0, np.float32)
        if FORWARD in self.directions:
            forward(nothing, nothing, none, False, self.bands, nothing, self.panels)
        if GRAD_WEIGHTS in self.directions:
            add_grad_weights(nothing, nothing, nothing, none, self.turned, self.turned_x)
        if GRAD_INPUT in self.directions:
            grad_input(nothing, nothing, nothing, PARTS)


def _samples(spec):
    return min(spec.batch, SAMPLES)


def _row_length(values):
    """Values of a turned row: whole cache lines, and an odd number of them, so that rows do not share cache sets."""
    return (-(-values // LINE) // 2 * 2 + 1) * LINE


def _float32_only(spec, direction):
    return None if spec.dtype == FLOAT32 else f"computes in float32, not in {spec.dtype}"


IMPL = Implementation(NumbaDense, algorithm=GEMM, why_not=_float32_only, note="tiles of 4 x 4 sums over rows")
