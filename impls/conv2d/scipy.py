"""SciPy's correlate2d, one call per channel and filter over the whole batch: the plain sum, on one thread.

correlate2d returns a new array at every call: unlike the contract asks, this allocates.
"""

from __future__ import annotations

from scipy.signal import correlate2d

from impls.contract import DIRECT, Implementation
from impls.conv2d._stacked import StackedCorrelation


class Correlate2D(StackedCorrelation):
    """``full`` holds every position of the kernel on the image; those that the anchor asks for are cut out."""

    @staticmethod
    def correlate(image, kernel, anchor, out):
        top, left = (k - 1 - a for k, a in zip(kernel.shape, anchor, strict=True))
        out[...] = correlate2d(image, kernel)[top : top + out.shape[0], left : left + out.shape[1]]


IMPL = Implementation(
    Correlate2D,
    algorithm=DIRECT,
    arithmetic=lambda spec, direction: spec.dtype,
    note="scipy.signal.correlate2d per channel and filter on the stacked batch; allocates its results",
)
