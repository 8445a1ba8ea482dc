"""Pooling windows as strided views: the pixels that each tap of all windows sees, with and without a padded image."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from impls.arrays import array_module
from impls.specs import PoolSpec

Index = tuple[slice, ...]
"""What selects a view of an (N, H, W, C) array."""

BLOCK_BYTES = 1 << 20
"""Samples are taken in blocks whose images have about this size, so that every pass but the first finds them cached."""


def taps(spec: PoolSpec) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of the padded image under each tap of all windows, in row-major order of the taps."""
    _, out_h, out_w, _ = spec.y_shape
    sh, sw = spec.step
    for a in range(spec.pool[0]):
        for b in range(spec.pool[1]):
            yield slice(a, a + (out_h - 1) * sh + 1, sh), slice(b, b + (out_w - 1) * sw + 1, sw)


def padded(spec: PoolSpec, x: np.ndarray, fill: float) -> np.ndarray:
    """x in float64 with a border of ``fill``."""
    return array_module(x).pad(x.astype(np.float64), ((0, 0), *spec.pads, (0, 0)), constant_values=fill)


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


def row_taps(spec: PoolSpec) -> list[tuple[Index, Index]]:
    """For each row of the window: (outputs, pixels), the output rows where it lies on the image, and what it sees."""
    return [
        ((slice(None), outputs), (slice(None), pixels))
        for outputs, pixels in _axis_taps(spec.height, spec.y_shape[1], spec.pool[0], spec.step[0], spec.pads[0][0])
    ]


def column_taps(spec: PoolSpec) -> list[tuple[Index, Index]]:
    """For each column of the window: (outputs, pixels), as row_taps."""
    return [
        ((slice(None), slice(None), outputs), (slice(None), slice(None), pixels))
        for outputs, pixels in _axis_taps(spec.width, spec.y_shape[2], spec.pool[1], spec.step[1], spec.pads[1][0])
    ]


def pixel_taps(spec: PoolSpec) -> list[tuple[Index, Index]]:
    """For each tap in row-major order: (outputs, pixels), the windows whose tap lies on the image, and what it sees."""
    return [
        ((slice(None), out_rows[1], out_columns[2]), (slice(None), rows[1], columns[2]))
        for out_rows, rows in row_taps(spec)
        for out_columns, columns in column_taps(spec)
    ]


def block_size(spec: PoolSpec) -> int:
    """Samples in one block: as many as BLOCK_BYTES hold, at least one."""
    return min(spec.batch, max(1, BLOCK_BYTES // (4 * spec.height * spec.width * spec.channels)))


def blocks(spec: PoolSpec) -> list[slice]:
    """The batch cut into blocks of samples."""
    size = block_size(spec)
    return [slice(first, min(first + size, spec.batch)) for first in range(0, spec.batch, size)]


def tiles(spec: PoolSpec) -> bool:
    """Whether every pixel is under exactly one window."""
    sides = zip((spec.height, spec.width), spec.y_shape[1:3], spec.pool, spec.pads, strict=True)
    return spec.step == spec.pool and all(out * pool - before >= side for side, out, pool, (before, _) in sides)


OPENCV_CHANNELS = 128
"""Channels of one image that every version of OpenCV takes."""


class Stack:
    """Blocks of samples and channels, each a stack of images with their borders, which OpenCV takes for one image.

    No window reaches from one image into the next: each lies within its own image and border.
    """

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        (top, bottom), (left, right) = spec.pads
        self.sides = (spec.height + top + bottom, spec.width + left + right)
        self.samples = block_size(spec)
        self.channels = min(spec.channels, OPENCV_CHANNELS)

    @property
    def image_bytes(self) -> int:
        """Bytes of the largest block in float32."""
        return 4 * self.samples * math.prod(self.sides) * self.channels

    @property
    def blocks(self) -> list[tuple[slice, slice]]:
        """(samples, channels) of every block."""
        starts = range(0, self.spec.channels, self.channels)
        cuts = [slice(first, min(first + self.channels, self.spec.channels)) for first in starts]
        return [(samples, channels) for samples in blocks(self.spec) for channels in cuts]

    def shape(self, samples: slice, channels: slice) -> tuple[int, ...]:
        """(n, H + border, W + border, c) of a block."""
        return (samples.stop - samples.start, *self.sides, channels.stop - channels.start)

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """The images of a block without their borders, a view."""
        return inside(self.spec, images)

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """The first tap of every window, a view shaped as the outputs."""
        rows, columns = next(taps(self.spec))
        return images[:, rows, columns]


def stacked(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) seen as one image of N * H rows, a view."""
    n, h, w, c = images.shape
    return images.reshape(n * h, w, c)


def _axis_taps(side: int, out: int, taps: int, step: int, before: int) -> list[tuple[slice, slice]]:
    """(outputs, pixels) of one axis for every tap that meets a pixel: pixel = output * step + tap - before."""
    met = []
    for tap in range(taps):
        first = max(0, -((tap - before) // step))
        last = min(out - 1, (side - 1 + before - tap) // step)
        if first <= last:
            pixel = first * step + tap - before
            met.append((slice(first, last + 1), slice(pixel, pixel + (last - first) * step + 1, step)))
    return met
