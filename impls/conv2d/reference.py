"""The definition of convolution in float64: one matrix product per kernel tap.."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from impls.contract import DIRECT, FLOAT64, Implementation, Plan
from impls.specs import ConvSpec


def taps(spec: ConvSpec) -> Iterator[tuple[int, int, slice, slice]]:
    """(a, b, rows, columns): tap (a, b) of the kernel meets these rows and columns of the padded image."""
    _, out_h, out_w, _ = spec.y_shape
    (kh, kw), (sh, sw), (dh, dw) = spec.kernel, spec.stride, spec.dilation
    for a in range(kh):
        for b in range(kw):
            rows = slice(a * dh, a * dh + (out_h - 1) * sh + 1, sh)
            columns = slice(b * dw, b * dw + (out_w - 1) * sw + 1, sw)
            yield a, b, rows, columns


def groups(spec: ConvSpec) -> Iterator[tuple[slice, slice]]:
    """(channels, filters) of every group."""
    c, f = spec.channels // spec.groups, spec.filters // spec.groups
    for g in range(spec.groups):
        yield slice(g * c, (g + 1) * c), slice(g * f, (g + 1) * f)


def padded(spec: ConvSpec, x: np.ndarray) -> np.ndarray:
    """x in float64 with its border of zeros."""
    return np.pad(np.asarray(x, np.float64), ((0, 0), *spec.pads, (0, 0)))


class Reference(Plan):
    """Computes in float64 whatever the dtype of its arrays."""

    spec: ConvSpec

    def forward(self, x, w, b, out):
        xp = padded(self.spec, x)
        y = np.zeros(self.spec.y_shape)
        for a, c, rows, columns in taps(self.spec):
            for channels, filters in groups(self.spec):
                y[..., filters] += xp[:, rows, columns, channels] @ np.asarray(w[a, c, :, filters], np.float64)
        if b is not None:
            y += b
        out[...] = np.maximum(y, 0) if self.spec.activation == "relu" else y

    def grad_weights(self, x, dy, dw, db):
        xp = padded(self.spec, x)
        for channels, filters in groups(self.spec):
            rows_of_dy = np.asarray(dy[..., filters], np.float64).reshape(-1, filters.stop - filters.start)
            for a, c, rows, columns in taps(self.spec):
                seen = xp[:, rows, columns, channels]
                dw[a, c, :, filters] = seen.reshape(-1, seen.shape[-1]).T @ rows_of_dy
        if db is not None:
            db[...] = np.asarray(dy, np.float64).sum(axis=(0, 1, 2))

    def grad_input(self, dy, w, dx):
        spec = self.spec
        (top, bottom), (left, right) = spec.pads
        dxp = np.zeros((spec.batch, spec.height + top + bottom, spec.width + left + right, spec.channels))
        for a, c, rows, columns in taps(spec):
            for channels, filters in groups(spec):
                dxp[:, rows, columns, channels] += (
                    np.asarray(dy[..., filters], np.float64) @ np.asarray(w[a, c, :, filters], np.float64).T
                )
        dx[...] = dxp[:, top : top + spec.height, left : left + spec.width]


IMPL = Implementation(Reference, algorithm=DIRECT, arithmetic=FLOAT64, note="the definition, float64")
