"""The innermost loops of our compiled convolutions, and the packing of weights around them.

Both loops take four windows and four packed rows of weights (or of their gradient), all contiguous. ``dots`` sums
along the window: its sixteen sums stay in vector registers and are added across lanes once at the end. ``add_outer``
runs along the rows of the gradient and adds four windows to each of four rows in a pass. A parallel loop
only calls a function with its index, made signed: numba's index is unsigned, and its parallel loops take no records.

Offsets in the innermost loops are unsigned: a signed index is tested for being negative at every access, and slices
instead of offsets cost more than a short loop itself.
"""

from __future__ import annotations

import numpy as np

from impls.numba_setup import njit, prange

TILE = 4
"""Windows, and packed rows, of one tile."""
LANES = 16
"""Floats of a 512-bit vector: windows are padded with zeros to a multiple of it, so that no scalar rest remains."""


@njit
def copy(source, start, target, at, count):
    """target[at : at + count] = source[start : start + count], in one dimension."""
    a, b = np.uintp(start), np.uintp(at)
    for k in range(np.uintp(count)):
        target[b + k] = source[a + k]


@njit
def clear(target, at, count):
    """target[at : at + count] = 0, in one dimension."""
    b = np.uintp(at)
    for k in range(np.uintp(count)):
        target[b + k] = 0


