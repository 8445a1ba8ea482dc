"""OpenCV's filters over stacked images.

Windows that tile the images are one cv2.resize of the whole batch: by area forward, by the nearest neighbour back.
It multiplies by 1 / area, so only areas that are powers of two, where that is exact, go this way. All other windows
are a cv2.sepFilter2D of ones over the images with their borders, of which the strided positions are kept; the
gradient is the same filter over the shares, put at the strided positions among zeros. (cv2.boxFilter is faster, but
slides its sums along, which carries roundoff, infinities and NaN from one window to the next.)

Memory: none for tiles, else two copies of one block of images.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from impls.contract import DIRECT, Implementation, Plan, float32_only
from impls.specs import FORWARD, GRAD_INPUT, PoolSpec
from impls.windows import OPENCV_CHANNELS, Stack, counts, stacked, tiles


class OpenCVAverage(Plan):
    """One call for the batch where windows tile the images, else one filter per block of samples and of channels."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    @classmethod
    def scratch_bytes(cls, spec, directions):
        return 0 if _tiles(spec) else 2 * Stack(spec).image_bytes

    def prepare(self):
        spec = self.spec
        self.stack = Stack(spec)
        self.counts = counts(spec).astype(np.float32)
        self.ones = (np.ones(spec.pool[1], np.float32), np.ones(spec.pool[0], np.float32))
        self.run_forward, self.run_grad_input = (
            (self._shrink, self._enlarge) if _tiles(spec) else (self._filter, self._filter_back)
        )

    def forward(self, x, out):
        self.run_forward(x, out)

    def grad_input(self, x, y, dy, dx):
        self.run_grad_input(dy, dx)

    def _shrink(self, x, out):
        """One resize from all rows of all samples."""
        cv2.resize(stacked(x), _size(out), dst=stacked(out), interpolation=cv2.INTER_AREA)

    def _enlarge(self, dy, dx):
        """Every pixel of a window gets its gradient, then its share."""
        cv2.resize(stacked(dy), _size(dx), dst=stacked(dx), interpolation=cv2.INTER_NEAREST)
        np.multiply(dx, np.float32(1 / self.spec.terms), out=dx)

    def _filter(self, x, out):
        stack = self.stack
        for samples, channels in stack.blocks:
            images = self.scratch(stack.shape(samples, channels))
            sums = self.scratch(images.shape, offset=stack.image_bytes)
            images.fill(0)
            stack.pixels(images)[...] = x[samples, :, :, channels]
            self._add_up(images, sums, anchor=(0, 0))
            np.divide(stack.outputs(sums), self.counts, out=out[samples, :, :, channels])

    def _filter_back(self, dy, dx):
        stack = self.stack
        rows, columns = self.spec.pool
        for samples, channels in stack.blocks:
            shares = self.scratch(stack.shape(samples, channels))
            sums = self.scratch(shares.shape, offset=stack.image_bytes)
            shares.fill(0)
            np.divide(dy[samples, :, :, channels], self.counts, out=stack.outputs(shares))
            self._add_up(shares, sums, anchor=(columns - 1, rows - 1))
            dx[samples, :, :, channels] = stack.pixels(sums)

    def _add_up(self, images, sums, anchor):
        cv2.sepFilter2D(
            stacked(images), -1, *self.ones, dst=stacked(sums), anchor=anchor, borderType=cv2.BORDER_CONSTANT
        )


def _tiles(spec):
    """Whether windows cover every pixel once, have an area that is a power of two, and OpenCV takes the channels."""
    return (
        tiles(spec)
        and not any(map(any, spec.pads))
        and math.log2(spec.terms).is_integer()
        and spec.channels <= OPENCV_CHANNELS
    )


def _size(images):
    """(columns, rows) of the stacked images, as OpenCV names a size."""
    n, h, w, _ = images.shape
    return w, n * h


IMPL = Implementation(OpenCVAverage, algorithm=DIRECT, why_not=float32_only, note="cv2.resize or cv2.sepFilter2D")
