"""How a pass over flat arrays is shared by threads: in parts, each of them a slice.

A loop over a slice from 0 to its length vectorises. One from ``len * part // parts`` does not, since numba takes an
index that begins anywhere for one that may be negative and count from the end: it took 10 times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from impls.numba_setup import njit, numba


def parts_for(size: int, serial_below: int) -> int:
    """How many parts for arrays of this size: one for each thread, a single one where they are small."""
    return 1 if size < serial_below else numba.get_num_threads()


class shared:
    """Decorates a function of loops over ``prange(parts)``, parts being its last argument.

    It is compiled twice, each time when first needed: for threads, and for a single part. numba's parallel code waits
    for all of its threads however few the parts; on a busy machine that takes milliseconds.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.__doc__ = function.__doc__
        self._by_threads = njit(function, parallel=True)
        self._alone = njit(_renamed(function, f"{function.__qualname__}_alone"))

    def __call__(self, *arguments: Any) -> None:
        """Run in as many parts as the last argument says."""
        (self._alone if arguments[-1] == 1 else self._by_threads)(*arguments)


@njit
def cut(values, part, parts):
    """The slice of an array that a part of the work is about."""
    return values[len(values) * part // parts : len(values) * (part + 1) // parts]


def _renamed(function, name):
    """A copy under another name: numba's cache on disk tells functions by name and line, not by how they compile."""
    copy = FunctionType(function.__code__, function.__globals__, name, function.__defaults__, function.__closure__)
    copy.__qualname__ = name
    copy.__doc__ = function.__doc__
    return copy
