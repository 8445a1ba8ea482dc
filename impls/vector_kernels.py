"""Loops that do one thing as fast as the processor can: multiply and add in registers, or read and write memory.

They are emitted as LLVM's instructions, because what is measured must be what runs: a compiler that sees a loop in
Python may vectorise it otherwise, merge its passes, or call memcpy. The number of lanes of a vector is that of the
tuple of values that a kernel is given: (0.5,) * 16 computes with vectors of 512 bits, each with its own specialisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba.extending
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from impls.numba_setup import njit, prange

CHAINS = 12
"""Independent sums: over the latency of a multiply-add (4 to 5 cycles) times those begun in a cycle (2), and with the
factor and the addend no more than the 16 vector registers that the oldest instruction sets have."""
UNROLLED = 8
"""Vectors in one step of a pass over memory."""

_I64 = ir.IntType(64)


@numba.extending.intrinsic
def _chains(typing_context, values, steps):
    """CHAINS chains of x = x * factor + (1 - factor), ``steps`` times; the sum of their first lanes.

    All tend to 1 from below, so that no value is denormal or infinite. llvm.fmuladd is one instruction where the
    processor has one, and two where it has none.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        packed, count = arguments
        factor = _vector(builder, packed, signature.args[0].count)
        addend = builder.fsub(_splat(factor.type, 1.0), factor)
        kind = ir.FunctionType(factor.type, [factor.type] * 3)
        operation = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{factor.type.count}f32")
        firsts = [builder.fmul(factor, _splat(factor.type, 1 / (i + 2))) for i in range(CHAINS)]
        sums = _loop(builder, count, firsts, lambda _, xs: [builder.call(operation, [x, factor, addend]) for x in xs])
        total = sums[0]
        for each in sums[1:]:
            total = builder.fadd(total, each)
        return _first(builder, total)

    return types.float32(values, steps), generate


def _pass(reads: bool, writes: bool, past_caches: bool = False) -> Callable[..., Any]:
    """An intrinsic that goes once through ``steps`` * UNROLLED vectors of float32 at two addresses.

    ``past_caches``: stores go to memory without reading the line first; their addresses must be multiples of 64.
    """

    @numba.extending.intrinsic
    def once(typing_context, values, source, target, steps):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            packed, source, target, count = arguments
            given = _vector(builder, packed, signature.args[0].count)
            integers = ir.VectorType(ir.IntType(32), given.type.count)
            origin, goal = (builder.inttoptr(address, given.type.as_pointer()) for address in (source, target))

            def step(index: ir.Value, seen: list[ir.Value]) -> list[ir.Value]:
                base = builder.mul(index, _I64(UNROLLED))
                after = []
                for i, before in enumerate(seen):
                    place = builder.add(base, _I64(i))
                    value = builder.load(builder.gep(origin, [place]), align=4) if reads else given
                    if writes:
                        store = builder.store(value, builder.gep(goal, [place]), align=64 if past_caches else 4)
                        if past_caches:
                            store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
                        after.append(before)
                    else:
                        after.append(builder.xor(before, builder.bitcast(value, integers)))
                return after

            seen = _loop(builder, count, [ir.Constant(integers, None)] * UNROLLED, step)
            total = seen[0]
            for each in seen[1:]:
                total = builder.xor(total, each)
            return _first(builder, builder.bitcast(total, given.type))

        return types.float32(values, source, target, steps), generate

    return once


_read, _write, _copy = _pass(True, False), _pass(False, True), _pass(True, True)
_copy_past_caches = _pass(True, True, past_caches=True)


@njit(parallel=True)
def multiply_add(values, steps, results):
    """As many threads as there are results: CHAINS * steps multiply-adds of whole vectors each."""
    for thread in prange(results.size):
        results[thread] = _chains(values, steps)


@njit(parallel=True)
def read(values, source, target, passes, results):
    """Read each thread's row of the source so many times."""
    steps = source.shape[1] // (len(values) * UNROLLED)
    for thread in prange(results.size):
        seen = np.float32(0)
        for _ in range(passes):
            seen += _read(values, source[thread].ctypes.data, target[thread].ctypes.data, steps)
        results[thread] = seen


@njit(parallel=True)
def write(values, source, target, passes, results):
    """Write each thread's row of the target so many times."""
    steps = target.shape[1] // (len(values) * UNROLLED)
    for thread in prange(results.size):
        seen = np.float32(0)
        for _ in range(passes):
            seen += _write(values, source[thread].ctypes.data, target[thread].ctypes.data, steps)
        results[thread] = seen


@njit(parallel=True)
def copy(values, source, target, passes, results):
    """Copy each thread's row of the source to the target so many times."""
    steps = source.shape[1] // (len(values) * UNROLLED)
    for thread in prange(results.size):
        seen = np.float32(0)
        for _ in range(passes):
            seen += _copy(values, source[thread].ctypes.data, target[thread].ctypes.data, steps)
        results[thread] = seen


@njit(parallel=True)
def copy_past_caches(values, source, target, passes, results):
    """Copy each thread's row so many times, the stores past the caches; every row begins on a multiple of 64 bytes."""
    steps = source.shape[1] // (len(values) * UNROLLED)
    for thread in prange(results.size):
        seen = np.float32(0)
        for _ in range(passes):
            seen += _copy_past_caches(values, source[thread].ctypes.data, target[thread].ctypes.data, steps)
        results[thread] = seen


@njit
def nothing():
    """What a compiled call costs by itself."""


def _loop(
    builder: ir.IRBuilder,
    count: ir.Value,
    firsts: list[ir.Value],
    step: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """``count`` times values = step(index, values), at least once; the values in the end."""
    before = builder.block
    body, after = (builder.append_basic_block(name) for name in ("body", "after"))
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(_I64)
    values = [builder.phi(first.type) for first in firsts]
    results = step(index, values)
    following = builder.add(index, _I64(1))
    for phi, first, result in zip([index, *values], [_I64(0), *firsts], [following, *results], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(result, body)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    return results


def _vector(builder: ir.IRBuilder, packed: ir.Value, lanes: int) -> ir.Value:
    """The values of a tuple as one vector."""
    vector = ir.Constant(ir.VectorType(ir.FloatType(), lanes), ir.Undefined)
    for lane in range(lanes):
        vector = builder.insert_element(vector, builder.extract_value(packed, lane), ir.IntType(32)(lane))
    return vector


def _splat(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _first(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    return builder.extract_element(vector, ir.IntType(32)(0))
