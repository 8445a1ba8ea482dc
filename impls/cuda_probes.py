"""Kernels that only load a CUDA device: its multiply-adds, its memories, its launches. bench.cuda_ceilings times them.

Memory is gone through in pieces of SPAN values by as many blocks as the device holds at a time, and from one pass to
the next every block takes another one's pieces: those it read last are in the cache of its own multiprocessor, which no
launch leaves to the next, so that what came from there would be no rate of the L2 cache.
"""

from __future__ import annotations

import numpy as np

from impls.cuda_setup import BLOCK, VECTOR, ZERO, cuda, device_function, kernel

CHAINS = 16
"""Independent multiply-adds in a thread: more than the latency of one in cycles, over the schedulers' issue rate."""
STEPS = 16
"""Of every chain in each turn of the loop, whose counting then takes two instructions in a hundred."""
FACTOR, ADDEND = np.float32(0.9), np.float32(0.1)

LOADS = 8
"""Of a thread, none of which waits for another: 1024 threads of a multiprocessor have 32 KB on their way."""
SPAN = LOADS * BLOCK


@device_function
def _four_steps(x):
    """Written out: of a loop within a loop the compiler unrolls neither."""
    x = x * FACTOR + ADDEND
    x = x * FACTOR + ADDEND
    x = x * FACTOR + ADDEND
    return x * FACTOR + ADDEND


@device_function
def _stepped(x):
    """STEPS multiply-adds, each of which waits for the last."""
    return _four_steps(_four_steps(_four_steps(_four_steps(x))))


@kernel(VECTOR, "int32", threads=256)
def multiply_add(values, turns):
    """CHAINS chains of x = x * factor + addend from ``values`` (CHAINS,), which stay between 0 and 1.

    The last comparison never holds, and keeps the chains from being left out.
    """
    a, b, c, d = values[0], values[1], values[2], values[3]
    e, f, g, h = values[4], values[5], values[6], values[7]
    i, j, k, m = values[8], values[9], values[10], values[11]
    n, o, p, q = values[12], values[13], values[14], values[15]
    while turns > 0:
        a, b, c, d = _stepped(a), _stepped(b), _stepped(c), _stepped(d)
        e, f, g, h = _stepped(e), _stepped(f), _stepped(g), _stepped(h)
        i, j, k, m = _stepped(i), _stepped(j), _stepped(k), _stepped(m)
        n, o, p, q = _stepped(n), _stepped(o), _stepped(p), _stepped(q)
        turns -= 1
    total = a + b + c + d + e + f + g + h + i + j + k + m + n + o + p + q
    if total < ZERO:
        values[0] = total


@kernel(threads=32)
def nothing():
    """What a launch costs by itself."""


@device_function
def _at(values, index):
    """A value; unsigned, since numba asks a signed index whether it is negative."""
    return values[np.uint64(index)]


@device_function
def _set(values, index, value):
    values[np.uint64(index)] = value


@device_function
def _next(place, shift):
    """Whose pieces come after those of ``place``; shift < blocks."""
    place += shift
    return place - cuda.gridDim.x if place >= cuda.gridDim.x else place


@kernel(VECTOR, "int32", "int32")
def read(values, passes, shift):
    """Add up ``values``, all above 0 and a multiple of SPAN * blocks many: the sum is never below it, nor written."""
    place, total = cuda.blockIdx.x, ZERO
    for _ in range(passes):
        i = place * SPAN + cuda.threadIdx.x
        while i < values.size:
            first = _at(values, i) + _at(values, i + BLOCK)
            second = _at(values, i + 2 * BLOCK) + _at(values, i + 3 * BLOCK)
            third = _at(values, i + 4 * BLOCK) + _at(values, i + 5 * BLOCK)
            fourth = _at(values, i + 6 * BLOCK) + _at(values, i + 7 * BLOCK)
            total += (first + second) + (third + fourth)
            i += SPAN * cuda.gridDim.x
        place = _next(place, shift)
    if total < ZERO:
        values[0] = total


@kernel(VECTOR, "float32", "int32", "int32")
def write(values, value, passes, shift):
    """Set all of ``values``, a multiple of SPAN * blocks many."""
    place = cuda.blockIdx.x
    for _ in range(passes):
        i = place * SPAN + cuda.threadIdx.x
        while i < values.size:
            for part in range(LOADS):
                _set(values, i + part * BLOCK, value)
            i += SPAN * cuda.gridDim.x
        place = _next(place, shift)


@kernel(VECTOR, VECTOR, "int32", "int32")
def copy(source, target, passes, shift):
    """target = source, both a multiple of SPAN * blocks many. Nothing is written before LOADS values were read."""
    place = cuda.blockIdx.x
    for _ in range(passes):
        i = place * SPAN + cuda.threadIdx.x
        while i < source.size:
            a, b, c, d = _at(source, i), _at(source, i + BLOCK), _at(source, i + 2 * BLOCK), _at(source, i + 3 * BLOCK)
            j = i + 4 * BLOCK
            e, f, g, h = _at(source, j), _at(source, j + BLOCK), _at(source, j + 2 * BLOCK), _at(source, j + 3 * BLOCK)
            _set(target, i, a)
            _set(target, i + BLOCK, b)
            _set(target, i + 2 * BLOCK, c)
            _set(target, i + 3 * BLOCK, d)
            _set(target, j, e)
            _set(target, j + BLOCK, f)
            _set(target, j + 2 * BLOCK, g)
            _set(target, j + 3 * BLOCK, h)
            i += SPAN * cuda.gridDim.x
        place = _next(place, shift)
