"""Winograd's transforms as straight-line vector code: Y = M X M^T, each element a vector of neighbouring channels.

Emitted as LLVM IR from the exact matrices: sums that two rows of M, or two columns, have in common are computed once.
A tile may lie partly outside the image: rows that do not exist are read from, or written to, a spare row, columns are
masked, so that tiles on the border are as fast as those inside. Pieces of rows are too short for a processor to foresee
the next: each transform asks for what a later one will read, or write. That halved the time of a layer.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from impls.contraction import FLOAT, INDEX, Emitter, Tile, prefetch
from impls.numba_setup import njit
from impls.processor import host
from impls.winograd import matrices

LANES = host().lanes
FORMS = ((2, 3), (4, 3), (2, 5), (4, 5), (2, 7))
"""(m, r) of every F(m, r) that is compiled."""
ASKED_BYTES = 16 << 10
"""Of values transformed between the request for a tile and its use: so many that memory has answered, so few that the
answer still lies in the first-level cache."""
READ, WRITTEN, NEITHER = "read", "written", "neither"
"""Which side of a transform may lie beyond a border."""


@cache
def of_image(n: int):
    """B^T d B for n x n values, which may lie partly outside the image: what is beyond is zero."""
    return _transform(matrices(2, n - 1).image, READ, n - 2)


@cache
def of_kernel(m: int, r: int):
    """G g G^T."""
    return _transform(matrices(m, r).kernel, NEITHER, 0)


@cache
def of_results(m: int, r: int):
    """A^T p A + bias, and the floor; results outside the image are left out."""
    return _transform(matrices(m, r).results, WRITTEN, m)


@cache
def of_gradient(m: int, r: int):
    """A dy A^T for m x m gradients, which may lie partly outside the results: what is beyond is zero."""
    return _transform(tuple(zip(*matrices(m, r).results, strict=True)), READ, m)


@cache
def of_sums(m: int, r: int):
    """G^T s G + bias, and the floor: the gradient of the taps."""
    return _transform(tuple(zip(*matrices(m, r).kernel, strict=True)), WRITTEN, 0)


def _transform(matrix, bounded, new):
    """The compiled kernel, to be called from compiled loops:

    ``kernel(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)``

    ``source``, ``out``, ``spare``, ``bias`` are addresses; strides are in float32 values. On the bounded side only
    rows from ``top`` to before ``bottom`` and columns from ``left`` to before ``right`` exist; others are read from
    ``spare``, a row of zeros, or written to it, and columns are left out. Of every vector of the source, or of what
    results are written to, only ``last`` lanes are touched. ``soon`` is the address on that side of a tile whose turn
    comes soon, of which ``new`` columns are not those of the tile before it; there need not be anything.
    ``bias`` and ``floor`` are those of results alone: below the floor they become 0; NaN stays.
    """

    @intrinsic
    def emit(
        context, source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor
    ):  # fmt: skip
        signature = types.void(*[types.int64] * 14, types.float32)
        return signature, lambda context, builder, sig, args: _emit(context, builder, matrix, bounded, new, args)

    @njit(cache=False)
    def kernel(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor):
        emit(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)

    return kernel


def _emit(context, builder, matrix, bounded, new, args):
    """Transform all columns, then all rows of what that gives."""
    source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor = args
    builder.function.attributes.add("noinline")
    vector = ir.VectorType(FLOAT, LANES)
    emitter = Emitter(builder, Tile(1, 1, 1, LANES), vector, last)
    size, results = len(matrix[0]), len(matrix)

    def rows_of(address, step, count, side):
        """Pointers to so many rows; to the spare one where they lie beyond the border of this side."""
        rows = [builder.add(address, builder.mul(step, INDEX(4 * k))) for k in range(count)]
        if side == bounded:
            rows = [builder.select(between(k, top, bottom), place, spare) for k, place in enumerate(rows)]
        return [emitter.pointer(place) for place in rows]

    def between(number, low, high):
        at_least, below = (builder.icmp_signed(how, INDEX(number), end) for how, end in ((">=", low), ("<", high)))
        return builder.and_(at_least, below)

    def lanes_of(count):
        """The mask of each column: no lane beyond the border."""
        if bounded == NEITHER:
            return [emitter.mask] * count
        nothing = ir.Constant(emitter.bits, None)
        return [builder.select(between(k, left, right), emitter.mask, nothing) for k in range(count)]

    def ask(count, row_step, step, columns, to_write):
        for pointer in rows_of(soon, row_step, count, NEITHER):
            for j in columns:
                prefetch(builder, emitter.moved(pointer, builder.mul(step, INDEX(j))), to_write)

    def load(i, j):
        pointer = emitter.moved(origin[i], builder.mul(column, INDEX(j)))
        if bounded == WRITTEN:
            found = builder.load(pointer, typ=vector)
            found.align = 4
            return found
        return emitter.masked_load(pointer, masks[j])

    def store(value, i, j):
        pointer = emitter.moved(goal[i], builder.mul(out_column, INDEX(j)))
        if bounded == WRITTEN:
            emitter.masked_store(emitter.above(builder.fadd(value, start), floor), pointer, masks[j])
        else:
            builder.store(value, builder.bitcast(pointer, vector.as_pointer())).align = 4

    origin, goal = rows_of(source, row, size, READ), rows_of(out, out_row, results, WRITTEN)
    masks = lanes_of(results if bounded == WRITTEN else size)
    if bounded == READ:
        ask(size, row, column, range(size - new, size), to_write=False)
    elif bounded == WRITTEN:
        ask(results, out_row, out_column, range(new), to_write=True)
    columns = [combined(emitter, matrix, [load(i, j) for i in range(size)]) for j in range(size)]
    start = emitter.vector_at(emitter.pointer(bias), 0) if bounded == WRITTEN else None
    for i in range(results):
        for j, value in enumerate(combined(emitter, matrix, [columns[j][i] for j in range(size)])):
            store(value, i, j)
    return context.get_dummy_value()


def combined(emitter, matrix, values):
    """The products of a matrix's rows with a column of vectors, as instructions."""
    matrix, values = _by_columns(emitter.builder, matrix, values)
    found, left = {}, list(range(len(matrix)))
    while left:
        i = left.pop(0)
        even, scale, odd = _parts(matrix[i])
        twin = next((k for k in left if even and odd and _parts(matrix[k])[::2] == (even, odd)), None)
        if twin is None:
            found[i] = _sum(emitter, dict(enumerate(matrix[i])), values)
            continue
        left.remove(twin)
        of_even, of_odd = _sum(emitter, even, values), _sum(emitter, odd, values)
        for k, factor in ((i, scale), (twin, _parts(matrix[twin])[1])):
            found[k] = _added(emitter, of_even, factor, of_odd)
    return [found[i] for i in range(len(matrix))]


