"""CuPy as the plans here use it: arrays of the CUDA device seen without a copy, and matrix products in cuBLAS.

An output that is also an input of a call is one and the same view: CuPy copies an input that merely overlaps.

A plan computes with an array module ``xp`` and with ``multiply``, so that NumPy can stand in for the device in tests;
what is CuPy's own stands in this file. CuPy is imported when a plan is made.

Products go to cuBLAS itself, because CuPy's matmul copies what is not contiguous, allocates pointers for what is
broadcast, and chooses TF32 by a global setting that its batched products ignore. Here every product names its
arithmetic: CUBLAS_COMPUTE_32F, or CUBLAS_COMPUTE_32F_FAST_TF32; and as a handle whose math mode is TF32 might make the
former into the latter, that mode is the default one during a call, and as before afterwards.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numba.core import config

from impls.contract import BFLOAT16, FLOAT32, TF32, Call, Implementation, Plan
from impls.cuda_packages import cupy_conflict, explained
from impls.cuda_setup import CudaPlan, current_stream, too_large
from impls.devices import CUDA
from impls.specs import ITEMSIZE, Spec, arguments

BLOCK_BYTES = 32 << 20
"""What scratch is cut to: less than the second-level cache of an A100 or H100 holds."""

ROWS_PER_SUM = 1 << 16
"""Rows that one product with ones adds up."""

MOST_PER_SIDE = 2**31 - 1
"""cuBLAS counts rows, columns and matrices in 32 bits."""

TENSOR_CORES = 80
"""The first compute capability (8.0) that multiplies in TF32 and in bfloat16."""

ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)
"""What cuBLAS scales products, and what was there before, with; it reads them through their addresses."""

CUDA_R_16BF = 14
"""bfloat16 among the types of cuBLAS (cudaDataType of its library_types.h), which CuPy takes and has no name for."""

COLUMN_MAJOR, TRANSPOSED = 0, 1
"""CUBLAS_OP_N and CUBLAS_OP_T."""


class CupyPlan(Plan):
    """Base of the plans that compute with CuPy: ``bind`` shows every array to CuPy once."""

    device = CUDA
    arithmetic: ClassVar[str] = FLOAT32

    @classmethod
    def allocate(cls, count):
        """Scratch memory on the device, as the kernels of Numba take it."""
        return CudaPlan.allocate(count)

    @staticmethod
    def module() -> Any:
        """The array module that computes."""
        return load("cupy")

    @staticmethod
    def seen(array: Any) -> Any:
        """An array of the device as the module's own, over the same memory."""
        return load("cupy").asarray(array)

    def prepare(self) -> None:
        """Load the libraries, and see the scratch memory."""
        self.xp = self.module()
        if self.workspace is not None:
            self.workspace = self.seen(self.workspace)

    def multiply(self, a: Any, b: Any, out: Any, add: bool = False) -> None:
        """out = a @ b, or out += a @ b, for stacks of matrices (G, rows, columns); see ``gemm``."""
        gemm(a, b, out, add, self.arithmetic)

    def sum_rows(self, ones: Any, rows: Any, out: Any) -> None:
        """out (columns,) = the sum of rows (R, columns) as products with ``ones`` (1, 1, R or fewer), filled here."""
        ones.fill(1)
        for first in range(0, len(rows), ones.size):
            part = rows[first : first + ones.size]
            self.multiply(ones[:, :, : len(part)], part[None], out[None, None], add=first > 0)

    def bind(self, direction, *arrays):
        """Fix the addresses: CuPy's views of the arrays are made here, not in the call."""
        views = [None if array is None else self.seen(array) for array in arrays]
        inner = super().bind(direction, *views)
        outputs = [a for a, given in zip(arrays, arguments(self.spec, direction), strict=True) if given.is_output]
        return Call(self.enqueuing(inner.run), tuple(outputs), self.device.get)

    @staticmethod
    def enqueuing(run: Callable[[], None]) -> Callable[[], None]:
        """The same work on the stream that is current when it is called, in cuBLAS' default math mode."""

        def on_current_stream() -> None:
            with _computing_on(current_stream()), plain_math():
                run()

        return on_current_stream


def implementation(plan_type: type[CupyPlan], algorithm: str, note: str) -> Implementation:
    """The record of a plan with CuPy, with the reasons of all: dtype, sizes, the device's memory."""

    def reason(spec: Any, direction: str) -> str | None:
        if spec.dtype != FLOAT32:
            return f"computes in {plan_type.arithmetic}, not in {spec.dtype}"
        sides = (side for a in arguments(spec, direction) for side in a.shape or ())
        if max(spec.terms, *sides) > MOST_PER_SIDE:
            return f"would need matrices of more than {MOST_PER_SIDE} rows or columns"
        return too_large(plan_type, spec, direction)

    requires = missing_tf32 if plan_type.arithmetic == TF32 else missing
    return Implementation(
        plan_type, algorithm=algorithm, arithmetic=plan_type.arithmetic, why_not=reason, requires=requires, note=note
    )


