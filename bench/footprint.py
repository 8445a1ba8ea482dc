"""What a call must leave as it found it, beside arrays: pools of threads, random states, warnings, folder, rounding.

All of it belongs to the whole process, or to its one thread: what one implementation changes, every later computation
meets. Nothing of this is read while anything is timed.
"""

from __future__ import annotations

import os
import pickle
import random
import warnings
import zlib
from collections.abc import Mapping

import numpy as np

Footprint = Mapping[str, object]
"""By what it is, in words."""

POOL = "the threads of "
TINY = np.float64(2.0**-60)
"""Adding it moves 1 only where results are not rounded to the nearest number."""
LEAST_NORMAL = np.float32(2.0**-126)
LEAST_DENORMAL = np.uint32(1)
"""The bits of the least float32 above 0."""


def footprint(threads: Mapping[str, int]) -> Footprint:
    """The state of this process and of the thread that asks; ``threads``: the pools' sizes, by name."""
    return {
        **{f"{POOL}{name}": str(count) for name, count in threads.items()},
        "NumPy's random state": zlib.crc32(pickle.dumps(np.random.get_state(legacy=False))),
        "Python's random state": random.getstate(),
        "the warnings filters": tuple(warnings.filters),
        "the current directory": _current_directory(),
        **{f"the environment variable {name}": value for name, value in os.environ.items()},
        "the rounding mode": _rounding(),
        "the treatment of denormal numbers": _denormals(),
    }


def changes(before: Footprint, after: Footprint) -> str | None:
    """What differs, in words, or None. A pool that was not there before, or is gone, is no change of one."""
    pools = {name for name in before.keys() ^ after.keys() if name.startswith(POOL)}
    found = [n for n in (before | after) if n not in pools and before.get(n) != after.get(n)]  # type: ignore[operator]
    return f"changed {', '.join(_told(n, before.get(n), after.get(n)) for n in found)}" if found else None


def _told(name: str, before: object, after: object) -> str:
    """A change with what it was and is, where that is text."""
    is_text = isinstance(before, str) or isinstance(after, str)
    return f"{name} from {before} to {after}" if is_text else name


def _current_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "one that is gone"


def _rounding() -> tuple[bool, ...]:
    """Whether 1 and -1 stay what they are when less than half of their last place is added or taken."""
    one = np.float64(1)
    return tuple(bool(value + step == value) for value in (one, -one) for step in (TINY, -TINY))


def _denormals() -> tuple[bool, bool]:
    """Whether a float32 result below the least normal number is kept (else: FTZ), and such an operand read (else: DAZ).

    What comes out is looked at bit by bit: a comparison reads its operands as the mode has it.
    """
    result = np.array([LEAST_NORMAL]) * np.float32(0.5)
    operand = np.array([LEAST_DENORMAL]).view(np.float32) * np.float32(2.0**24)
    return bool(result.view(np.uint32)[0]), bool(operand.view(np.uint32)[0])
