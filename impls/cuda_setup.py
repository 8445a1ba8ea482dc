"""Numba's CUDA target as every kernel here uses it: compiled when a plan is made, launched as the problem says.

Import ``cuda`` from here and never from numba, so that a kernel's file can be imported where numba has no CUDA target:
there ``cuda`` is None and ``devices.CUDA.missing()`` gives the reason. Importing a kernel's file compiles nothing and
asks no driver.

Indices are 64-bit integers, numba's default, except where a kernel narrows them: that takes a fraction of the
instructions, and its entry refuses what is too large (``needs_wide_indices``). Constants are float32, because a Python
number would make the arithmetic float64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numba.core import config

from impls import cuda_graph
from impls.contract import Call, Implementation, Plan
from impls.devices import CUDA
from impls.specs import FORWARD, GRAD_INPUT, ITEMSIZE, ConvSpec, PoolSpec, Spec, arguments

# A small grid is what a small layer needs: numba's warning about it would be printed at every such launch.
os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

try:
    from numba import cuda as cuda  # kernels import it from here
except ImportError:  # a numba without its own target, or a numba-cuda without its bindings
    cuda = None

BLOCK = 128
"""Threads per block where nothing else is asked for: four warps."""

MAX_BLOCKS = (2**31 - 1, 65_535, 65_535)
MAX_THREADS = 1024
MAX_SHARED_BYTES = 48 * 1024
"""The same on every device since compute capability 5.0 (CUDA C++ Programming Guide, table of technical
specifications); a kernel's own shared arrays never exceed the 48 KB, whatever a device has beyond."""

ARRAY4 = "float32[:,:,:,::1]"
MATRIX = "float32[:,::1]"
VECTOR = "float32[::1]"
PAIR = "UniTuple(int64, 2)"
FLAG = "boolean"

ZERO = np.float32(0)


KERNELS: list[Kernel] = []
"""Every kernel of the modules that were imported, for the checks that need no device."""


class Kernel:
    """A CUDA kernel: the one signature that it is ever compiled for, and the threads and shared memory of a block."""

    def __init__(self, function: Callable[..., None], signature: str, threads: int, shared_bytes: int, variant: str):
        self.function = function
        self.signature = signature
        self.threads = threads
        self.shared_bytes = shared_bytes
        self.variant = variant
        KERNELS.append(self)

    @property
    def name(self) -> str:
        """Its file, function and variant, as "conv2d.numba_cuda_direct._forward" or "cuda_gemm._multiply[64x64]"."""
        variant = f"[{self.variant}]" if self.variant else ""
        return f"{self.function.__module__.removeprefix('impls.')}.{self.function.__name__}{variant}"

    @cached_property
    def dispatcher(self) -> Any:
        """What numba launches."""
        return cuda.jit(self.function)

    def compile(self) -> None:
        """Compile for the current device; the simulator, which runs Python, has nothing to compile."""
        if not config.ENABLE_CUDASIM:
            self.dispatcher.compile(self.signature)


def kernel(
    *types: str, threads: int = BLOCK, shared_bytes: int = 0, variant: str = ""
) -> Callable[[Callable[..., None]], Kernel]:
    """Make a function a CUDA kernel whose arguments have these types (numba's notation).

    ``threads``: of a block, always. ``shared_bytes``: what its shared arrays take together. ``variant``: tells kernels
    apart that one function makes with different constants.
    """
    return lambda function: Kernel(function, f"void({', '.join(types)})", threads, shared_bytes, variant)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: (x, y, z) blocks of the kernel's threads."""

    kernel: Kernel
    blocks: tuple[int, int, int]

    def __call__(self, *arguments: Any) -> None:
        """Enqueue it on the current stream; does not wait."""
        self.kernel.dispatcher[self.blocks, self.kernel.threads, _stream](*arguments)

    def why_not(self) -> str | None:
        """The reason why no device launches this, or None."""
        for axis, blocks, most in zip("xyz", self.blocks, MAX_BLOCKS, strict=True):
            if blocks > most:
                return f"{self.kernel.name} would need {blocks} blocks along {axis}; a grid has at most {most}"
        if self.kernel.threads > MAX_THREADS:
            return f"{self.kernel.name} needs blocks of {self.kernel.threads} threads; they have at most {MAX_THREADS}"
        if self.kernel.shared_bytes > MAX_SHARED_BYTES:
            needed = f"{self.kernel.name} needs {self.kernel.shared_bytes} bytes of shared memory"
            return f"{needed}; a block has {MAX_SHARED_BYTES}"
        return None


