"""The pixels that tap (a, b) of every pooling window sees, as strided views of a padded image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from impls.specs import PoolSpec


def taps(spec: PoolSpec) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of the padded image under each tap of all windows, in row-major order of the taps."""
    _, out_h, out_w, _ = spec.y_shape
    sh, sw = spec.step
    for a in range(spec.pool[0]):
        for b in range(spec.pool[1]):
            yield slice(a, a + (out_h - 1) * sh + 1, sh), slice(b, b + (out_w - 1) * sw + 1, sw)


def padded(spec: PoolSpec, x: np.ndarray, fill: float) -> np.ndarray:
    """x in float64 with a border of ``fill``."""
    return np.pad(np.asarray(x, np.float64), ((0, 0), *spec.pads, (0, 0)), constant_values=fill)


def inside(spec: PoolSpec, xp: np.ndarray) -> np.ndarray:
    """The image without its border, a view."""
    (top, _), (left, _) = spec.pads
    return xp[:, top : top + spec.height, left : left + spec.width]


def counts(spec: PoolSpec) -> np.ndarray:
    """(OH, OW, 1): the real pixels under each window."""
    ones = np.pad(np.ones((spec.height, spec.width)), spec.pads)
    total = np.zeros(spec.y_shape[1:3])
    for rows, columns in taps(spec):
        total += ones[rows, columns]
    return total[..., np.newaxis]
