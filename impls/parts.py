"""How a pass over flat arrays is shared by threads: in parts, each of them a slice.

A loop over a slice from 0 to its length vectorises. One from ``len * part // parts`` does not, since numba takes an
index that begins anywhere for one that may be negative and count from the end: it took 10 times as long.
"""

from __future__ import annotations

from impls.numba_setup import njit, numba


def parts_for(size: int, serial_below: int) -> int:
    """How many parts for arrays of this size: one for each thread, a single one where they are small."""
    return 1 if size < serial_below else numba.get_num_threads()


@njit
def cut(values, part, parts):
    """The slice of an array that a part of the work is about."""
    return values[len(values) * part // parts : len(values) * (part + 1) // parts]
