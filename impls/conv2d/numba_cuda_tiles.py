"""Convolution as an implicit matrix product in tiles of shared memory and registers; see impls.cuda_gemm."""

from __future__ import annotations

from impls.contract import GEMM
from impls.cuda_gemm import GemmPlan, why_not
from impls.cuda_setup import implementation

IMPL = implementation(
    GemmPlan,
    algorithm=GEMM,
    note="implicit GEMM; with one filter a group (depthwise) most of a tile is in vain: numba_cuda_direct is for those",
    why_not=lambda spec, direction: why_not(spec),
)
