"""The definition of convolution in float64: one matrix product per kernel tap, wherever the arrays lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from impls.arrays import array_module
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


def padded(spec: ConvSpec, x: Any) -> Any:
    """x in float64 with its border of zeros."""
    return array_module(x).pad(x.astype(np.float64), ((0, 0), *spec.pads, (0, 0)))


class Reference(Plan):
    """Computes in float64 whatever the dtype of its arrays."""

    converts = True
    spec: ConvSpec

    def forward(self, x, w, b, out):
        image, w = padded(self.spec, x), w.astype(np.float64)
        y = array_module(x).zeros(self.spec.y_shape)
        for a, c, rows, columns in taps(self.spec):
            for channels, filters in groups(self.spec):
                y[..., filters] += image[:, rows, columns, channels] @ w[a, c, :, filters]
        if b is not None:
            y += b
        out[...] = y.clip(0) if self.spec.activation == "relu" else y

    def grad_weights(self, x, dy, dw, db):
        image, dy = padded(self.spec, x), dy.astype(np.float64)
        for channels, filters in groups(self.spec):
            rows_of_dy = dy[..., filters].reshape(-1, filters.stop - filters.start)
            for a, c, rows, columns in taps(self.spec):
                seen = image[:, rows, columns, channels]
                dw[a, c, :, filters] = seen.reshape(-1, seen.shape[-1]).T @ rows_of_dy
        if db is not None:
            db[...] = dy.sum(axis=(0, 1, 2))

    def grad_input(self, dy, w, dx):
        spec, dy, w = self.spec, dy.astype(np.float64), w.astype(np.float64)
        (top, bottom), (left, right) = spec.pads
        sides = (spec.height + top + bottom, spec.width + left + right)
        image = array_module(dy).zeros((spec.batch, *sides, spec.channels))
        for a, c, rows, columns in taps(spec):
            for channels, filters in groups(spec):
                image[:, rows, columns, channels] += dy[..., filters] @ w[a, c, :, filters].T
        dx[...] = image[:, top : top + spec.height, left : left + spec.width]


IMPL = Implementation(Reference, algorithm=DIRECT, arithmetic=FLOAT64, note="the definition, float64")
