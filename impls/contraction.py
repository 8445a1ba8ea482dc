"""The micro-kernel of our compiled layers: a tile of sums that stays in vector registers while factors stream past.

A tile is ``rows * columns`` results by ``vectors`` vectors of neighbouring outputs (filters, units):

    out[q, p, :] = start[q, p, :] + sum over i, j, k of  a[q, p; i, j, k] * b[i, j, k, :]

One scalar of ``a`` is broadcast, one vector of ``b`` loaded. Along ``p`` the factors ``a`` lie side by side, so that
all of their addresses are constants from one pointer for every ``q``; all other strides are run-time numbers. So are
the lengths of the three sums: taps and channels of a convolution, pixels of its weight gradient, the one sum of a
matrix product. Shapes never ask for another compilation; tiles of other sizes do, and are few.

Emitted as LLVM IR, since LLVM's own vectoriser finds no such tile: multiply-adds of exactly the host's width, fused
where the processor has such instructions; a call of fmaf for each lane where it has none would be no tile.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from impls.numba_setup import njit

FLOAT, INDEX = ir.FloatType(), ir.IntType(64)
ROWS_PER_POINTER = 3
"""Rows of a tile that share a pointer, at 0, 1 and 2 strides from it: what an address of x86 adds and scales itself."""
MOST_POINTERS = 8
"""Rows for each of which there is a general register: LLVM gives them a pointer each, and that is as good."""


class Tile(NamedTuple):
    """The compile-time shape of a tile: rows * columns results of vectors * lanes outputs each."""

    rows: int
    columns: int
    vectors: int
    lanes: int
    asks: int = 0
    """Vectors of b that each step of the sums asks memory for, because a later tile will need them."""


@cache
def contraction(tile: Tile):
    """The compiled micro-kernel of a tile, to be called from compiled loops:

    ``kernel(a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2, start, start_row, start_column, out, out_row,
    out_column, last, floor, ahead)``

    ``a``, ``b``, ``start``, ``out`` are addresses; strides are in float32 values, of the tile's rows and columns and of
    the three sums, whose lengths ``n0, n1, n2`` are at least 1. ``start`` may be ``out`` (add to it) or a row of biases
    (strides 0). Of the last vector only ``last`` lanes are read or written. Results below ``floor`` become 0: 0 is a
    ReLU, minus infinity nothing; NaN stays. What a tile that ``asks`` asks for lies ``ahead`` values beyond b.
    """

    @intrinsic
    def emit(
        typing_context, a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
        start, start_row, start_column, out, out_row, out_column, last, floor, ahead,
    ):  # fmt: skip
        def generate(context, builder, signature, arguments):
            builder.function.attributes.add("noinline")  # its registers are its own; compiled once for all calls
            emit_tile(builder, tile, arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 19, types.float32, types.int64), generate

    @njit(cache=False)
    def kernel(
        a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
        start, start_row, start_column, out, out_row, out_column, last, floor, ahead,
    ):  # fmt: skip
        emit(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, ahead,
        )  # fmt: skip

    return kernel


def emit_tile(builder, tile, args):
    """The body of ``contraction``, as LLVM IR: load the start, ask for the output, sum, finish and store."""
    (a, a_row, *a_steps, b, b0, b1, b2, n0, n1, n2, start, start_row, start_column, out, out_row, out_column) = args[
        :18
    ]
    last, floor, ahead = args[18:]
    vector = ir.VectorType(FLOAT, tile.lanes)
    emitter = Emitter(builder, tile, vector, last)
    places = [(q, p, j) for q in range(tile.rows) for p in range(tile.columns) for j in range(tile.vectors)]
    sums = [emitter.load(start, start_row, start_column, *place) for place in places]

    def innermost(sums, pointers):
        b_at, *a_rows = pointers
        factors = [emitter.vector_at(b_at, j) for j in range(tile.vectors)]
        for j in range(tile.asks):
            prefetch(builder, emitter.moved(emitter.moved(b_at, ahead), INDEX(j * tile.lanes)))
        found = []
        for q in range(tile.rows):
            for p in range(tile.columns):
                group, k = divmod(q, ROWS_PER_POINTER)
                row = emitter.moved(a_rows[group], multiples[k])
                scalar = builder.load(builder.gep(row, [INDEX(p)], source_etype=FLOAT), typ=FLOAT)
                spread = emitter.spread(scalar)
                found += [emitter.multiply_add(spread, f, sums[len(found) + j]) for j, f in enumerate(factors)]
        return found

    multiples = [builder.mul(a_row, INDEX(k)) for k in range(ROWS_PER_POINTER)]
    pointers = [emitter.pointer(b)] + [
        emitter.moved(emitter.pointer(a), builder.mul(a_row, INDEX(q))) for q in range(0, tile.rows, ROWS_PER_POINTER)
    ]
    steps = list(zip((b0, b1, b2), a_steps, strict=True))

    def level(depth, sums, pointers):
        if depth == 3:
            return innermost(sums, pointers)
        b_step, a_step = steps[depth]
        return emitter.loop((n0, n1, n2)[depth], sums, pointers, (b_step, a_step), lambda s, p: level(depth + 1, s, p))

    for place in places:
        emitter.prefetch(out, out_row, out_column, *place)
    sums = level(0, sums, pointers)
    for place, value in zip(places, sums, strict=True):
        emitter.store(emitter.above(value, floor), out, out_row, out_column, *place)


def prefetch(builder, pointer, to_write=False):
    """Emit a request for the line at a pointer, into the first-level cache; there need not be any memory."""
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
    ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(ask, [pointer, number(int(to_write)), number(3), number(1)])


class Emitter:
    """The few instructions that a tile is made of."""

    def __init__(self, builder, tile, vector, last):
        self.builder, self.tile, self.vector = builder, tile, vector
        lanes = ir.Constant(ir.VectorType(INDEX, tile.lanes), list(range(tile.lanes)))
        self.mask = builder.icmp_signed("<", lanes, self._spread(last, INDEX))
        self.bits = ir.VectorType(ir.IntType(1), tile.lanes)

    def pointer(self, address):
        return self.builder.inttoptr(address, FLOAT.as_pointer())

    def moved(self, pointer, count):
        return self.builder.gep(pointer, [count], source_etype=FLOAT)

    def opaque(self, pointer):
        """The same pointer, of which LLVM does not know where it comes from.

        Otherwise it gives a pointer to each row of a tall tile, more than there are registers, and loads most of them
        from the stack in every step.
        """
        kind = ir.FunctionType(pointer.type, [pointer.type])
        return self.builder.asm(kind, "", "=r,0", [pointer], side_effect=False)

    def spread(self, scalar):
        return self._spread(scalar, FLOAT)

    def _spread(self, scalar, kind):
        vector = ir.VectorType(kind, self.tile.lanes)
        undefined = ir.Constant(vector, ir.Undefined)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.tile.lanes), [0] * self.tile.lanes)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(first, undefined, zeros)

    def multiply_add(self, a, b, c):
        """a * b + c, rounded once where the processor can."""
        return self.builder.call(self._intrinsic("llvm.fmuladd.v{}f32", self.vector, [self.vector] * 3), [a, b, c])

    def above(self, value, floor):
        below = self.builder.fcmp_ordered("<", value, self.spread(floor))
        return self.builder.select(below, ir.Constant(self.vector, [0.0] * self.tile.lanes), value)

    def vector_at(self, pointer, j):
        """Vector j from a pointer; of the last one the lanes that there are, the others zero."""
        place = self.moved(pointer, INDEX(j * self.tile.lanes))
        if j < self.tile.vectors - 1:
            found = self.builder.load(place, typ=self.vector)
            found.align = 4
            return found
        return self.masked_load(place, self.mask)

    def masked_load(self, pointer, mask):
        """The lanes of the mask from a pointer on, the others zero; nothing else is touched."""
        kinds = [pointer.type, ir.IntType(32), self.bits, self.vector]
        load = self._intrinsic("llvm.masked.load.v{}f32.p0", self.vector, kinds)
        zeros = ir.Constant(self.vector, [0.0] * self.tile.lanes)
        return self.builder.call(load, [pointer, ir.Constant(ir.IntType(32), 4), mask, zeros])

    def load(self, address, row, column, q, p, j):
        return self.vector_at(self._place(address, row, column, q, p), j)

    def store(self, value, address, row, column, q, p, j):
        place = self.moved(self._place(address, row, column, q, p), INDEX(j * self.tile.lanes))
        if j < self.tile.vectors - 1:
            self.builder.store(value, self.builder.bitcast(place, self.vector.as_pointer())).align = 4
            return
        self.masked_store(value, place, self.mask)

    def masked_store(self, value, pointer, mask):
        """Write the lanes of the mask."""
        kinds = [self.vector, pointer.type, ir.IntType(32), self.bits]
        store = self._intrinsic("llvm.masked.store.v{}f32.p0", ir.VoidType(), kinds)
        self.builder.call(store, [value, pointer, ir.Constant(ir.IntType(32), 4), mask])

    def prefetch(self, address, row, column, q, p, j):
        """Ask for the line that a result will be written to while its sum is formed: a store would wait for it."""
        place = self.moved(self._place(address, row, column, q, p), INDEX(j * self.tile.lanes))
        prefetch(self.builder, place, to_write=True)

    def _place(self, address, row, column, q, p):
        b = self.builder
        return self.moved(self.pointer(address), b.add(b.mul(row, INDEX(q)), b.mul(column, INDEX(p))))

    def _intrinsic(self, name, result, arguments):
        kind = ir.FunctionType(result, arguments)
        return cgutils.get_or_insert_function(self.builder.module, kind, name.format(self.tile.lanes))

    def loop(self, count, sums, pointers, steps, body):
        """``count`` times, all in registers; the pointer of b moves by steps[0], those of a by steps[1]."""
        builder = self.builder
        before, head = builder.block, builder.append_basic_block("sum")
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(INDEX)
        now = [builder.phi(value.type) for value in sums]
        at = [builder.phi(pointer.type) for pointer in pointers]
        here = [at[0], *map(self.opaque, at[1:])] if self.tile.rows > MOST_POINTERS else at
        found = body(now, here)
        moved = [self.moved(p, steps[0] if k == 0 else steps[1]) for k, p in enumerate(here)]
        following = builder.add(index, INDEX(1))
        end, after = builder.block, builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("<", following, count), head, after)
        for phi, first, next_ in zip(
            (index, *now, *at), (INDEX(0), *sums, *pointers), (following, *found, *moved), strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(next_, end)
        builder.position_at_end(after)
        return found
