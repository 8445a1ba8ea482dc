"""Where arrays live: put them there, bring them back, wait, or say why it cannot be done.

Copying and waiting are done here, once, and in no kernel. Nothing of CUDA is imported before it is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from impls.cuda_packages import explained


@dataclass(frozen=True)
class Device:
    """Where the arrays of a call live, and how they get there.

    ``put(array)`` gives a device array with these contents, ``get(source, out)`` copies one back,
    ``set(target, array)`` overwrites one in place; these wait for the copy. ``wait()`` returns when all
    enqueued work is done.
    ``missing()`` is None, or the reason why the device cannot be used.
    """

    name: str
    missing: Callable[[], str | None]
    put: Callable[[np.ndarray], Any]
    get: Callable[[Any, np.ndarray], None]
    set: Callable[[Any, np.ndarray], None]
    wait: Callable[[], None]
    free_bytes: Callable[[], int | None] = lambda: None
    """Memory of the device that is not taken; None where nobody can say (the simulator), or where the harness asks."""

    def __str__(self) -> str:
        return self.name


def _nothing() -> None:
    return None


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _copy_host(source: np.ndarray, out: np.ndarray) -> None:
    if source is not out:
        np.copyto(out, source)


def _set_host(target: np.ndarray, source: np.ndarray) -> None:
    _copy_host(source, target)


CPU = Device("cpu", missing=_nothing, put=_same, get=_copy_host, set=_set_host, wait=_nothing)


@cache
def _cuda_missing() -> str | None:
    """None where a kernel ran, else one sentence. The simulator counts as a device: it is slow, and right."""
    try:
        from numba import config, cuda
    except ImportError as error:
        return explained(f"numba's CUDA target cannot be imported: {error}")
    if config.ENABLE_CUDASIM:
        return None
    if not cuda.is_available():
        return explained("no CUDA device or driver is visible")
    try:
        right = _cuda_doubles()
    except Exception as error:  # any failure of a driver or a compiler is a reason, not a crash
        return explained(f"the CUDA device cannot be used: {type(error).__name__}: {error}")
    return None if right else "the CUDA device does not compute 1 + 1 = 2"


def _cuda_doubles() -> bool:
    """Allocate, compile, launch, copy back: whatever is missing raises here, once, and not in a measurement."""
    from numba import cuda

    def double(values: Any) -> None:
        values[0] += values[0]

    value = cuda.to_device(np.ones(1, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba finds a grid of one block too small
        cuda.jit(double)[1, 1](value)
    return bool(value.copy_to_host()[0] == 2)


def _cuda_put(array: np.ndarray) -> Any:
    from numba import cuda

    return cuda.to_device(array)


def _cuda_get(source: Any, out: np.ndarray) -> None:
    source.copy_to_host(out)


def _cuda_set(target: Any, source: np.ndarray) -> None:
    target.copy_to_device(source)


def _cuda_wait() -> None:
    from numba import cuda

    cuda.synchronize()


def _cuda_free_bytes() -> int | None:
    if _cuda_missing():
        return None
    from numba import config, cuda

    return None if config.ENABLE_CUDASIM else int(cuda.current_context().get_memory_info().free)


CUDA = Device(
    "cuda",
    missing=_cuda_missing,
    put=_cuda_put,
    get=_cuda_get,
    set=_cuda_set,
    wait=_cuda_wait,
    free_bytes=_cuda_free_bytes,
)
