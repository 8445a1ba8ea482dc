"""Arrays of one call in one file, each between guard bands; several processes map the same file.

Inputs are written once and mapped by every worker copy-on-write: a kernel that writes to its inputs changes its own
copy, and the comparison with the file shows it. Results go into a file of their own, mapped shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.contract import ALIGNMENT, aligned_empty
from impls.specs import ITEMSIZE, Shape, Spec, arguments

Array = npt.NDArray[Any]

GUARD_BYTES = 4096
"""A page before the first array and one after each: an overrun by any block of a kernel lands in it."""
GUARD_VALUE = 0xA5


@dataclass(frozen=True)
class Arena:
    """A block of bytes with arrays in it; None stands for an absent array."""

    block: Array
    arrays: tuple[Array | None, ...]

    def guards_intact(self) -> bool:
        """Whether every byte outside the arrays still has its value."""
        position = 0
        for array in self.arrays:
            if array is None:
                continue
            start = array.ctypes.data - self.block.ctypes.data
            if not _is_guard(self.block[position:start]):
                return False
            position = start + array.nbytes
        return _is_guard(self.block[position:])

    def poison(self) -> None:
        """Fill the arrays with NaN, so that what a call leaves out is seen."""
        for array in self.arrays:
            if array is not None:
                array.fill(np.nan)


def shapes_of(spec: Spec, direction: str, *, outputs: bool) -> tuple[Shape | None, ...]:
    """Shapes of a direction's inputs, or of its outputs."""
    return tuple(a.shape for a in arguments(spec, direction) if a.is_output == outputs)


def size_of(shapes: Sequence[Shape | None], dtype: str) -> int:
    """Bytes of an arena with these arrays."""
    return _layout(shapes, dtype)[1]


def allocate(shapes: Sequence[Shape | None], dtype: str) -> Arena:
    """A new arena in memory, guards set."""
    size = size_of(shapes, dtype)
    return _arena(aligned_empty(size), shapes, dtype, fresh=True)


def create(path: Path, shapes: Sequence[Shape | None], dtype: str) -> Arena:
    """A new arena in a file, mapped shared."""
    size = size_of(shapes, dtype)
    return _arena(np.memmap(path, np.uint8, "w+", shape=(size,)), shapes, dtype, fresh=True)


def write(path: Path, arrays: Sequence[Array | None], dtype: str) -> None:
    """Put these arrays into a new file."""
    arena = create(path, [None if a is None else a.shape for a in arrays], dtype)
    for target, source in zip(arena.arrays, arrays, strict=True):
        if target is not None and source is not None:
            target[...] = source


def open_private(path: Path, shapes: Sequence[Shape | None], dtype: str) -> Arena:
    """Map a file copy-on-write: changes stay in this process."""
    return _arena(np.memmap(path, np.uint8, "c"), shapes, dtype)


def open_shared(path: Path, shapes: Sequence[Shape | None], dtype: str) -> Arena:
    """Map a file so that changes reach it."""
    return _arena(np.memmap(path, np.uint8, "r+"), shapes, dtype)


def unchanged(arena: Arena, path: Path) -> bool:
    """Whether a private arena, guards included, still equals its file."""
    return bool(np.array_equal(arena.block, np.memmap(path, np.uint8, "r")))


def _arena(block: Array, shapes: Sequence[Shape | None], dtype: str, *, fresh: bool = False) -> Arena:
    if fresh:
        block.fill(GUARD_VALUE)
    offsets, size = _layout(shapes, dtype)
    if block.size != size:
        raise ValueError(f"a block of {block.size} bytes cannot hold arrays that need {size}")
    views: list[Array | None] = []
    for shape, offset in zip(shapes, offsets, strict=True):
        if shape is None:
            views.append(None)
            continue
        length = math.prod(shape) * ITEMSIZE[dtype]
        views.append(np.asarray(block[offset : offset + length]).view(dtype).reshape(shape))
    return Arena(np.asarray(block), tuple(views))


def _layout(shapes: Sequence[Shape | None], dtype: str) -> tuple[list[int], int]:
    """The offset of every array, and the size of the whole."""
    offsets, position = [], GUARD_BYTES
    for shape in shapes:
        offsets.append(position)
        if shape is not None:
            position += -(-math.prod(shape) * ITEMSIZE[dtype] // ALIGNMENT) * ALIGNMENT + GUARD_BYTES
    return offsets, position


def _is_guard(part: Array) -> bool:
    return bool((part == GUARD_VALUE).all())
