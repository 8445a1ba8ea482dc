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

from impls.contract import aligned_empty
from impls.devices import Device
from impls.specs import ITEMSIZE, Shape, Spec, arguments

Array = npt.NDArray[Any]

GUARD_BYTES = 4096
"""A page before the first array and one after each: an overrun by any block of a kernel lands in it."""
GUARD_VALUE = 0xA5

PLACE_BYTES = 256
"""Arrays start at multiples of this within their block, as they would from a device's allocator."""


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


@dataclass(frozen=True)
class Resident:
    """An arena whose whole block, guard bands and all, is on a device; on the CPU it is the arena itself.

    ``arrays`` are views of the device's block: what a kernel writes beside them comes back with ``fetch``.
    """

    host: Arena
    arrays: tuple[Any, ...]
    block: Any
    device: Device

    @property
    def is_copy(self) -> bool:
        """Whether the device's memory is not the host's."""
        return self.block is not self.host.block

    def send(self) -> None:
        """Overwrite the device's block with the host's."""
        self.device.set(self.block, self.host.block)

    def fetch(self) -> None:
        """Overwrite the host's block with the device's."""
        self.device.get(self.block, self.host.block)

    def poison(self) -> None:
        """Fill the arrays with NaN there, and what is between them with guards."""
        self.host.poison()
        self.send()


def put(host: Arena, device: Device) -> Resident:
    """Put an arena's block on a device, once."""
    block = device.put(host.block)
    arrays = tuple(
        None if array is None else _view(block, array.ctypes.data - host.block.ctypes.data, array.shape, array.dtype)
        for array in host.arrays
    )
    return Resident(host, arrays, block, device)


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
    whole = np.asarray(block)
    views = (
        None if shape is None else _view(whole, offset, shape, np.dtype(dtype))
        for shape, offset in zip(shapes, offsets, strict=True)
    )
    return Arena(whole, tuple(views))


def _view(block: Any, offset: int, shape: Shape, dtype: np.dtype[Any]) -> Any:
    """An array in a block of bytes, whatever memory that is."""
    return block[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def _layout(shapes: Sequence[Shape | None], dtype: str) -> tuple[list[int], int]:
    """The offset of every array, and the size of the whole."""
    offsets, position = [], GUARD_BYTES
    for shape in shapes:
        offsets.append(position)
        if shape is not None:
            position += -(-math.prod(shape) * ITEMSIZE[dtype] // PLACE_BYTES) * PLACE_BYTES + GUARD_BYTES
    return offsets, position


def _is_guard(part: Array) -> bool:
    return bool((part == GUARD_VALUE).all())