@cache
def missing() -> str | None:
    """None where CuPy added and multiplied on a device, else one sentence."""
    if config.ENABLE_CUDASIM:
        return "CuPy cannot see the arrays of Numba's simulator"
    if reason := cupy_conflict():
        return reason
    try:
        cupy = load("cupy")
        cublas()
    except ImportError as error:
        return explained(f"CuPy cannot be imported, install the extra cuda12 or cuda13: {first_line(error)}")
    if not cupy.is_available():
        return explained("CuPy sees no CUDA device or driver")
    try:
        one = cupy.ones((1, 1, 1), np.float32)
        two = cupy.add(one, one)
        gemm(two, two, one, True, FLOAT32)
        right = bool(one.item() == 5)
    except Exception as error:  # any failure of a driver or a compiler is a reason, not a crash
        return explained(f"CuPy cannot use the CUDA device: {type(error).__name__}: {first_line(error)}")
    return None if right else "CuPy does not compute 1 + 2 * 2 = 5 on the CUDA device"


@cache
def missing_tf32() -> str | None:
    """None where the device multiplies in TF32, and so in bfloat16 too, else one sentence."""
    if reason := missing():
        return reason
    capability = int(load("cupy").cuda.Device().compute_capability)
    if capability >= TENSOR_CORES:
        return None
    return f"TF32 needs compute capability 8.0; the device has {capability / 10}"


@cache
def load(name: str) -> Any:
    """A module of CuPy; what it warns of while it is imported is reported by ``cuda_packages``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def cublas() -> Any:
    """CuPy's binding of cuBLAS, asked of its package: that loads the library from its wheel. Raises ImportError."""
    return load("cupy_backends.cuda.libs").cublas


def cublas_handle() -> int:
    """CuPy's handle of cuBLAS for this thread and device."""
    return int(load("cupy.cuda.device").get_cublas_handle())


def first_line(error: Exception) -> str:
    """What an error says first: CuPy's texts run over pages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def gemm(a: Any, b: Any, out: Any, add: bool, arithmetic: str) -> None:
    """out = a @ b, or out += a @ b, for stacks of float32 matrices (G, rows, columns) on the device, in cuBLAS.

    ``out`` has contiguous rows; the factors have contiguous rows or columns. cuBLAS takes column-major matrices, and
    out read so is its own transpose: b^T @ a^T. Factors in bfloat16 are arrays of uint16 with its bits.
    """
    blas, real = cublas(), load("cupy.cuda.runtime").CUDA_R_32F
    factor = CUDA_R_16BF if arithmetic == BFLOAT16 else real
    compute = blas.CUBLAS_COMPUTE_32F_FAST_TF32 if arithmetic == TF32 else blas.CUBLAS_COMPUTE_32F
    (b_order, b_leading, b_step), (a_order, a_leading, a_step) = layout(b), layout(a)
    out_order, out_leading, out_step = layout(out)
    if out_order != COLUMN_MAJOR:
        raise ValueError(f"the rows of a result must be contiguous; strides {out.strides} are not")
    count, rows, columns = out.shape
    blas.gemmStridedBatchedEx(
        cublas_handle(),
        b_order,
        a_order,
        columns,
        rows,
        a.shape[2],
        ONE.ctypes.data,
        b.data.ptr,
        factor,
        b_leading,
        b_step,
        a.data.ptr,
        factor,
        a_leading,
        a_step,
        (ONE if add else ZERO).ctypes.data,
        out.data.ptr,
        real,
        out_leading,
        out_step,
        count,
        compute,
        blas.CUBLAS_GEMM_DEFAULT,
    )


def layout(stack: Any) -> tuple[int, int, int]:
    """How cuBLAS reads the transposes of (G, rows, columns): operation, leading dimension, step to the next matrix.

    Raises ValueError where neither the rows nor the columns are contiguous.
    """
    _, rows, columns = stack.shape
    step, between_rows, between_columns = (stride // stack.itemsize for stride in stack.strides)
    if columns == 1 or between_columns == 1:
        return COLUMN_MAJOR, between_rows if rows > 1 else columns, step
    if rows == 1 or between_rows == 1:
        return TRANSPOSED, between_columns, step
    raise ValueError(f"neither rows nor columns are contiguous: shape {stack.shape}, strides {stack.strides}")


@contextmanager
def plain_math() -> Iterator[None]:
    """Keep cuBLAS' math mode at its default within the block, so that what a product asks for is what it gets."""
    blas, handle = cublas(), cublas_handle()
    before = blas.getMathMode(handle)
    blas.setMathMode(handle, blas.CUBLAS_DEFAULT_MATH)
    try:
        yield
    finally:
        blas.setMathMode(handle, before)


@contextmanager
def _computing_on(stream: Any) -> Iterator[None]:
    """Send CuPy's work to the stream of Numba's launches; 0 is the default stream of both."""
    if isinstance(stream, int):
        yield
        return
    with load("cupy").cuda.Stream.from_external(stream):
        yield


def finish(xp: Any, y: Any, b: Any, activation: str | None) -> None:
    """Add the bias, where there is one, and apply the activation, in place."""
    if b is not None:
        xp.add(y, b, out=y)
    if activation == "relu":
        xp.maximum(y, 0, out=y)


def ones_shape() -> tuple[int, int, int]:
    """What ``sum_rows`` multiplies with."""
    return 1, 1, ROWS_PER_SUM


def samples_per_block(spec: Spec, sample_bytes: int) -> int:
    """Samples whose scratch stays within BLOCK_BYTES, at least one."""
    return max(1, min(spec.batch, BLOCK_BYTES // sample_bytes))


def blocks(total: int, size: int) -> list[slice]:
    """``range(total)`` in slices of at most ``size``."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def byte_count(shape: tuple[int, ...]) -> int:
    """Bytes of a float32 scratch array, rounded up so that the next one is aligned to 256 bytes, as CUDA allocates."""
    return -(-math.prod(shape) * ITEMSIZE[FLOAT32] // 256) * 256
