"""Squares of float32 values transposed in vector registers: what lies along rows, side by side for the micro-kernel.

A square has as many rows and columns as the host's widest vector has lanes. It takes log2(lanes) rounds: each swaps
the off-diagonal quarters of all squares of half the size, two vectors at a time. Emitted as LLVM IR, since LLVM makes
single loads and stores of the same loops.
"""

from __future__ import annotations

from functools import cache

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from impls.contraction import FLOAT, INDEX, prefetch
from impls.numba_setup import njit

SHORT = ir.IntType(32)
AHEAD = 4
"""Squares to the right of the one transposed: asked for meanwhile, since rows are read in pieces too short for a
processor to foresee the next."""


@cache
def transposition(lanes: int):
    """The compiled kernel, to be called from compiled loops: ``kernel(source, row, rows, columns, out, out_row)``

    ``out[c, r] = source[r, c]`` for r below ``rows`` and ``lanes``, c below ``columns`` and ``lanes``, a power of 2.
    ``source``, ``out`` are addresses; ``row``, ``out_row`` the strides of their rows in float32 values; ``rows``,
    ``columns`` at least 1. Nothing else is read. All ``lanes`` rows and columns of ``out`` are written: rows beyond
    hold zeros, columns beyond repeat the last one.
    """

    @intrinsic
    def emit(typing_context, source, row, rows, columns, out, out_row):
        signature = types.void(*[types.int64] * 6)
        return signature, lambda context, builder, sig, args: _emit(context, builder, lanes, *args)

    @njit(cache=False)
    def kernel(source, row, rows, columns, out, out_row):
        emit(source, row, rows, columns, out, out_row)

    return kernel


def _emit(context, builder, lanes, source, row, rows, columns, out, out_row):
    """Load the rows, swap quarters of squares of lanes, lanes / 2, ... 2 values, store."""
    vector, bits = ir.VectorType(FLOAT, lanes), ir.VectorType(ir.IntType(1), lanes)
    zeros = ir.Constant(vector, [0.0] * lanes)

    def place(address, step, index):
        pointer = builder.inttoptr(address, FLOAT.as_pointer())
        return builder.gep(pointer, [builder.mul(step, index)], source_etype=FLOAT)

    def below(count):
        numbers = ir.VectorType(INDEX, lanes)
        first = builder.insert_element(ir.Constant(numbers, ir.Undefined), count, SHORT(0))
        spread = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(SHORT, lanes), [0] * lanes))
        return builder.icmp_signed("<", ir.Constant(numbers, list(range(lanes))), spread)

    def row_of_source(number):
        last = builder.sub(rows, INDEX(1))
        index = builder.select(builder.icmp_signed("<", INDEX(number), rows), INDEX(number), last)
        return builder.call(load, [place(source, row, index), SHORT(4), mask, zeros])

    def mixed(a, b, half, which):
        """Of each pair of neighbouring runs of ``half`` lanes: the first runs of a and b, or the second ones."""
        lane_of = [(i if i & half else i + half) if which else (i - half if i & half else i) for i in range(lanes)]
        order = [lane + lanes * bool(i & half) for i, lane in enumerate(lane_of)]
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(SHORT, lanes), order))

    kind = ir.FunctionType(vector, [FLOAT.as_pointer(), SHORT, bits, vector])
    load = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{lanes}f32.p0")
    mask = below(columns)
    for number in range(lanes):
        soon = builder.gep(place(source, row, INDEX(number)), [INDEX(AHEAD * lanes)], source_etype=FLOAT)
        prefetch(builder, soon, to_write=False)
    values = [row_of_source(number) for number in range(lanes)]
    half = lanes // 2
    while half:
        for i in range(lanes):
            if not i & half:
                a, b = values[i], values[i + half]
                values[i], values[i + half] = mixed(a, b, half, 0), mixed(a, b, half, 1)
        half //= 2
    for number, value in enumerate(values):
        at = builder.bitcast(place(out, out_row, INDEX(number)), vector.as_pointer())
        builder.store(value, at).align = 4
    return context.get_dummy_value()