def _by_columns(builder, matrix, values):
    """The same products, where two columns differ in signs alone by sums and differences of their two values."""
    columns, values = [list(column) for column in zip(*matrix, strict=True)], list(values)
    for j in range(len(columns)):
        for k in range(j + 1, len(columns)):
            a, b = columns[j], columns[k]
            if a != b and all(abs(x) == abs(y) for x, y in zip(a, b, strict=True)) and sum(map(bool, a)) > 1:
                values[j], values[k] = builder.fadd(values[j], values[k]), builder.fsub(values[j], values[k])
                columns[j] = [x if x == y else 0 for x, y in zip(a, b, strict=True)]
                columns[k] = [0 if x == y else x for x, y in zip(a, b, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)], values


def _parts(row):
    """(coefficients of even number, the factor of the odd ones, those divided by it), without zeros."""
    even = {k: c for k, c in enumerate(row) if c and k % 2 == 0}
    odd = {k: c for k, c in enumerate(row) if c and k % 2}
    scale = odd[max(odd)] if odd else None
    return even, scale, {k: c / scale for k, c in odd.items()}


def _sum(emitter, coefficients, values):
    """The sum of coefficients times values, beginning with one that needs no product."""
    terms = sorted(((c, values[k]) for k, c in coefficients.items() if c), key=lambda term: term[0] != 1)
    (first, total), *rest = terms
    if first != 1:
        total = emitter.builder.fmul(_constant(emitter, first), total)
    for c, value in rest:
        total = _added(emitter, total, c, value)
    return total


def _added(emitter, total, factor, value):
    """total + factor * value."""
    if abs(factor) == 1:
        return (emitter.builder.fadd if factor == 1 else emitter.builder.fsub)(total, value)
    return emitter.multiply_add(_constant(emitter, factor), value, total)


