"""Winograd's transforms as straight-line vector code: Y = M X M^T, each element a vector of neighbouring channels.

Emitted as LLVM IR from the exact matrices: sums that two rows of M, or two columns, have in common are computed once.
A tile may lie partly outside the image: rows that do not exist are read from, or written to, a spare row, columns are
masked, so that tiles on the border are as fast as those inside. Pieces of rows are too short for a processor to foresee
the next: each transform fetches what it will read, or write, in the tile to the right. That halved the time of a layer.
"""

from __future__ import annotations

from functools import cache

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from impls.contraction import FLOAT, INDEX, Emitter, Tile
from impls.numba_setup import njit
from impls.processor import host
from impls.winograd import matrices

LANES = host().lanes
FORMS = ((2, 3), (4, 3), (2, 5), (4, 5), (2, 7))
"""(m, r) of every F(m, r) that is compiled."""
SHORT = ir.IntType(32)
READ, WRITTEN, NEITHER = "read", "written", "neither"
"""Which side of a transform may lie beyond a border."""


@cache
def of_image(n: int):
    """B^T d B for n x n values, which may lie partly outside the image: what is beyond is zero."""
    return _transform(matrices(2, n - 1).image, READ)


@cache
def of_kernel(m: int, r: int):
    """G g G^T."""
    return _transform(matrices(m, r).kernel, NEITHER)


@cache
def of_results(m: int, r: int):
    """A^T p A + bias, and the floor; results outside the image are left out."""
    return _transform(matrices(m, r).results, WRITTEN)


def _transform(matrix, bounded):
    """The compiled kernel, to be called from compiled loops:

    ``kernel(source, row, column, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)``

    ``source``, ``out``, ``spare``, ``bias`` are addresses; strides are in float32 values. On the bounded side only
    rows from ``top`` to before ``bottom`` and columns from ``left`` to before ``right`` exist; others are read from
    ``spare``, a row of zeros, or written to it, and columns are left out. Of every vector of the source, or of what
    results are written to, only ``last`` lanes are touched.
    ``bias`` and ``floor`` are those of results alone: below the floor they become 0; NaN stays.
    """

    @intrinsic
    def emit(
        context, source, row, column, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor
    ):  # fmt: skip
        signature = types.void(*[types.int64] * 13, types.float32)
        return signature, lambda context, builder, sig, args: _emit(context, builder, matrix, bounded, args)

    @njit(cache=False)
    def kernel(source, row, column, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor):
        emit(source, row, column, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor)

    return kernel


def _emit(context, builder, matrix, bounded, args):
    """Transform all columns, then all rows of what that gives."""
    source, row, column, out, out_row, out_column, top, bottom, left, right, spare, bias, last, floor = args
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

    def fetch(rows, step, columns, to_write):
        """Into the first-level cache, to read or to write; there need not be anything."""
        kind = ir.FunctionType(ir.VoidType(), [FLOAT.as_pointer(), *[SHORT] * 3])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for place in (emitter.moved(row, builder.mul(step, INDEX(j))) for row in rows for j in columns):
            builder.call(function, [place, SHORT(to_write), SHORT(3), SHORT(1)])

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
        fetch(origin, column, range(size, 2 * size - 2), to_write=0)
    elif bounded == WRITTEN:
        fetch(goal, out_column, range(results, 2 * results), to_write=1)
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
