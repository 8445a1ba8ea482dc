"""Vectors of float32 in registers, as values of compiled code: loaded, compared, selected, stored.

LLVM's vectoriser turns a loop over channels into vectors only where it is long: eight channels, or the last seven of
twenty-three, go through it one by one. Loops written with these take LANES values at a time however many there are:
a mask leaves the lanes beyond out, of loads and of stores. LLVM cuts a vector to the width that the processor has.

Arrays are flat float32, positions count values and are not checked.

What a loop will need later is asked for: processors guess it from regular steps, but not all do, least of all virtual
ones. Where they do not, pooling that asks one row of windows ahead takes a fifth to two thirds of the time.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from impls.contraction import prefetch
from impls.numba_setup import njit

LANES = 16

_VALUES = ir.VectorType(ir.FloatType(), LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)
_NUMBERS = ir.VectorType(ir.IntType(32), LANES)


class Register(types.Type):
    """The type of a vector, or of a mask, in compiled code."""

    def __init__(self, name: str, llvm_type: ir.VectorType) -> None:
        super().__init__(name)
        self.llvm_type = llvm_type


@register_model(Register)
class _RegisterModel(models.PrimitiveModel):
    def __init__(self, manager, register):
        super().__init__(manager, register, register.llvm_type)


VECTOR = Register("Vector", _VALUES)
MASK = Register("Mask", _BITS)


@intrinsic
def first_lanes(context, count):
    """The mask of so many lanes from the first on: none below 1, all from LANES on."""

    def emit(context, builder, signature, arguments):
        inside = _spread(builder, builder.trunc(_clamp(builder, arguments[0]), ir.IntType(32)), _NUMBERS)
        return builder.icmp_signed("<", ir.Constant(_NUMBERS, list(range(LANES))), inside)

    return MASK(types.int64), emit


@intrinsic
def load(context, values, position, mask):
    """The masked ones of LANES values from a position on; 0 elsewhere."""

    def emit(context, builder, signature, arguments):
        array, position, mask = arguments
        pointer = _pointer(context, builder, signature.args[0], array, position)
        kind = ir.FunctionType(_VALUES, (pointer.type, ir.IntType(32), _BITS, _VALUES))
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0")
        return builder.call(function, (pointer, ir.IntType(32)(4), mask, ir.Constant(_VALUES, [0.0] * LANES)))

    return VECTOR(values, types.int64, MASK), emit


@intrinsic
def store(context, vector, values, position, mask):
    """Write the masked lanes to a position and those after it."""

    def emit(context, builder, signature, arguments):
        vector, array, position, mask = arguments
        pointer = _pointer(context, builder, signature.args[1], array, position)
        kind = ir.FunctionType(ir.VoidType(), (_VALUES, pointer.type, ir.IntType(32), _BITS))
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.v{LANES}f32.p0")
        builder.call(function, (vector, pointer, ir.IntType(32)(4), mask))
        return context.get_dummy_value()

    return types.void(VECTOR, values, types.int64, MASK), emit


@intrinsic
def store_past_caches(context, vector, values, position, half):
    """Write all lanes, or the first ``half`` of them, to memory without reading the line first.

    Position and address must be multiples of what is written. Other threads see it after ``fence``.
    """

    def emit(context, builder, signature, arguments):
        vector, array, position, half = arguments
        pointer = _pointer(context, builder, signature.args[1], array, position)
        with builder.if_else(half) as (first_half, whole):
            with first_half:
                lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES // 2), list(range(LANES // 2)))
                _past_caches(builder, builder.shuffle_vector(vector, vector, lanes), pointer)
            with whole:
                _past_caches(builder, vector, pointer)
        return context.get_dummy_value()

    return types.void(VECTOR, values, types.int64, types.boolean), emit


@intrinsic
def fence(context):
    """What was written before is seen before what is written after."""

    def emit(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def ask_to_read(context, values, position):
    """Have the line of a position fetched, because it will be read soon; nothing happens where there is none."""
    return types.void(values, types.int64), lambda *emitted: _ask(*emitted, to_write=False)


@intrinsic
def ask_to_write(context, values, position):
    """Have the line of a position fetched to be written: a store would wait for it."""
    return types.void(values, types.int64), lambda *emitted: _ask(*emitted, to_write=True)


@intrinsic
def spread(context, number):
    """A vector of one number."""
    return VECTOR(types.float32), lambda context, builder, signature, arguments: _spread(builder, *arguments, _VALUES)


@intrinsic
def add(context, a, b):
    """a + b."""
    return VECTOR(VECTOR, VECTOR), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def divide(context, a, b):
    """a / b."""
    return VECTOR(VECTOR, VECTOR), lambda context, builder, signature, arguments: builder.fdiv(*arguments)


@intrinsic
def above(context, a, b):
    """Where a > b."""
    return MASK(VECTOR, VECTOR), lambda context, builder, signature, arguments: builder.fcmp_ordered(">", *arguments)


@intrinsic
def equal(context, a, b):
    """Where a == b; never where one is NaN."""
    return MASK(VECTOR, VECTOR), lambda context, builder, signature, arguments: builder.fcmp_ordered("==", *arguments)


@intrinsic
def is_nan(context, a):
    """Where a is NaN."""
    return MASK(VECTOR), lambda context, builder, signature, arguments: builder.fcmp_unordered("uno", *arguments * 2)


@intrinsic
def either(context, a, b):
    """Where one mask or the other is set."""
    return MASK(MASK, MASK), lambda context, builder, signature, arguments: builder.or_(*arguments)


@intrinsic
def some(context, mask):
    """Whether any lane is set."""

    def emit(context, builder, signature, arguments):
        bits = ir.IntType(LANES)
        return builder.icmp_unsigned("!=", builder.bitcast(arguments[0], bits), bits(0))

    return types.boolean(MASK), emit


@intrinsic
def select(context, mask, a, b):
    """a where the mask is set, b elsewhere."""
    return VECTOR(MASK, VECTOR, VECTOR), lambda context, builder, signature, arguments: builder.select(*arguments)


@njit
def clear(values, start, stop):
    """Zero the values from start to before stop."""
    for position in range(start, stop, LANES):
        store(spread(np.float32(0)), values, position, first_lanes(stop - position))


@njit
def under(window, pool, step, before, side):
    """(first, past the last) of an axis' pixels that are under a window."""
    first = window * step - before
    return max(first, 0), min(first + pool, side)


def _clamp(builder, count):
    """At most LANES, so that it fits 32 bits; a negative one stays so."""
    most = ir.IntType(64)(LANES)
    least = ir.IntType(64)(0)
    count = builder.select(builder.icmp_signed("<", count, most), count, most)
    return builder.select(builder.icmp_signed(">", count, least), count, least)


def _spread(builder, number, llvm_type):
    undefined = ir.Constant(llvm_type, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.IntType(32)(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_NUMBERS, [0] * LANES))


def _past_caches(builder, vector, pointer):
    bytes_ = vector.type.count * 4
    written = builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()), align=bytes_)
    written.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))


def _ask(context, builder, signature, arguments, to_write):
    prefetch(builder, _pointer(context, builder, signature.args[0], *arguments), to_write)
    return context.get_dummy_value()


def _pointer(context, builder, array_type, array, position):
    """The address of the value at a position of a flat array."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [position])
