"""One cuBLAS product per direction through CuPy, in TF32 on tensor cores."""

from __future__ import annotations

from impls.contract import GEMM, TF32
from impls.cupy_setup import implementation
from impls.dense.cupy_gemm import CupyDense


class CupyDenseTF32(CupyDense):
    """The same products; their factors are cut to 11 bits."""

    arithmetic = TF32


IMPL = implementation(CupyDenseTF32, GEMM, note="CuPy: cuBLAS in TF32")
