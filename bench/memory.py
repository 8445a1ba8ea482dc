"""The state of memory while something is timed on the CPU, and what it asks of memory: caches, page faults.

``hot``           several input sets in rotation, nothing flushed
``cold-weights``  before every call all caches are flushed, then all arrays but the weights are read once
``cold``          before every call all caches are flushed
``both``          hot; on a device with a clock of its own, the kernel with its L2 cache flushed as well

Flushing is writing a buffer of FLUSH_FACTOR times the last cache, outside the clock. It empties what the core that
writes can reach; where the last cache does not hold copies of the others' (Intel since Skylake-SP, AMD Zen), the
private caches of other cores keep what they have. What a framework copied when it was bound is cold in either state.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench import caches

Array = npt.NDArray[Any]

HOT = "hot"
COLD_WEIGHTS = "cold-weights"
COLD = "cold"
BOTH = "both"
MEMORY = (HOT, COLD_WEIGHTS, COLD, BOTH)
FLUSHED = (COLD_WEIGHTS, COLD)
"""The states in which a call on the CPU comes after a flush, and is timed alone."""

WEIGHTS = ("w", "b", "dw", "db")
"""What is left cold by ``cold-weights``."""

FLUSH_FACTOR = 4
"""Times the last cache: one that does not evict the oldest line first keeps some of what it held after once as much."""
MAX_FLUSHED_CALLS = 8
"""In one sample: a flush takes longer than most calls."""


class Faults(NamedTuple):
    """Page faults of this process so far: served from memory, and from a disk."""

    minor: int
    major: int


def faults() -> Faults | None:
    """What the system has counted, of all threads; None where it does not say."""
    if sys.platform == "win32":
        return None
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Faults(usage.ru_minflt, usage.ru_majflt)


def faults_per_call(before: Faults | None, after: Faults | None, calls: int) -> tuple[float, float] | None:
    """(minor, major) of each of so many calls, or None."""
    if before is None or after is None:
        return None
    return (after.minor - before.minor) / calls, (after.major - before.major) / calls


def flush_bytes() -> int:
    """What is written to empty the caches: FLUSH_FACTOR times the largest one, which is the last."""
    return FLUSH_FACTOR * max(cache.bytes for cache in caches.read())


class Flusher:
    """A buffer that pushes everything else out of the caches."""

    def __init__(self, size: int | None = None) -> None:
        """``size``: bytes; by default flush_bytes()."""
        self._buffer = np.ones(size or flush_bytes(), np.uint8)  # every page is touched

    def flush(self, warm: Iterable[Array | None] = ()) -> None:
        """Empty the caches, then read these arrays once."""
        self._buffer += 1
        for array in warm:
            if array is not None:
                array.view(np.uint8).max(initial=0)


def kept_warm(state: str, names: Sequence[str], arrays: Sequence[Array | None]) -> list[Array | None]:
    """Which of the arrays of a call, by the names of the contract, are read again after a flush."""
    return [a for name, a in zip(names, arrays, strict=True) if state == COLD_WEIGHTS and name not in WEIGHTS]
