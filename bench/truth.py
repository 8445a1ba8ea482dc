"""Where the float64 reference computes: on a CUDA device if CuPy can use one and is proven right, else on the host.

``python -m bench.truth`` prints {"reason": why it cannot be the device, or nothing}: asked in a process of its own, a
device that hangs or a library that crashes does not take the asker with it.

It is a loop over taps with matrix products in either place, independent of every kernel here; on a device a large case
takes milliseconds instead of seconds.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np

from bench import check, inputs
from impls import parse_case
from impls.specs import directions_of

PROOF = (
    "conv2d:2x7x8x6,k3x2,f4,s2x1,p1:0:2:1,d1x2,g2,relu",
    "conv2d:1x4x3x2,k5x7,f3",
    "maxpool2d:2x7x8x3,pool3x3,s2x2,same",
    "avgpool2d:2x7x8x3,pool3x3,s2x2,same",
    "dense:5x8,u7,relu",
)
"""Small cases of every kind of problem, on which both places must agree."""

CLOSE = 2.0**-46
"""128 float64 roundoffs of a sum's magnitude: its terms are fewer, and float32 misses it by a factor of 10^6."""


@cache
def array_module() -> tuple[Any, str]:
    """(CuPy, "") where it computes and was proven, else (NumPy, the reason why not)."""
    try:
        import cupy
    except Exception as error:  # a broken installation raises more than ImportError
        return np, f"CuPy cannot be imported: {error}"
    try:
        if not cupy.is_available():
            return np, "CuPy sees no CUDA device"
        wrong = disagreement(cupy)
    except Exception as error:  # whatever a driver or a library raises
        return np, f"CuPy cannot compute here: {type(error).__name__}: {error}"
    return (np, f"CuPy differs from NumPy on {wrong}") if wrong else (cupy, "")


def disagreement(xp: Any) -> str | None:
    """The first case and direction on which this library's reference is not NumPy's to float64 rounding, or None."""
    for text in PROOF:
        case = parse_case(text)
        for direction in directions_of(case.op):
            arrays = inputs.make(case, direction, inputs.DENSE, seed=0)
            here, there = check.expected(case, direction, arrays), check.expected(case, direction, arrays, xp)
            for kind in ("values", "magnitudes", "roundings"):
                for mine, other, magnitude in zip(
                    getattr(here, kind), getattr(there, kind), here.magnitudes, strict=True
                ):
                    if mine is not None and magnitude is not None:
                        off = abs(mine - to_host(other))
                        if not (off <= CLOSE * np.maximum(magnitude, 1)).all():
                            return f"{kind} of {text} {direction}"
    return None


def to_host(array: Any) -> Any:
    """A NumPy array of the same contents."""
    return array.get() if hasattr(array, "get") else array


def release(xp: Any) -> None:
    """Give the device back what the reference's arrays took: workers share it."""
    if xp is not np:
        xp.get_default_memory_pool().free_all_blocks()


def main() -> None:
    """Print the reason why the truth is computed on the host, or nothing."""
    print(json.dumps({"reason": array_module()[1]}))


if __name__ == "__main__":
    main()
