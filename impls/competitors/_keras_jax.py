"""Compile for Keras' JAX backend.

jax.jit with all operands as arguments, so that XLA cannot fold them; XLA drops what of the forward pass a gradient does
not need. On the CPU a call waits for its results; on a GPU it enqueues, and ``wait`` waits for the last.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from impls.competitors._library import quiet, quiet_import
from impls.contract import FLOAT32, TF32, Unavailable

LIBRARY = "jax"
THREADS = "NPROC"
"""The environment variable from which JAX's CPU client takes the size of its thread pool, when it starts."""
PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
"""The environment variable that would have JAX take three quarters of a GPU's memory, which workers share."""
PRECISIONS = {FLOAT32: "float32", TF32: "tensorfloat32"}
"""JAX's words for the arithmetic of products and convolutions of float32 arrays."""


@cache
def start() -> None:
    """Have JAX compute on the CPU, with float64 allowed: Keras names the dtype of everything it makes."""
    _configure("cpu")


@cache
def start_on_gpu() -> None:
    """Have JAX compute on a GPU. Raises Unavailable with JAX's own reason where it cannot."""
    os.environ[PREALLOCATE] = "false"
    _configure("cuda,cpu")
    try:
        with quiet():
            _jax().devices("cuda")
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise Unavailable(f"JAX {_jax().__version__} reaches no CUDA device: {reason}") from error


def set_precision(arithmetic: str) -> None:
    """Compile products and convolutions of float32 arrays on GPUs for this arithmetic, in the whole process."""
    _jax().config.update("jax_default_matmul_precision", PRECISIONS[arithmetic])


def set_threads(count: int) -> None:
    """The size of JAX's thread pool. Raises RuntimeError where JAX is already imported."""
    if "jax" in sys.modules and threads() != {"jax": count}:
        raise RuntimeError("JAX takes its number of threads when it starts; set it before JAX is imported")
    os.environ[THREADS] = str(count)


def threads() -> dict[str, int]:
    """What is in force; 0 is JAX's default, one per core."""
    return {"jax": int(os.environ.get(THREADS, "0"))}


def tensor(array: np.ndarray, place: str) -> Any:
    """A JAX array with a copy of the contents, committed to its device; ``place`` is "cpu:0" or "gpu:0"."""
    kind, _, index = place.partition(":")
    return _jax().device_put(array.copy(), _jax().devices(kind)[int(index)])


def forward(function: Callable[..., Any], operands: list[Any], *, on_gpu: bool) -> Callable[[], Any]:
    """A call that computes ``function(*operands)``."""
    return _compiled(on_gpu, lambda *operands: (function(*operands),), *operands)


def gradient(
    function: Callable[..., Any], operands: list[Any], wanted: slice, dy: Any, *, on_gpu: bool
) -> Callable[[], Any]:
    """A call that computes the gradient of <function(*operands), dy> with respect to the wanted operands."""

    def step(dy: Any, *operands: Any) -> Any:
        def of_wanted(*moving: Any) -> Any:
            every = list(operands)
            every[wanted] = moving
            return function(*every)

        _, pull = _jax().vjp(of_wanted, *operands[wanted])
        return pull(dy)

    return _compiled(on_gpu, step, dy, *operands)


_enqueued: Any = ()
"""The results of the last call that did not wait: a GPU finishes calls in their order."""


def trim() -> None:
    """Nothing: what it keeps of the GPU's memory for later it gives back when its process ends."""


def wait() -> None:
    """Return when the last call is finished, and let go of its results."""
    global _enqueued
    _jax().block_until_ready(_enqueued)
    _enqueued = ()


def _compiled(on_gpu: bool, step: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    jax = _jax()
    compiled = jax.jit(step)

    def enqueue() -> Any:
        global _enqueued
        _enqueued = compiled(*arguments)
        return _enqueued

    return enqueue if on_gpu else lambda: jax.block_until_ready(compiled(*arguments))


def _configure(platforms: str) -> None:
    _jax().config.update("jax_platforms", platforms)
    _jax().config.update("jax_enable_x64", True)


def _jax() -> Any:
    return quiet_import(LIBRARY)