@njit
def dots(a, at, b, row, stride, count, out, p, q):
    """out[p : p + 4, q : q + 4] = products of four windows of ``a`` with four packed rows of ``b``, ``count`` long.

    Windows start at the four places ``at``, rows at ``row`` and every ``stride`` floats from there.
    """
    a0, a1, a2, a3 = np.uintp(at[0]), np.uintp(at[1]), np.uintp(at[2]), np.uintp(at[3])
    b0, b1, b2, b3 = np.uintp(row), np.uintp(row + stride), np.uintp(row + 2 * stride), np.uintp(row + 3 * stride)
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = out.dtype.type(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = out.dtype.type(0)
    for k in range(np.uintp(count)):
        x0, x1, x2, x3 = a[a0 + k], a[a1 + k], a[a2 + k], a[a3 + k]
        w = b[b0 + k]
        s00 += x0 * w
        s10 += x1 * w
        s20 += x2 * w
        s30 += x3 * w
        w = b[b1 + k]
        s01 += x0 * w
        s11 += x1 * w
        s21 += x2 * w
        s31 += x3 * w
        w = b[b2 + k]
        s02 += x0 * w
        s12 += x1 * w
        s22 += x2 * w
        s32 += x3 * w
        w = b[b3 + k]
        s03 += x0 * w
        s13 += x1 * w
        s23 += x2 * w
        s33 += x3 * w
    out[p, q], out[p, q + 1], out[p, q + 2], out[p, q + 3] = s00, s01, s02, s03
    out[p + 1, q], out[p + 1, q + 1], out[p + 1, q + 2], out[p + 1, q + 3] = s10, s11, s12, s13
    out[p + 2, q], out[p + 2, q + 1], out[p + 2, q + 2], out[p + 2, q + 3] = s20, s21, s22, s23
    out[p + 3, q], out[p + 3, q + 1], out[p + 3, q + 2], out[p + 3, q + 3] = s30, s31, s32, s33


@njit
def add_outer(d, p, q, a, at, b, row, stride, count):
    """Four rows of ``b`` += sum over i of d[p + i, q + row] * window i of ``a``; places as in ``dots``."""
    a0, a1, a2, a3 = np.uintp(at[0]), np.uintp(at[1]), np.uintp(at[2]), np.uintp(at[3])
    b0, b1, b2, b3 = np.uintp(row), np.uintp(row + stride), np.uintp(row + 2 * stride), np.uintp(row + 3 * stride)
    d00, d01, d02, d03 = d[p, q], d[p, q + 1], d[p, q + 2], d[p, q + 3]
    d10, d11, d12, d13 = d[p + 1, q], d[p + 1, q + 1], d[p + 1, q + 2], d[p + 1, q + 3]
    d20, d21, d22, d23 = d[p + 2, q], d[p + 2, q + 1], d[p + 2, q + 2], d[p + 2, q + 3]
    d30, d31, d32, d33 = d[p + 3, q], d[p + 3, q + 1], d[p + 3, q + 2], d[p + 3, q + 3]
    for k in range(np.uintp(count)):
        x0, x1, x2, x3 = a[a0 + k], a[a1 + k], a[a2 + k], a[a3 + k]
        b[b0 + k] += d00 * x0 + d10 * x1 + d20 * x2 + d30 * x3
        b[b1 + k] += d01 * x0 + d11 * x1 + d21 * x2 + d31 * x3
        b[b2 + k] += d02 * x0 + d12 * x1 + d22 * x2 + d32 * x3
        b[b3 + k] += d03 * x0 + d13 * x1 + d23 * x2 + d33 * x3


@njit
def add_scaled(scale, x, row):
    """row += scale * x, in one dimension."""
    for k in range(len(x)):
        row[k] += scale * x[k]


@njit
def tile_of(windows, p, column_step):
    """Where four windows start, and how long they are, from the first to the last tap column that any one needs."""
    low = column_step * min(windows[p, 1], windows[p + 1, 1], windows[p + 2, 1], windows[p + 3, 1])
    high = column_step * max(windows[p, 2], windows[p + 1, 2], windows[p + 2, 2], windows[p + 3, 2])
    starts = (windows[p, 0] + low, windows[p + 1, 0] + low, windows[p + 2, 0] + low, windows[p + 3, 0] + low)
    return starts, low, high - low


@njit
def multiply_block(lowered, windows, count, packed, first_row, column_step, results):
    """results[m, q] = window m times packed row ``first_row + q``, for every tile of the block's ``count`` windows."""
    terms, weights = packed.shape[1], packed.reshape(-1)
    for q in range(0, results.shape[1], TILE):
        row = (first_row + q) * terms
        for p in range(0, count, TILE):
            starts, low, length = tile_of(windows, p, column_step)
            dots(lowered, starts, weights, row + low, terms, length, results, p, q)


@njit
def add_block(lowered, windows, count, dys, first, end, column_step, packed, first_row):
    """packed[first_row + q] += sum over the block's windows m of dys[m, q] * window m, for first <= q < end."""
    terms, gradients = packed.shape[1], packed.reshape(-1)
    whole = count - count % TILE
    for q in range(first, end, TILE):
        row = (first_row + q) * terms
        for p in range(0, whole, TILE):
            starts, low, length = tile_of(windows, p, column_step)
            add_outer(dys, p, q, lowered, starts, gradients, row + low, terms, length)
        for p in range(whole, count):
            start, low, high = windows[p, 0], column_step * windows[p, 1], column_step * windows[p, 2]
            for j in range(TILE):
                add_scaled(dys[p, q + j], lowered[start + low : start + high], packed[first_row + q + j, low:high])


@njit
def finish_block(results, count, first, group, b, relu, record, out):
    """Add the bias to a block of results, apply relu, and put every pixel where it belongs; NaN stays NaN."""
    problem = record[0]
    rows, columns, outer = problem.rows, problem.columns, problem.outer
    bias = b[group * outer : (group + 1) * outer]
    for m in range(count):
        line, j = divmod(first + m, columns.out)
        n, i = divmod(line, rows.out)
        y = out[n, rows.out_first + i * rows.out_step, columns.out_first + j * columns.out_step]
        target, sums = y[group * outer : (group + 1) * outer], results[m]
        for f in range(outer):
            value = sums[f] + bias[f]
            target[f] = 0 if relu and value < 0 else value


@njit
def take_block(dy, count, first, group, outer, dys):
    """dys[m, q] = output gradient of window m of the block; zero where a tile has more rows than the group."""
    source, target = dy.reshape(-1), dys.reshape(-1)
    filters, width = dy.shape[3], dys.shape[1]
    for m in range(count):
        copy(source, (first + m) * filters + group * outer, target, m * width, outer)
        clear(target, m * width + outer, width - outer)


@njit
def start_part(packed, sums, height, low, high):
    """Zero rows ``low`` to ``high`` of every group's ``height`` rows."""
    for first in range(0, len(packed), height):
        for r in range(first + low, first + high):
            clear(packed[r], 0, packed.shape[1])
            sums[r] = 0


@njit
def add_sums(dys, count, low, high, sums, first_row):
    """sums[first_row + q] += the sum of dys[m, q] over the block's windows, for low <= q < high: the bias' gradient."""
    for m in range(count):
        add_scaled(sums.dtype.type(1), dys[m, low:high], sums[first_row + low : first_row + high])


@njit
def pack_row(r, w, transposed, record, packed):
    """Row ``r`` of ``pack``."""
    problem = record[0]
    rows, columns, inner = problem.rows, problem.columns, problem.inner
    group, q = divmod(r, len(packed) // problem.groups)
    row = packed[r]
    clear(row, 0, len(row))
    if q >= problem.outer:
        return
    for s in range(rows.taps):
        for t in range(columns.taps):
            tap = w[rows.tap_first + s * rows.tap_step, columns.tap_first + t * columns.tap_step]
            at = s * problem.row_step + t * problem.column_step
            if transposed:
                copy(tap[q], group * inner, row, at, inner)
            else:
                for c in range(inner):
                    row[at + c] = tap[c, group * problem.outer + q]


@njit(parallel=True)
def pack(w, transposed, record, packed):
    """Weights (KH, KW, C / groups, F) to one row per result, laid out as its windows are; the rest is zero.

    ``transposed`` exchanges the roles of channels and filters: the input gradient reads filters, results in channels.
    """
    for r in prange(len(packed)):
        pack_row(np.int64(r), w, transposed, record, packed)


@njit(parallel=True)
def reduce_parts(packed, sums):
    """packed[0], sums[0] = the sums over the first axis, always in the same order."""
    for r in prange(packed.shape[1]):
        for part in range(1, packed.shape[0]):
            add_scaled(packed.dtype.type(1), packed[part, r], packed[0, r])
            sums[0, r] += sums[part, r]


@njit
def unpack_tap_row(a, packed, sums, record, dw, db):
    """Row ``a`` of the kernel in ``unpack``."""
    problem = record[0]
    rows, columns, inner, outer = problem.rows, problem.columns, problem.inner, problem.outer
    height = len(packed) // problem.groups
    s = a - rows.tap_first
    for b in range(dw.shape[1]):
        t = b - columns.tap_first
        seen = 0 <= s < rows.taps and 0 <= t < columns.taps
        at = s * problem.row_step + t * problem.column_step
        for group in range(problem.groups):
            for c in range(inner):
                line = dw[a, b, c, group * outer : (group + 1) * outer]
                for q in range(outer):
                    line[q] = packed[group * height + q, at + c] if seen else 0
    if a == 0:
        for group in range(problem.groups):
            copy(sums, group * height, db, group * outer, outer)


@njit(parallel=True)
def unpack(packed, sums, record, dw, db):
    """The inverse of ``pack`` for the gradient; taps that meet only padding have gradient zero."""
    for a in prange(dw.shape[0]):
        unpack_tap_row(np.int64(a), packed, sums, record, dw, db)
