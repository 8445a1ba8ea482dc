"""A matrix product on the register tiles of ``impls.contraction``: one blocked loop for all three directions.

    forward        out = x @ w + b    rows: batch    columns: units    sums: inputs
    grad_weights   dw = x.T @ dy      rows: inputs   columns: units    sums: batch    db: a row of ones times dy
    grad_input     dx = dy @ w.T      rows: batch    columns: inputs   sums: units

A tile broadcasts values of the first factor and multiplies them by vectors of the second one along the columns. Both
are read where they lie, in blocks of the sums that the caches hold: a copy of either costs more than it gains. Only
w.T has its columns apart: it is transposed by registers, a strip of columns at a time, into scratch memory.

Every result is summed in the same order, whatever tile, task or thread it falls to.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from impls.contract import FLOAT32, GEMM, Implementation, Plan, float32_only
from impls.contraction import Tile, contraction
from impls.numba_setup import njit, numba, prange
from impls.processor import host
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ITEMSIZE, DenseSpec
from impls.transposition import transposition

TASKS_PER_PART = 8
"""So many, where the columns allow it, that parts of unequal numbers of tasks end at nearly the same time. There is a
part for each thread, with a strip of its own."""

SERIAL_BELOW = 1 << 22
"""Floating-point operations: fewer take about as long as waking a second thread."""

DEPTH = 256
"""Sums of a block: a strip of the second factor is 64 KiB, in the second-level cache; one of its rows for each step."""

BAND = 252
"""Most rows of a task: they meet a strip again and again."""
BAND_TURNED = 4 * BAND
"""Where each band has to transpose its strips."""

LEAST_ROWS = 4
"""Of a band that is cut for the sake of threads: tiles of fewer wait for their multiply-adds."""

LANES = host().lanes
SUMS = 24 if host().registers == 32 else 12
"""Vector registers for sums; of the others, one tile's row of vectors and the value that is broadcast."""
VECTORS = 4 if host().registers == 32 else 2
"""Of the widest tile."""
WIDTH = VECTORS * LANES
"""Columns of a strip."""
MOST_ROWS = 8
"""Of a tile: each has its pointer."""

ASKED = 8 << 20
"""Bytes of b above which the strip to come is asked for: more than stays in a third-level cache beside other data."""

FEW = 3
"""Rows of a that are multiplied by columns of b as they lie, where these lie turned."""

BYTES = ITEMSIZE[FLOAT32]
NO_FLOOR = np.float32(-np.inf)


class Product(NamedTuple):
    """What compiled loops know of out (rows, columns) = a @ b, summed over ``sums`` terms, and how it is cut."""

    rows: int
    columns: int
    sums: int
    a_lies_turned: int
    """a is (sums, rows) in memory."""
    b_lies_turned: int
    """b is (columns, sums) in memory."""
    relu: int
    bands: int
    """Tasks are bands of rows by groups of strips."""
    groups: int


