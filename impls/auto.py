"""What "auto" means: the implementation that was measured fastest for the nearest problem."""

from __future__ import annotations

from impls.specs import Case

AUTO = "auto"

FALLBACK = {"conv2d": "numba_jit_direct", "maxpool2d": "numba_jit", "avgpool2d": "numba_jit", "dense": "numba_jit"}
"""What is taken for an operation that was never measured.

All of one thread pool: where BLAS and numba take turns within a step, each waits for the other's threads, which spin
for a while after their work. A small network's steps took 20 times as long with dense layers by NumPy."""


def choose(case: Case, direction: str) -> str:
    """The name of the implementation to compute a problem with."""
    return FALLBACK[case.op]
