"""CUDA as the competitors use it: a library keeps its own tensors there, so a call's arrays stay on the host.

A library copies the inputs when a call is bound and the results when they are fetched, both outside the clock. The
device bears CUDA's name, because what computes there is compared with what computes there.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from impls.contract import TF32
from impls.devices import CPU, CUDA, Device

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

TF32_SINCE = 8
"""The first major compute capability whose tensor cores take TF32 (CUDA C++ Programming Guide, arithmetic types)."""

COMPUTE_CAPABILITY_MAJOR = 75
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of the CUDA driver API."""


def cuda_of(
    wait: Callable[[], None], arithmetic: str, *, on_default_stream: bool, trim: Callable[[], None] = CPU.trim
) -> Device:
    """CUDA for the calls of a library: ``wait`` is how it waits, ``arithmetic`` what the device must have.

    What a library enqueues ``on_default_stream``, as PyTorch does, lies between CUDA's own marks on that stream; a
    library with streams of its own has the host's clock only. ``trim``: gives back memory that it keeps for later.
    """
    missing = no_tf32 if arithmetic == TF32 else no_gpu
    device = replace(CPU, name=CUDA.name, missing=missing, wait=wait, trim=trim)
    return replace(device, timer=CUDA.timer, free_bytes=CUDA.free_bytes) if on_default_stream else device


def no_gpu() -> str | None:
    """The reason why no library can compute on a GPU, or None; the driver is asked, and no library imported."""
    found = _asked_of_driver(DRIVER)
    return found if isinstance(found, str) else None


def no_tf32() -> str | None:
    """The reason why no library can multiply in TF32, or None."""
    found = _asked_of_driver(DRIVER)
    if isinstance(found, str):
        return found
    return None if found >= TF32_SINCE else f"TF32 needs compute capability {TF32_SINCE}.0; the GPU has {found}.x"


@cache
def _asked_of_driver(library: str) -> int | str:
    """The major compute capability of the first GPU, or the reason why there is none."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver: {library} cannot be loaded"
    if code := driver.cuInit(0):
        return f"the NVIDIA driver offers no GPU: cuInit gives error {code}"
    device, major = ctypes.c_int(), ctypes.c_int()
    code = driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetAttribute(
        ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device
    )
    return f"the NVIDIA driver cannot describe its first GPU: error {code}" if code else major.value
