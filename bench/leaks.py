"""Memory that grows with every call, seen from the resident memory of the process between samples.

A leak grows in every part of the timed rounds. Caches that fill, pools that start and arenas that are taken once grow
in one part and then stand still.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

LEAST_BYTES = 2**20
"""In all; less is what an interpreter's own memory does."""
LEAST_BYTES_PER_CALL = 16.0
"""The least that malloc hands out."""
EVEN_SHARE = 0.25
"""Of what an even leak has in each part: less is a page now and then, after something large was taken once."""
PARTS = 3
MIN_READINGS = PARTS + 1


def resident_bytes() -> int | None:
    """Of this process now; None where the system does not tell quickly."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def leak(calls: Sequence[int], resident: Sequence[int]) -> str | None:
    """The reason why memory leaks, or None: ``resident`` bytes after so many ``calls`` in all, reading by reading.

    Memory leaks where it grew in each of PARTS parts of the readings by its EVEN_SHARE, and over all of them by at
    least LEAST_BYTES and LEAST_BYTES_PER_CALL.
    """
    if len(calls) < MIN_READINGS:
        return None
    last = len(calls) - 1
    marks = [resident[round(part * last / PARTS)] for part in range(PARTS + 1)]
    grown, made = marks[-1] - marks[0], calls[-1] - calls[0]
    is_even = all(after - before >= EVEN_SHARE * grown / PARTS for before, after in itertools.pairwise(marks))
    if not is_even or grown < LEAST_BYTES or grown < LEAST_BYTES_PER_CALL * made:
        return None
    return f"memory grew by {grown / made:.3g} bytes a call over {made} calls"
