"""The innermost loops of our compiled convolutions, and the packing of weights around them.

Both loops take four windows and four packed rows of weights (or of their gradient), all contiguous. ``dots`` sums
along the window: its sixteen sums stay in vector registers and are added across lanes once at the end. ``add_outer``
runs along the rows of the gradient and adds four windows to each of four rows in a pass. A parallel loop
here only calls a function with its index: the index is unsigned, and records cannot be captured.
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
    a, b = source[start : start + count], target[at : at + count]
    for k in range(count):
        b[k] = a[k]


@njit
def clear(target, at, count):
    """target[at : at + count] = 0, in one dimension."""
    b = target[at : at + count]
    for k in range(count):
        b[k] = 0


@njit
def dots(a0, a1, a2, a3, b0, b1, b2, b3, out, p, q):
    """out[p : p + 4, q : q + 4] = the products of four windows with four rows of weights."""
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = out.dtype.type(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = out.dtype.type(0)
    for k in range(len(a0)):
        x0, x1, x2, x3 = a0[k], a1[k], a2[k], a3[k]
        w = b0[k]
        s00 += x0 * w
        s10 += x1 * w
        s20 += x2 * w
        s30 += x3 * w
        w = b1[k]
        s01 += x0 * w
        s11 += x1 * w
        s21 += x2 * w
        s31 += x3 * w
        w = b2[k]
        s02 += x0 * w
        s12 += x1 * w
        s22 += x2 * w
        s32 += x3 * w
        w = b3[k]
        s03 += x0 * w
        s13 += x1 * w
        s23 += x2 * w
        s33 += x3 * w
    r0, r1, r2, r3 = out[p], out[p + 1], out[p + 2], out[p + 3]
    r0[q], r0[q + 1], r0[q + 2], r0[q + 3] = s00, s01, s02, s03
    r1[q], r1[q + 1], r1[q + 2], r1[q + 3] = s10, s11, s12, s13
    r2[q], r2[q + 1], r2[q + 2], r2[q + 3] = s20, s21, s22, s23
    r3[q], r3[q + 1], r3[q + 2], r3[q + 3] = s30, s31, s32, s33


@njit
def add_outer(d0, d1, d2, d3, q, x0, x1, x2, x3, r0, r1, r2, r3):
    """r_j += sum over p of d_p[q + j] * x_p for four windows x and four rows r."""
    d00, d01, d02, d03 = d0[q], d0[q + 1], d0[q + 2], d0[q + 3]
    d10, d11, d12, d13 = d1[q], d1[q + 1], d1[q + 2], d1[q + 3]
    d20, d21, d22, d23 = d2[q], d2[q + 1], d2[q + 2], d2[q + 3]
    d30, d31, d32, d33 = d3[q], d3[q + 1], d3[q + 2], d3[q + 3]
    for k in range(len(x0)):
        a, b, c, d = x0[k], x1[k], x2[k], x3[k]
        r0[k] += d00 * a + d10 * b + d20 * c + d30 * d
        r1[k] += d01 * a + d11 * b + d21 * c + d31 * d
        r2[k] += d02 * a + d12 * b + d22 * c + d32 * d
        r3[k] += d03 * a + d13 * b + d23 * c + d33 * d


@njit
def add_scaled(scale, x, row):
    """row += scale * x, in one dimension."""
    for k in range(len(x)):
        row[k] += scale * x[k]


@njit
def multiply_block(lowered, windows, count, packed, first_row, column_step, results):
    """results[m, q] = window m times packed row ``first_row + q``, for every tile of the block's ``count`` windows."""
    for q in range(0, results.shape[1], TILE):
        w0, w1 = packed[first_row + q], packed[first_row + q + 1]
        w2, w3 = packed[first_row + q + 2], packed[first_row + q + 3]
        for p in range(0, count, TILE):
            low = column_step * min(windows[p, 1], windows[p + 1, 1], windows[p + 2, 1], windows[p + 3, 1])
            high = column_step * max(windows[p, 2], windows[p + 1, 2], windows[p + 2, 2], windows[p + 3, 2])
            p0, p1, p2, p3 = windows[p, 0], windows[p + 1, 0], windows[p + 2, 0], windows[p + 3, 0]
            dots(
                lowered[p0 + low : p0 + high],
                lowered[p1 + low : p1 + high],
                lowered[p2 + low : p2 + high],
                lowered[p3 + low : p3 + high],
                w0[low:high],
                w1[low:high],
                w2[low:high],
                w3[low:high],
                results,
                p,
                q,
            )


@njit
def add_block(lowered, windows, count, dys, first, end, column_step, packed, first_row):
    """packed[first_row + q] += sum over the block's windows m of dys[m, q] * window m, for first <= q < end."""
    whole = count - count % TILE
    for q in range(first, end, TILE):
        r0, r1 = packed[first_row + q], packed[first_row + q + 1]
        r2, r3 = packed[first_row + q + 2], packed[first_row + q + 3]
        for p in range(0, whole, TILE):
            low = column_step * min(windows[p, 1], windows[p + 1, 1], windows[p + 2, 1], windows[p + 3, 1])
            high = column_step * max(windows[p, 2], windows[p + 1, 2], windows[p + 2, 2], windows[p + 3, 2])
            p0, p1, p2, p3 = windows[p, 0], windows[p + 1, 0], windows[p + 2, 0], windows[p + 3, 0]
            add_outer(
                dys[p],
                dys[p + 1],
                dys[p + 2],
                dys[p + 3],
                q,
                lowered[p0 + low : p0 + high],
                lowered[p1 + low : p1 + high],
                lowered[p2 + low : p2 + high],
                lowered[p3 + low : p3 + high],
                r0[low:high],
                r1[low:high],
                r2[low:high],
                r3[low:high],
            )
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
    columns = dy.shape[2]
    for m in range(count):
        line, j = divmod(first + m, columns)
        n, i = divmod(line, dy.shape[1])
        copy(dy[n, i, j], group * outer, dys[m], 0, outer)
        clear(dys[m], outer, dys.shape[1] - outer)


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
