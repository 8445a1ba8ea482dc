"""Seeded inputs for a case and direction: dense ones to time, designed ones to judge.

Dense random inputs are blind: over many terms even half precision stays inside the bound of a sum. So right and wrong
are judged on *sparse* inputs, about four non-zero products per sum, whose values use every bit of the mantissa, and on
small *integers*, whose sums float32 holds exactly.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import Case, reference
from impls.specs import FORWARD, GRAD_WEIGHTS, PoolSpec, arguments

DENSE = "dense"
SPARSE_FIRST = "sparse_first"
SPARSE_SECOND = "sparse_second"
INTEGERS = "integers"
IMPULSE = "impulse"
PRODUCTS_PER_SUM = 4
EXACT_SUM = 2**24
"""Integers below this are exact in float32, and so is every partial sum of them."""

IMPULSE_SIZE = 2.0**15
"""Of an impulse's values, beside about 1 for all others; up to 1.9 times that, which float16 still holds."""
IMPULSE_AT = 3
"""Its row and its column: near a corner, and where a tile of any Winograd transform reaches beyond its window."""
IMPULSE_VALUES = 4096
"""About so many values of the first operand are not zero, so that its float64 truth costs next to nothing."""
SMALL = 2.0**-16
"""Scale of an impulse's second operand: float16 holds such values with fewer bits, every other format with all."""

Array = npt.NDArray[Any]


def make(case: Case, direction: str, design: str, seed: int) -> tuple[Array | None, ...]:
    """The inputs of a call in the order of the contract, in the spec's dtype; None for an absent bias.

    The same (case, direction, design, seed) gives the same bits on every machine.
    """
    key = zlib.crc32(f"{case}/{direction}/{design}".encode())
    rng = np.random.Generator(np.random.PCG64([seed, key]))
    shapes = [a.shape for a in arguments(case.spec, direction) if not a.is_output]
    if isinstance(case.spec, PoolSpec):
        return _pool_inputs(case, direction, design, rng)
    terms = case.spec.terms_of(direction)
    fill = _integers(terms) if design == INTEGERS else _full_mantissa
    values = [None if shape is None else fill(rng, shape, case.spec.dtype) for shape in shapes]
    sparse = {SPARSE_FIRST: 0, SPARSE_SECOND: 1}.get(design)
    if sparse is not None:
        operand = values[sparse]
        assert operand is not None
        operand[~_chosen(rng, operand.shape, PRODUCTS_PER_SUM / terms)] = 0
    if design == IMPULSE:
        return _impulse(rng, case, direction, values)
    return tuple(values)


def impulse_samples(case: Case, direction: str) -> int:
    """How many samples of an impulse's batch are not zero: the first ones."""
    shape = arguments(case.spec, direction)[0].shape
    assert shape is not None
    return min(case.spec.batch, -(-IMPULSE_VALUES // math.prod(shape[1:])))


def judged(case: Case) -> tuple[str, ...]:
    """The designs that decide whether a result is right. A pooling window has few terms: dense inputs see all."""
    if isinstance(case.spec, PoolSpec):
        return (DENSE, INTEGERS)
    return (SPARSE_FIRST, SPARSE_SECOND, INTEGERS)


def sets(case: Case, direction: str, count: int, seed: int) -> list[tuple[Array | None, ...]]:
    """``count`` different dense inputs, to be used in rotation."""
    return [make(case, direction, DENSE, seed + 1 + i) for i in range(count)]


def _impulse(
    rng: np.random.Generator, case: Case, direction: str, values: list[Array | None]
) -> tuple[Array | None, ...]:
    """One huge place in every image, or row, of the first operand; few and small values in the second.

    Of every factor the last bit is set, so that none is half-way between two numbers of a shorter format. A bias is a
    power of two: no format rounds it.
    """
    first, second = values[:2]
    assert first is not None
    assert second is not None
    samples = impulse_samples(case, direction)
    terms = case.spec.terms_of(direction)
    place = tuple(min(IMPULSE_AT, side - 1) for side in first.shape[1:-1]) or (slice(1),)
    huge = first[(slice(None), *place)]
    huge[...] = np.copysign(IMPULSE_SIZE * (1 + 0.9 * (abs(huge) % 1)), huge)
    for operand in (first, second):
        operand.view(f"u{operand.itemsize}")[...] |= 1
    first[samples:] = 0
    if direction == GRAD_WEIGHTS:  # the second operand is a batch too
        second[samples:] = 0
        terms = -(-terms * samples // case.spec.batch)
    second[~_chosen(rng, second.shape, PRODUCTS_PER_SUM / terms)] = 0
    second *= second.dtype.type(SMALL)
    bias = None if len(values) < 3 or values[2] is None else np.copysign(values[2].dtype.type(SMALL), values[2])
    return (first, second, bias)[: len(values)]


def _pool_inputs(case: Case, direction: str, design: str, rng: np.random.Generator) -> tuple[Array | None, ...]:
    """x, and for the gradient also y = forward(x) and dy. Integers make ties: they try the rule of the first."""
    spec = case.spec
    fill = _integers(spec.terms) if design == INTEGERS else _full_mantissa
    x = fill(rng, spec.x_shape, spec.dtype)
    if direction == FORWARD:
        return (x,)
    y = np.empty(spec.y_shape, spec.dtype)
    reference(case.op).plan(spec, (FORWARD,)).forward(x, y)
    return x, y, fill(rng, spec.y_shape, spec.dtype)


def _full_mantissa(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Standard normal values: no two alike, every mantissa bit in use."""
    return rng.standard_normal(shape, dtype=np.dtype(dtype).type)


def _integers(terms: int) -> Any:
    """A filler of whole numbers so small that sum |x||w| + |b| stays below EXACT_SUM."""
    largest = max(1, min(8, math.isqrt(EXACT_SUM // (terms + 1)) - 1))

    def fill(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
        return rng.integers(-largest, largest + 1, shape, dtype=np.int8).astype(dtype)

    return fill


def _chosen(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> npt.NDArray[np.bool_]:
    """About ``share`` of all places, and at least one."""
    chosen = rng.random(shape, dtype=np.float32) < share
    chosen.flat[rng.integers(chosen.size)] = True
    return chosen