def one_thread_each(kernel: Kernel, count: int) -> Launch:
    """A launch of at least ``count`` threads, and of one block at the least."""
    return Launch(kernel, (max(1, -(-count // kernel.threads)), 1, 1))


_stream: Any = 0
"""Where launches go: 0 is the default stream, or the stream that is being captured into a graph."""


def current_stream() -> Any:
    """Where launches go: 0, or a stream of numba or of cuda.core."""
    return _stream


@contextmanager
def launching_on(stream: Any) -> Iterator[None]:
    """Send the launches of this block to another stream."""
    global _stream
    before, _stream = _stream, stream
    try:
        yield
    finally:
        _stream = before


def device_function(function: Callable[..., Any]) -> Any:
    """Make a function callable from kernels.

    It is inlined before types are inferred: compiled on its own it would ask a driver for the device, and kernels
    could be compiled only where there is one.
    """
    return cuda.jit(device=True, inline="always")(function) if cuda else function


def captured(run: Callable[[], None], launches: int) -> Callable[[], None]:
    """``run`` as a graph, or as it is where no graph can be made."""
    if config.ENABLE_CUDASIM:
        return cuda_graph.Launches(run, "the simulator has no graphs")
    try:
        from cuda.bindings import driver

        return cuda_graph.capture(run, launches, launching_on, driver, cuda.external_stream)
    except Exception as error:  # a graph only saves time: without one the same launches compute the same
        return cuda_graph.Launches(run, f"{type(error).__name__}: {error}")


class CudaPlan(Plan):
    """Base of the plans whose arrays live on a CUDA device: what they launch follows from the problem alone."""

    device = CUDA

    @classmethod
    def launches(cls, spec: Any, direction: str) -> tuple[Launch, ...]:
        """Every launch of a call, in order: needs no device, and depends on none."""
        raise NotImplementedError

    @classmethod
    def allocate(cls, count: int) -> Any:
        """Scratch memory on the device; None where none is needed, since a driver refuses zero bytes."""
        return cuda.device_array((count,), "uint8") if count else None

    def prepare(self) -> None:
        """Compile what the planned directions launch."""
        self._launches = {direction: self.launches(self.spec, direction) for direction in self.directions}
        for kernel in dict.fromkeys(launch.kernel for launches in self._launches.values() for launch in launches):
            kernel.compile()

    def bind(self, direction: str, *arrays: Any) -> Call:
        """Fix the addresses of a call, as a CUDA graph where one can be made; ``call.run.launched`` says which.

        Computes once, so that nothing is compiled or loaded while the launches are captured: outputs hold results then.
        """
        call = super().bind(direction, *arrays)
        call()
        self.device.wait()
        call.run = captured(call.run, len(self._launches[direction]))
        return call

    def enqueue(self, direction: str, *arguments: tuple[Any, ...]) -> None:
        """Launch everything that a direction launches, each with its arguments."""
        for launch, given in zip(self._launches[direction], arguments, strict=True):
            launch(*given)


POOL_GEOMETRY = "UniTuple(int32, 12)"
"""Batch, height, width, channels; rows and columns of y; pool; stride; padding above and on the left."""


class CudaPoolPlan(CudaPlan):
    """Base of the pooling plans: one thread per result, all arrays flat."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)
    kernels: ClassVar[Mapping[str, Kernel]]
    """What each direction launches."""

    @classmethod
    def launches(cls, spec, direction):
        results = math.prod(spec.y_shape if direction == FORWARD else spec.x_shape)
        return (one_thread_each(cls.kernels[direction], results),)

    def prepare(self) -> None:
        """Compile, and fix ``geometry``."""
        super().prepare()
        spec = self.spec
        (top, _), (left, _) = spec.pads
        self.geometry = int32s(*spec.x_shape, *spec.y_shape[1:3], *spec.pool, *spec.step, top, left)

    def forward(self, x, out):
        self.enqueue(FORWARD, (flat(x), flat(out), self.geometry))


def implementation(
    plan_type: type[CudaPlan],
    algorithm: str,
    note: str,
    why_not: Callable[[Any, str], str | None] = lambda spec, direction: None,
) -> Implementation:
    """The record of a plan on CUDA; ``why_not`` gives reasons of its own, beside dtype, grid and device memory."""

    def reason(spec: Any, direction: str) -> str | None:
        if spec.dtype != "float32":
            return f"its kernels compute in float32, not in {spec.dtype}"
        own = why_not(spec, direction)
        if own is not None:
            return own
        refused = (launch.why_not() for launch in plan_type.launches(spec, direction))
        return next((text for text in refused if text), None) or too_large(plan_type, spec, direction)

    return Implementation(plan_type, algorithm=algorithm, why_not=reason, note=note)


def too_large(plan_type: type[Plan], spec: Spec, direction: str) -> str | None:
    """The reason why a call's arrays and scratch do not fit into the device's free memory, or None."""
    free = CUDA.free_bytes()
    arrays = sum(math.prod(a.shape) for a in arguments(spec, direction) if a.shape is not None) * ITEMSIZE[spec.dtype]
    scratch = plan_type.scratch_bytes(spec, (direction,))
    if free is None or arrays + scratch <= free:
        return None
    return f"needs {arrays} bytes of arrays and {scratch} of scratch; {free} bytes are free on the device"


def needs_wide_indices(spec: ConvSpec | PoolSpec, direction: str) -> str | None:
    """The reason why a kernel that counts in 32 bits cannot compute this, or None."""
    sizes = [math.prod(argument.shape) for argument in arguments(spec, direction) if argument.shape is not None]
    sides = [side + sum(pads) for side, pads in zip(spec.x_shape[1:3], spec.pads, strict=True)]
    steps = [*spec.stride, *spec.dilation] if isinstance(spec, ConvSpec) else spec.step
    most = max(*sizes, *sides, *steps)
    return f"its indices have 32 bits, and do not count to {most}" if most >= 2**31 else None


def int32s(*values: int) -> tuple[np.int32, ...]:
    """Numbers as a kernel takes them whose argument is "UniTuple(int32, ...)"."""
    return tuple(map(np.int32, values))


def flat(array: Any) -> Any:
    """The same memory as a vector, whose element a kernel finds with one addition."""
    return array.reshape(array.size)


@device_function
def divide(value, divisor):
    """Quotient and remainder, of numbers from 0 to 2^31 - 1: unsigned, which leaves no rounding to mend."""
    quotient = np.int32(np.uint32(value) // np.uint32(divisor))
    return quotient, np.int32(value - quotient * divisor)


@device_function
def unravel(index, shape):
    """Position in a row-major 4-D array of fewer than 2^31 elements of the one with this flat index."""
    rest, m = divide(index, shape[3])
    rest, k = divide(rest, shape[2])
    n, i = divide(rest, shape[1])
    return n, i, k, m


@device_function
def position(n, row, column, c, height, width, channels):
    """Index of this element in the flat array; unsigned, since numba asks a signed index whether it is negative."""
    return np.uint64(np.int32(((n * height + row) * width + column) * channels + c))


@device_function
def under(window, pool, stride, before, size):
    """First pixel under a pooling window along one axis, and the one past its last: padding is left out."""
    start = window * stride - before
    return max(start, 0), min(start + pool, size)


@device_function
def covering(pixel, pool, stride, before, windows):
    """First pooling window over a pixel along one axis, and the one past the last."""
    place = pixel + before
    first, _ = divide(max(place - pool + stride, 0), stride)
    last, _ = divide(place, stride)
    return first, min(last + 1, windows)
