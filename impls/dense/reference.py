"""The definition of a dense layer in float64: one matrix product per direction. The truth for all others."""

from __future__ import annotations

import numpy as np

from impls.contract import DIRECT, FLOAT64, Implementation, Plan


class Reference(Plan):
    """Computes in float64 whatever the dtype of its arrays."""

    converts = True

    def forward(self, x, w, b, out):
        y = x.astype(np.float64) @ w.astype(np.float64)
        if b is not None:
            y += b
        out[...] = y.clip(0) if self.spec.activation == "relu" else y

    def grad_weights(self, x, dy, dw, db):
        dw[...] = x.astype(np.float64).T @ dy.astype(np.float64)
        if db is not None:
            db[...] = dy.astype(np.float64).sum(axis=0)

    def grad_input(self, dy, w, dx):
        dx[...] = dy.astype(np.float64) @ w.astype(np.float64).T


IMPL = Implementation(Reference, algorithm=DIRECT, arithmetic=FLOAT64, note="the definition, float64")
