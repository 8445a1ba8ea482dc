"""One BLAS product per direction; bias and ReLU go over each block of rows while it is in the cache."""

from __future__ import annotations

import numpy as np

from impls.contract import GEMM, Implementation, Plan, float32_only
from impls.specs import DenseSpec

BLOCK_VALUES = 1 << 18
"""Outputs of one block: 1 MiB, what a core's second-level cache holds."""


class NumpyDense(Plan):
    """np.matmul into the given arrays; transposed operands are views that BLAS reads as they are."""

    spec: DenseSpec

    def forward(self, x, w, b, out):
        rows = max(1, BLOCK_VALUES // self.spec.units)
        for first in range(0, self.spec.batch, rows):
            y = out[first : first + rows]
            np.matmul(x[first : first + rows], w, out=y)
            if b is not None:
                np.add(y, b, out=y)
            if self.spec.activation == "relu":
                np.maximum(y, 0, out=y)

    def grad_weights(self, x, dy, dw, db):
        np.matmul(x.T, dy, out=dw)
        if db is not None:
            np.sum(dy, axis=0, out=db)

    def grad_input(self, dy, w, dx):
        np.matmul(dy, w.T, out=dx)


IMPL = Implementation(NumpyDense, algorithm=GEMM, why_not=float32_only, note="BLAS, as many threads as it has")
