"""cv2.dilate over images stacked with their borders: every position's maximum, of which the strided ones are kept.

Forward only: OpenCV does not say where a maximum was. Memory: two copies of one block of images. OpenCV's maximum may
drop a NaN, which NumPy's and the reference's do not.
"""

from __future__ import annotations

import cv2
import numpy as np

from impls.contract import DIRECT, Implementation, Plan, float32_only
from impls.specs import FORWARD, PoolSpec
from impls.windows import Stack, stacked


class OpenCVMax(Plan):
    """One dilation per block of samples and of channels."""

    spec: PoolSpec
    offers = (FORWARD,)

    @classmethod
    def scratch_bytes(cls, spec, directions):
        return 2 * Stack(spec).image_bytes

    def prepare(self):
        self.stack = Stack(self.spec)
        self.element = np.ones(self.spec.pool, np.uint8)

    def forward(self, x, out):
        stack = self.stack
        for samples, channels in stack.blocks:
            images = self.scratch(stack.shape(samples, channels))
            largest = self.scratch(images.shape, offset=stack.image_bytes)
            images.fill(-np.inf)
            stack.pixels(images)[...] = x[samples, :, :, channels]
            cv2.dilate(stacked(images), self.element, dst=stacked(largest), anchor=(0, 0))
            out[samples, :, :, channels] = stack.outputs(largest)


IMPL = Implementation(OpenCVMax, algorithm=DIRECT, why_not=float32_only, note="cv2.dilate; may drop a NaN")
