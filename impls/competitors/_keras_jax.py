"""Compile for Keras' JAX backend.

jax.jit with all operands as arguments, so that XLA cannot fold them; XLA drops what of the forward pass a gradient does
not need. A call waits for its results.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from impls.competitors._library import quiet_import

THREADS = "NPROC"
"""The environment variable from which JAX's CPU client takes the size of its thread pool, when it starts."""


@cache
def start() -> Any:
    """JAX on the CPU, with float64 allowed: Keras names the dtype of everything it makes."""
    jax = quiet_import("jax")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    return jax


def set_threads(count: int) -> None:
    """The size of JAX's thread pool. Raises RuntimeError where JAX is already imported."""
    if "jax" in sys.modules and threads() != {"jax": count}:
        raise RuntimeError("JAX takes its number of threads when it starts; set it before JAX is imported")
    os.environ[THREADS] = str(count)


def threads() -> dict[str, int]:
    """What is in force; 0 is JAX's default, one per core."""
    return {"jax": int(os.environ.get(THREADS, "0"))}


def tensor(array: np.ndarray) -> Any:
    """A JAX array with a copy of the contents."""
    return start().numpy.array(array)


def forward(function: Callable[..., Any], operands: list[Any]) -> Callable[[], Any]:
    """A call that computes ``function(*operands)``."""
    return _compiled(lambda *operands: (function(*operands),), *operands)


def gradient(function: Callable[..., Any], operands: list[Any], wanted: slice, dy: Any) -> Callable[[], Any]:
    """A call that computes the gradient of <function(*operands), dy> with respect to the wanted operands."""

    def step(dy: Any, *operands: Any) -> Any:
        def of_wanted(*moving: Any) -> Any:
            every = list(operands)
            every[wanted] = moving
            return function(*every)

        _, pull = start().vjp(of_wanted, *operands[wanted])
        return pull(dy)

    return _compiled(step, dy, *operands)


def _compiled(step: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    jax = start()
    compiled = jax.jit(step)
    return lambda: jax.block_until_ready(compiled(*arguments))
