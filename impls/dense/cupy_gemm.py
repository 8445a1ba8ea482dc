"""One cuBLAS product per direction through CuPy, in float32; the bias' gradient is a product with ones."""

from __future__ import annotations

from impls.contract import GEMM
from impls.cupy_setup import CupyPlan, byte_count, finish, implementation, ones_shape
from impls.specs import GRAD_WEIGHTS, DenseSpec


class CupyDense(CupyPlan):
    """Transposed factors are views, which cuBLAS reads as they are."""

    spec: DenseSpec

    @classmethod
    def scratch_bytes(cls, spec, directions):
        return byte_count(ones_shape()) if GRAD_WEIGHTS in directions and spec.bias else 0

    def forward(self, x, w, b, out):
        self.multiply(x[None], w[None], out[None])
        finish(self.xp, out, b, self.spec.activation)

    def grad_weights(self, x, dy, dw, db):
        self.multiply(x.T[None], dy[None], dw[None])
        if db is not None:
            self.sum_rows(self.scratch(ones_shape()), dy, db)

    def grad_input(self, dy, w, dx):
        self.multiply(dy[None], w.T[None], dx[None])


IMPL = implementation(CupyDense, GEMM, note="CuPy: cuBLAS in float32")
