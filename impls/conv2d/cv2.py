"""OpenCV's filter2D, one call per channel and filter over the whole batch.

Kernels below a size are summed directly, in the type of the image and skipping zero weights. From that size on OpenCV
multiplies spectra instead, in float64 even for float32 images. The size stands in OpenCV's source
(modules/imgproc/src/filter.dispatch.cpp; found again by trial in 5.0): 130 pixels of a dilated kernel for float32
where the processor has SSE3, 50 otherwise and for float64.
"""

from __future__ import annotations

import cv2

from impls.contract import DIRECT, FFT, Implementation
from impls.conv2d._stacked import StackedCorrelation
from impls.specs import ConvSpec

SSE3 = 3
"""CV_CPU_SSE3, which the Python module does not name."""


class FilterTwoD(StackedCorrelation):
    """filter2D correlates and does not flip; outside the image BORDER_CONSTANT is zero."""

    @staticmethod
    def correlate(image, kernel, anchor, out):
        cv2.filter2D(image, -1, kernel, dst=out, anchor=anchor[::-1], borderType=cv2.BORDER_CONSTANT)


def algorithm(spec: ConvSpec, direction: str) -> str:
    """What filter2D does with a kernel of this size."""
    rows, columns = spec.extent
    least = 130 if spec.dtype == "float32" and cv2.checkHardwareSupport(SSE3) else 50
    return FFT if rows * columns >= least else DIRECT


IMPL = Implementation(
    FilterTwoD,
    algorithm=algorithm,
    arithmetic=lambda spec, direction: spec.dtype,
    note="cv2.filter2D per channel and filter on the stacked batch; a float64 DFT for large kernels",
)