def _constant(emitter, number):
    return ir.Constant(emitter.vector, [float(number)] * LANES)


IMAGE_4, IMAGE_6, IMAGE_8 = map(of_image, (4, 6, 8))
TAPS_0, TAPS_1, TAPS_2, TAPS_3, TAPS_4 = (of_kernel(m, r) for m, r in FORMS)
OUT_0, OUT_1, OUT_2, OUT_3, OUT_4 = (of_results(m, r) for m, r in FORMS)
GRAD_0, GRAD_1, GRAD_2, GRAD_3, GRAD_4 = (of_gradient(m, r) for m, r in FORMS)
SUMS_0, SUMS_1, SUMS_2, SUMS_3, SUMS_4 = (of_sums(m, r) for m, r in FORMS)


@njit
def transform_image(
    side, source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor
):  # fmt: skip
    """The image's transform of a size; a chain of calls, since numba's tables of functions know no cache."""
    if side == 4:
        IMAGE_4(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif side == 6:
        IMAGE_6(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif side == 8:
        IMAGE_8(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)


@njit
def transform_kernel(
    form, source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor
):  # fmt: skip
    """The kernel's transform of ``FORMS[form]``."""
    if form == 0:
        TAPS_0(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 1:
        TAPS_1(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 2:
        TAPS_2(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 3:
        TAPS_3(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 4:
        TAPS_4(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)


@njit
def transform_results(
    form, source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor
):  # fmt: skip
    """The results' transform of ``FORMS[form]``."""
    if form == 0:
        OUT_0(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 1:
        OUT_1(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 2:
        OUT_2(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 3:
        OUT_3(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 4:
        OUT_4(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)


@njit
def transform_gradient(
    form, source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor
):  # fmt: skip
    """The results' gradient's transform of ``FORMS[form]``."""
    if form == 0:
        GRAD_0(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 1:
        GRAD_1(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 2:
        GRAD_2(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 3:
        GRAD_3(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 4:
        GRAD_4(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)


@njit
def transform_sums(
    form, source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor
):  # fmt: skip
    """The transform of the weight gradient's sums of ``FORMS[form]``."""
    if form == 0:
        SUMS_0(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 1:
        SUMS_1(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 2:
        SUMS_2(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 3:
        SUMS_3(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)
    elif form == 4:
        SUMS_4(source, row, column, soon, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)


@njit
def tile_at(number, problem):
    """(sample, first row, first column) of a tile's results."""
    n, place = divmod(number, problem.down * problem.across)
    i, j = divmod(place, problem.across)
    return n, i * problem.m, j * problem.m


@njit
def image_at(number, source, problem):
    """(address, first row, first column) of the image under a tile; it may begin before the image's first ones."""
    rows, columns = problem.rows, problem.columns
    n, top, left = tile_at(number, problem)
    top, left = top - rows.pad, left - columns.pad
    return source + 4 * ((n * rows.side + top) * columns.side + left) * problem.inner, top, left


@njit
def results_at(number, target, problem):
    """(address, first row, first column) of a tile's results."""
    rows, columns = problem.rows, problem.columns
    n, top, left = tile_at(number, problem)
    return target + 4 * ((n * rows.out + top) * columns.out + left) * problem.outer, top, left


@njit
def tiles_ahead(side, depth):
    """How many tiles, of so many values in so many channels, to ask in advance."""
    return max(1, ASKED_BYTES // (4 * side * side * depth))


@njit
def transform_block(first, count, source, record, zeros, block):
    """Transform the image under ``count`` tiles from number ``first`` on, all channels."""
    problem = record[0]
    rows, columns, inner, side, plane = problem.rows, problem.columns, problem.inner, problem.side, problem.plane
    ahead = tiles_ahead(side, inner)
    for t in range(count):
        at, top, left = image_at(first + t, source, problem)
        soon, _, _ = image_at(first + t + ahead, source, problem)
        for c in range(0, inner, LANES):
            transform_image(
                side, at + 4 * c, columns.side * inner, inner, soon + 4 * c,
                block + 4 * (t * problem.depth + c), side * plane, plane,
                -top, rows.side - top, -left, columns.side - left, zeros, zeros, inner - c, np.float32(-np.inf),
            )  # fmt: skip