def product(spec: DenseSpec, direction: str, parts: int) -> Product:
    """The matrix product of a direction, cut into enough tasks for all parts: by rows as caches ask, then by strips;
    by more rows only where strips are too few, since each band transposes w again."""
    rows, columns, sums = {
        FORWARD: (spec.batch, spec.units, spec.inputs),
        GRAD_WEIGHTS: (spec.inputs, spec.units, spec.batch),
        GRAD_INPUT: (spec.batch, spec.inputs, spec.units),
    }[direction]
    relu = direction == FORWARD and spec.activation == "relu"
    bands = -(-rows // (BAND_TURNED if direction == GRAD_INPUT else BAND))
    groups = min(-(-columns // WIDTH), -(-TASKS_PER_PART * parts // bands))
    bands = max(bands, min(-(-parts // groups), rows // LEAST_ROWS))
    a_lies_turned, b_lies_turned = direction == GRAD_WEIGHTS, direction == GRAD_INPUT
    return Product(rows, columns, sums, int(a_lies_turned), int(b_lies_turned), int(relu), bands, groups)


def _ladder(vectors, asks=False):
    """Compiled: all rows of a strip of so many vectors, in tiles of falling height.

    ``factors``: addresses a, b; strides of a's rows and sums, of b's sums; the number of sums; ahead. ``results``:
    addresses start, out; strides of their rows; lanes of the last vector. Addresses in bytes, strides in values. If it
    ``asks``, the b that lies ``ahead`` values on is fetched: tiles of the most rows ask for a vector each, in turn,
    others for all of it.
    """
    climb = None
    for height in (1, 2, 4):
        climb = _rung(contraction(Tile(height, 1, vectors, LANES, vectors if asks else 0)), height, 1, climb)
    most = min(MOST_ROWS, SUMS // vectors)
    return _rung(contraction(Tile(most, 1, vectors, LANES, int(asks))), most, vectors, climb)


def _rung(tile, height, turns, rest):
    """Compiled: tiles of one height while there is room, then the rest; so many in turn ask for what is ahead."""

    @njit(inline="always", cache=False)
    def rung(first, rows, factors, results, floor):
        a, b, a_row, a_step, b_step, depth, ahead = factors
        start, out, start_row, out_row, last = results
        i = first
        while i + height <= rows:
            tile(
                a + BYTES * i * a_row, a_row, 0, 0, a_step, b, 0, 0, b_step, 1, 1, depth,
                start + BYTES * i * start_row, start_row, 0, out + BYTES * i * out_row, out_row, 0, last, floor,
                ahead + i // height % turns * LANES,
            )  # fmt: skip
            i += height
        if rest is not None:
            rest(i, rows, factors, results, floor)

    return rung


def _choice(vectors, ladder, others):
    """Compiled: the ladder of a strip of so many vectors, or one of the others."""

    @njit(inline="always", cache=False)
    def choice(wanted, rows, factors, results, floor):
        if others is None or wanted == vectors:
            ladder(0, rows, factors, results, floor)
        else:
            others(wanted, rows, factors, results, floor)

    return choice


def _asking(ladder, others):
    """Compiled: the ladder of the widest strips that asks, if anything is ahead, or one of the others."""

    @njit(inline="always", cache=False)
    def asking(wanted, rows, factors, results, floor):
        if wanted == VECTORS and factors[-1] > 0:
            ladder(0, rows, factors, results, floor)
        else:
            others(wanted, rows, factors, results, floor)

    return asking


def _strips():
    """Compiled: ``strip(vectors, rows, factors, results, floor)`` for strips of 1, 2, 4 ... VECTORS vectors."""
    strip = None
    for exponent in range(VECTORS.bit_length()):
        strip = _choice(1 << exponent, _ladder(1 << exponent), strip)
    return _asking(_ladder(VECTORS, asks=True), strip)


strip = _strips()
square = transposition(LANES)


@njit
def turn(source, row, rows, columns, out):
    """out[c, r] = source[r, c]: out has WIDTH values in a row, and rows for ``columns`` rounded up to whole vectors."""
    for r in range(0, rows, LANES):
        for c in range(0, columns, LANES):
            at, to = source + BYTES * (r * row + c), out + BYTES * (c * WIDTH + r)
            square(at, row, rows - r, columns - c, to, WIDTH)


@njit
def dots(a, b, out):
    """out = a @ b.T for a few rows of a, which repay no transposition: each with four rows of b, along these."""
    for j in range(0, len(b), 4):
        j1, j2, j3 = min(j + 1, len(b) - 1), min(j + 2, len(b) - 1), min(j + 3, len(b) - 1)
        for i in range(len(a)):
            s0 = s1 = s2 = s3 = np.float32(0)
            for k in range(a.shape[1]):
                value = a[i, k]
                s0, s1 = s0 + value * b[j, k], s1 + value * b[j1, k]
                s2, s3 = s2 + value * b[j2, k], s3 + value * b[j3, k]
            out[i, j], out[i, j1], out[i, j2], out[i, j3] = s0, s1, s2, s3


@njit
def distance(p, following, j, width, left, right):
    """From a strip of b at column j of ``left`` to ``right`` to the one that comes next, in values; 0 to ask for none.

    ``following``: the first sum of the next block.
    """
    if BYTES * p.sums * p.columns <= ASKED:
        return 0
    if j + width < right:
        return width
    return DEPTH * p.columns - (j - left) if following < p.sums else 0


@njit
def block(p, a, out, others, a_row, a_step, rows, left, right):
    """A band of ``rows`` rows, from column ``left`` to ``right``, block after block of the sums.

    Addresses: ``a``, ``out`` of the band's first rows; ``others`` of b, of as many start values as there are columns,
    and of the scratch memory for a strip.
    """
    b, start, turned = others
    for k in range(0, p.sums, DEPTH):
        depth = min(DEPTH, p.sums - k)
        floor = np.float32(0) if p.relu and k + depth == p.sums else NO_FLOOR
        j = left
        while j < right:
            vectors = VECTORS
            while (vectors - 1) * LANES >= right - j:
                vectors //= 2
            width = min(vectors * LANES, right - j)
            if p.b_lies_turned:
                turn(b + BYTES * (j * p.sums + k), p.sums, width, depth, turned)
                second, step, ahead = turned, WIDTH, 0
            else:
                second, step = b + BYTES * (k * p.columns + j), p.columns
                ahead = distance(p, k + depth, j, width, left, right)
            to = out + BYTES * j
            source, source_row = (start + BYTES * j, 0) if k == 0 else (to, p.columns)
            factors = (a + BYTES * k * a_step, second, a_row, a_step, step, depth, ahead)
            strip(vectors, rows, factors, (source, to, source_row, p.columns, width - (vectors - 1) * LANES), floor)
            j += width


@njit
def tasks(p, a, b, start, out, one, sums_of_b, turned, first, past):
    """The tasks from ``first`` to ``past``; those of the first band fill their columns of ``sums_of_b`` too."""
    a_row, a_step = (1, p.rows) if p.a_lies_turned else (p.sums, 1)
    strips = (p.columns + WIDTH - 1) // WIDTH
    for task in range(first, past):
        band, group = task // p.groups, task % p.groups
        top, bottom = p.rows * band // p.bands, p.rows * (band + 1) // p.bands
        left, right = strips * group // p.groups * WIDTH, min(strips * (group + 1) // p.groups * WIDTH, p.columns)
        if p.b_lies_turned and p.rows <= FEW:
            dots(a[top:bottom], b[left:right], out[top:bottom, left:right])
            continue
        others = (b.ctypes.data, start.ctypes.data, turned.ctypes.data)
        band_of_a, band_of_out = a.ctypes.data + BYTES * top * a_row, out.ctypes.data + BYTES * top * p.columns
        block(p, band_of_a, band_of_out, others, a_row, a_step, bottom - top, left, right)
        if len(sums_of_b) and band == 0:
            block(p, one.ctypes.data, sums_of_b.ctypes.data, others, 0, 0, 1, left, right)


@njit(parallel=True)
def parallel_tasks(p, a, b, start, out, one, sums_of_b, turned):
    """All tasks, in as many parts as there are rows of ``turned``."""
    parts, count = len(turned), p.bands * p.groups
    for part in prange(parts):
        tasks(p, a, b, start, out, one, sums_of_b, turned[part], count * part // parts, count * (part + 1) // parts)


class NumbaDense(Plan):
    """One product for each direction, in one call of compiled loops."""

    spec: DenseSpec

    @classmethod
    def scratch_bytes(cls, spec, directions):
        """A strip for each part of the work, of as many parts as there are threads when a plan is made."""
        return BYTES * numba.get_num_threads() * _turned_rows(spec) * WIDTH * (GRAD_INPUT in directions)

    def prepare(self):
        spec, parts = self.spec, numba.get_num_threads()
        self.products = {d: product(spec, d, parts) for d in self.directions}
        self.is_parallel = parts > 1 and spec.flops >= SERIAL_BELOW
        self.zeros, self.one = np.zeros(max(spec.inputs, spec.units), np.float32), np.ones(1, np.float32)
        self.none = np.empty(0, np.float32)
        self.turned = self.scratch((parts, _turned_rows(spec) * (GRAD_INPUT in self.directions) * WIDTH))
        self._compile()

    def forward(self, x, w, b, out):
        self._multiply(FORWARD, x, w, self.zeros if b is None else b, out, self.none)

    def grad_weights(self, x, dy, dw, db):
        self._multiply(GRAD_WEIGHTS, x, dy, self.zeros, dw, self.none if db is None else db)

    def grad_input(self, dy, w, dx):
        self._multiply(GRAD_INPUT, dy, w, self.zeros, dx, self.none)

    def _multiply(self, direction, a, b, start, out, sums_of_b):
        p = self.products[direction]
        if self.is_parallel:
            parallel_tasks(p, a, b, start, out, self.one, sums_of_b, self.turned)
        else:
            tasks(p, a, b, start, out, self.one, sums_of_b, self.turned[0], 0, p.bands * p.groups)

    def _compile(self):
        """Call what will be called for products of no rows: shapes and directions are no types."""
        nothing = np.empty((0, 0), np.float32)
        p = Product(0, 0, 1, 0, 0, 0, 0, 1)
        if self.is_parallel:
            parallel_tasks(p, nothing, nothing, self.zeros, nothing, self.one, self.none, self.turned)
        else:
            tasks(p, nothing, nothing, self.zeros, nothing, self.one, self.none, self.turned[0], 0, 0)


def _turned_rows(spec):
    """Rows of a strip of w.T: a block of the sums over units, in whole vectors."""
    return -(-min(spec.units, DEPTH) // LANES) * LANES


IMPL = Implementation(NumbaDense, algorithm=GEMM, why_not=float32_only, note="register tiles, blocked sums")
