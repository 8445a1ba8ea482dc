"""A dense layer on a CUDA device: the convolution of images of one pixel; see impls.cuda_gemm."""

from __future__ import annotations

from impls.contract import GEMM
from impls.cuda_gemm import GemmPlan, why_not
from impls.cuda_setup import implementation
from impls.specs import ConvSpec, DenseSpec


def as_convolution(spec: DenseSpec) -> ConvSpec:
    """The same arrays in the same order: x (batch, 1, 1, inputs), w (1, 1, inputs, units)."""
    return ConvSpec(
        spec.batch, 1, 1, spec.inputs, spec.units, (1, 1), bias=spec.bias, dtype=spec.dtype, activation=spec.activation
    )


class DenseTiles(GemmPlan):
    """Three directions, w read turned in grad_input."""

    convolution = staticmethod(as_convolution)


IMPL = implementation(
    DenseTiles,
    algorithm=GEMM,
    note="tiles of shared memory and registers; sums are cut into slices where the batch is small",
    why_not=lambda spec, direction: why_not(as_convolution(spec)),
)
