"""Numba's CUDA target as every kernel here uses it: one thread per result, compiled when a plan is made.

Import ``cuda`` from here and never from numba, so that a kernel's file can be imported where numba has no CUDA target:
there ``cuda`` is None and ``devices.CUDA.missing()`` gives the reason. Importing a kernel's file compiles nothing and
asks no driver.

Indices are 64-bit integers, numba's default: no array is too large, and a division of small values takes the
processor's 32-bit path. Constants are float32, because a Python number would make the arithmetic float64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numba.core import config

from impls.contract import Plan
from impls.devices import CUDA
from impls.specs import FORWARD, GRAD_INPUT, PoolSpec, Spec

# A small grid is what a small layer needs: numba's warning about it would be printed at every such launch.
os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

try:
    from numba import cuda
except ImportError:  # a numba without its own target, or a numba-cuda without its bindings
    cuda = None

BLOCK = 128
"""Threads per block: four warps."""

ARRAY4 = "float32[:,:,:,::1]"
MATRIX = "float32[:,::1]"
VECTOR = "float32[::1]"
PAIR = "UniTuple(int64, 2)"
FLAG = "boolean"

ZERO = np.float32(0)


class Kernel:
    """A CUDA kernel and the one signature that it is ever compiled for."""

    def __init__(self, function: Callable[..., None], signature: str):
        self.function = function
        self.signature = signature

    @cached_property
    def _dispatcher(self) -> Any:
        return cuda.jit(self.function)

    def compile(self) -> None:
        """Compile for the current device; the simulator, which runs Python, has nothing to compile."""
        if not config.ENABLE_CUDASIM:
            self._dispatcher.compile(self.signature)

    def launch(self, threads: int, *arguments: Any) -> None:
        """Enqueue at least ``threads`` threads on the current stream; does not wait."""
        self._dispatcher[-(-threads // BLOCK), BLOCK](*arguments)


def kernel(*types: str) -> Callable[[Callable[..., None]], Kernel]:
    """Make a function a CUDA kernel whose arguments have these types (numba's notation)."""
    return lambda function: Kernel(function, f"void({', '.join(types)})")


def device_function(function: Callable[..., Any]) -> Any:
    """Make a function callable from kernels.

    It is inlined before types are inferred: compiled on its own it would ask a driver for the device, and kernels
    could be compiled only where there is one.
    """
    return cuda.jit(device=True, inline="always")(function) if cuda else function


class CudaPlan(Plan):
    """Base of the plans whose arrays live on a CUDA device. ``kernels``: what each direction launches."""

    device = CUDA
    kernels: ClassVar[Mapping[str, tuple[Kernel, ...]]]

    @classmethod
    def allocate(cls, count: int) -> Any:
        """Scratch memory on the device; None where none is needed, since a driver refuses zero bytes."""
        return cuda.device_array((count,), "uint8") if count else None

    def prepare(self) -> None:
        """Compile what the planned directions launch."""
        for direction in self.directions:
            for kernel in self.kernels[direction]:
                kernel.compile()


class CudaPoolPlan(CudaPlan):
    """Base of the pooling plans: what their launches need beside the arrays."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    def prepare(self) -> None:
        """Compile, and fix ``geometry`` (pool, stride, padding above and on the left) and the numbers of threads."""
        super().prepare()
        (top, _), (left, _) = self.spec.pads
        self.geometry = self.spec.pool, self.spec.step, (top, left)
        self.x_size, self.y_size = math.prod(self.spec.x_shape), math.prod(self.spec.y_shape)


def only_float32(spec: Spec, direction: str) -> str | None:
    """The reason why a problem of another dtype cannot be computed, or None."""
    return None if spec.dtype == "float32" else f"its kernels compute in float32, not in {spec.dtype}"


@device_function
def unravel(index, shape):
    """Position in a row-major 4-D array of the element with this flat index."""
    rest, m = index // shape[3], index % shape[3]
    rest, k = rest // shape[2], rest % shape[2]
    return rest // shape[1], rest % shape[1], k, m


@device_function
def under(window, pool, stride, before, size):
    """First pixel under a pooling window along one axis, and the one past its last: padding is left out."""
    start = window * stride - before
    return max(start, 0), min(start + pool, size)


@device_function
def covering(pixel, pool, stride, before, windows):
    """First pooling window over a pixel along one axis, and the one past the last."""
    place = pixel + before
    return max((place - pool) // stride + 1, 0), min(place // stride + 1, windows)
