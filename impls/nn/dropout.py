"""Dropout: in training each value is zero with probability ``rate``, else divided by 1 - rate.

Whether a value is dropped is a function of (seed, its number): nothing is stored, and the backward pass asks again.
The function is splitmix64's mixing of a counter (G. Steele, D. Lea, C. Flood, OOPSLA 2014). Masks differ between the
samples of a batch, as Keras' do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from impls.numba_setup import njit, prange
from impls.parts import cut, parts_for, shared

Array = npt.NDArray[Any]

SERIAL_BELOW = 1 << 16
"""Values: fewer take less time than waking a second thread."""

_STRIDE = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S40 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(40)
DRAWS = 1 << 24
"""Different draws: as many as float32 tells apart between one half and one."""


def drop(values: Array, rate: float, seed: int, out: Array) -> None:
    """out = values with dropout; the same seed drops the same values, also in a gradient. ``out`` may be ``values``.

    Raises ValueError where ``out`` is not C-contiguous: it is filled in the order of its memory.
    """
    if not out.flags.c_contiguous:
        raise ValueError("dropout's out is not C-contiguous; copy from a numpy.empty of its shape")
    threshold = np.uint64(round(rate * DRAWS))
    parts = parts_for(values.size, SERIAL_BELOW)
    _drop(values.reshape(-1), threshold, values.dtype.type(1 / (1 - rate)), np.uint64(seed), out.reshape(-1), parts)


def seed_of(network_seed: int, layer: int, step: int) -> int:
    """A seed of its own for every layer and step of a training run."""
    return int(np.random.SeedSequence((network_seed, layer, step)).generate_state(1, np.uint64)[0])


@njit(inline="always")
def _draw(seed, i):
    """24 random bits for the i-th value."""
    z = seed + np.uint64(i + 1) * _STRIDE
    z = (z ^ (z >> _S30)) * _FIRST
    z = (z ^ (z >> _S27)) * _SECOND
    return (z ^ (z >> _S31)) >> _S40


@shared
def _drop(all_values, threshold, scale, seed, all_out, parts):
    for part in prange(parts):
        first = len(all_values) * part // parts
        values, out = cut(all_values, part, parts), cut(all_out, part, parts)
        for i in range(len(values)):
            out[i] = values[i] * scale if _draw(seed, first + i) >= threshold else out.dtype.type(0)
