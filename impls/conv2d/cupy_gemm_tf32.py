"""Unroll every window into a row, then multiply in TF32 on tensor cores (im2col + GEMM through CuPy)."""

from __future__ import annotations

from impls.contract import GEMM, TF32
from impls.conv2d.cupy_gemm import CupyConv
from impls.cupy_setup import implementation


class CupyConvTF32(CupyConv):
    """The same products; their factors are cut to 11 bits."""

    arithmetic = TF32


IMPL = implementation(CupyConvTF32, GEMM, note="CuPy: im2col in blocks, cuBLAS in TF32")
