"""Where arrays live: put them there, bring them back, wait, or say why it cannot be done.

Copying and waiting are done here, once, and in no kernel. Nothing of CUDA is imported before it is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from impls.cuda_packages import explained
from impls.wording import worded


def _nothing() -> None:
    return None


class Timer(Protocol):
    """The device's own clock: marks in the order of its work, and what keeps it busy or its caches cold meanwhile."""

    def mark(self) -> Any:
        """A mark behind everything enqueued so far; does not wait."""

    def passed(self, mark: Any) -> bool:
        """Whether the device has come to it."""

    def seconds(self, first: Any, last: Any) -> float:
        """From one mark to a later one; waits for that."""

    def hold(self, seconds: float) -> None:
        """Enqueue what keeps the device busy for about this long, and ends by itself."""

    def flush(self) -> None:
        """Enqueue a write that leaves nothing of older contents in the caches."""


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
    trim: Callable[[], None] = _nothing
    """Give back the memory of arrays that are gone, where a library keeps it for later."""
    timer: Callable[[], Timer | None] = _nothing
    """The device's clock; None where it has none, and only the host's tells."""
    describe: Callable[[], dict[str, Any]] = dict
    """What the device is, as plain values; empty where the machine's own description says it."""

    def __str__(self) -> str:
        return self.name


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


def _cuda_is_simulated() -> bool:
    from numba import config

    return bool(config.ENABLE_CUDASIM)


def _cuda_free_bytes() -> int | None:
    if _cuda_missing() or _cuda_is_simulated():
        return None
    from numba import cuda

    return int(cuda.current_context().get_memory_info().free)


def _cuda_trim() -> None:
    if not _cuda_is_simulated():
        from numba import cuda

        cuda.current_context().deallocations.clear()


@cache
def _cuda_timer() -> Timer | None:
    if _cuda_missing() or _cuda_is_simulated():
        return None
    from impls.numba_cuda_timer import CudaTimer

    return CudaTimer()


def _cuda_describe() -> dict[str, Any]:
    if _cuda_missing() or _cuda_is_simulated():
        return {}
    from numba import cuda

    device, memory = cuda.get_current_device(), cuda.current_context().get_memory_info()
    name = device.name
    return {
        "name": name.decode() if isinstance(name, bytes) else name,
        "uuid": device.uuid,
        "compute_capability": ".".join(map(str, device.compute_capability)),
        "memory_bytes": int(memory.total),
        "l2_bytes": int(device.L2_CACHE_SIZE),
        "multiprocessors": int(device.MULTIPROCESSOR_COUNT),
        "driver_cuda": ".".join(map(str, cuda.driver.driver.get_version())),
    }


LOST = (
    *("ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION", "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC"),
    *("LAUNCH_FAILED", "LAUNCH_FAILURE", "LAUNCH_TIMEOUT", "HARDWARE_STACK_ERROR", "ASSERT", "CONTAINED"),
    *("ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE", "DEVICE_UNAVAILABLE", "DEVICES_UNAVAILABLE", "EXTERNAL_DEVICE"),
    *("NO_DEVICE", "CONTEXT_IS_DESTROYED", "SYSTEM_NOT_READY", "DEINITIALIZED"),
)
"""Errors of the driver after which this process computes nothing more on the device (CUDA Driver API, CUresult)."""


def is_lost(error: BaseException) -> bool:
    """Whether an error means that the device, or this process's hold of it, is gone.

    Asked of the text, because each library wraps CUDA's error in a class of its own: the driver API's name
    (CUDA_ERROR_ILLEGAL_ADDRESS), the runtime API's (cudaErrorIllegalAddress), or PyTorch's words (CUDA error: an
    illegal memory access was encountered).
    """
    text = worded(error).upper()
    squeezed = text.replace("_", "")
    named = any(f"CUDAERROR{name.replace('_', '')}" in squeezed for name in LOST)
    return named or ("CUDA ERROR: " in text and "OUT OF MEMORY" not in text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the host or of a device ran out."""
    text = worded(error).upper()
    cuda = ("CUDA_ERROR_OUT_OF_MEMORY", "CUDAERRORMEMORYALLOCATION", "CUDA OUT OF MEMORY", "OUTOFMEMORYERROR")
    xla = ("RESOURCE_EXHAUSTED",)
    return isinstance(error, MemoryError) or any(words in text for words in (*cuda, *xla))


CUDA = Device(
    "cuda",
    missing=_cuda_missing,
    put=_cuda_put,
    get=_cuda_get,
    set=_cuda_set,
    wait=_cuda_wait,
    free_bytes=_cuda_free_bytes,
    trim=_cuda_trim,
    timer=_cuda_timer,
    describe=_cuda_describe,
)
