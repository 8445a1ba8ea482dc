"""Convolution by a library that correlates one image with one kernel: one call per channel and filter for all samples.

The samples of a channel stand in one tall image, one above the other, with rows of zeros between them; columns left and
right of it are zeros to the library. Strides are honest waste: everything is computed, then every s-th pixel is taken.
Dilated kernels are spread out with zeros. The input gradient is the same with dy, spread out by the stride, and the
kernel turned by half a turn.

Memory: the tall images of all channels, for as many samples as fit ``PLANES_BYTES``, and every kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from impls.contract import ALIGNMENT, Plan
from impls.specs import FORWARD, GRAD_INPUT, ITEMSIZE, ConvSpec, Shape

PLANES_BYTES = 48 << 20
"""The largest set of tall images, unless a single sample needs more."""


@dataclass(frozen=True)
class Axis:
    """The rows, or the columns, of one sample in its tall image.

    Output q (every ``step``-th from ``shift`` on) is the kernel with its ``anchor`` on pixel q of the image. The
    sample's pixels are ``spread`` apart, from ``first`` on.
    """

    pixels: int
    spread: int
    before: int
    """Padding in front; negative where the first outputs are not wanted."""
    outputs: int
    step: int
    extent: int

    @property
    def first(self) -> int:
        """Zeros in front that the anchor cannot express: it lies inside the kernel."""
        return max(0, self.before - (self.extent - 1))

    @property
    def anchor(self) -> int:
        """The kernel's pixel that lies on the pixel it computes."""
        return min(max(0, self.before), self.extent - 1)

    @property
    def inputs(self) -> slice:
        """Where the sample's pixels go."""
        return slice(self.first, self._end, self.spread)

    @property
    def taken(self) -> slice:
        """Which pixels are outputs."""
        shift = max(0, -self.before)
        return slice(shift, shift + (self.outputs - 1) * self.step + 1, self.step)

    @property
    def length(self) -> int:
        """Pixels of a sample that has nothing after it."""
        return max(self._end, self.taken.stop)

    @property
    def pitch(self) -> int:
        """Pixels from a sample to the next, so that no window of an output reaches two of them."""
        above = self._end + self.anchor
        below = self.taken.stop - 1 - self.anchor + self.extent - self.first
        return max(above, below, self.taken.stop)

    @property
    def _end(self) -> int:
        return self.first + (self.pixels - 1) * self.spread + 1


def axes(spec: ConvSpec, direction: str) -> tuple[Axis, Axis]:
    """(rows, columns) of the correlation that computes a direction."""
    shapes = zip((spec.height, spec.width), spec.y_shape[1:3], spec.pads, spec.stride, spec.extent, strict=True)
    if direction == FORWARD:
        rows, columns = (Axis(side, 1, pads[0], out, s, extent) for side, out, pads, s, extent in shapes)
    else:
        rows, columns = (Axis(out, s, extent - 1 - pads[0], side, 1, extent) for side, out, pads, s, extent in shapes)
    return rows, columns


class StackedCorrelation(Plan):
    """Everything but the library's call, which a subclass gives as ``correlate``."""

    spec: ConvSpec
    offers = (FORWARD, GRAD_INPUT)

    @staticmethod
    def correlate(image: np.ndarray, kernel: np.ndarray, anchor: tuple[int, int], out: np.ndarray) -> None:
        """out[i, j] = sum over a, b of image[i + a - anchor[0], j + b - anchor[1]] * kernel[a, b]; zero outside."""
        raise NotImplementedError

    @classmethod
    def parts(cls, spec: ConvSpec, direction: str) -> dict[str, Shape]:
        """The scratch arrays of a direction; ``images`` is (channels, samples * pitch, columns)."""
        rows, columns = axes(spec, direction)
        inputs, outputs = spec.channels, spec.filters
        if direction == GRAD_INPUT:
            inputs, outputs = outputs, inputs
        sample = inputs * rows.pitch * columns.length * ITEMSIZE[spec.dtype]
        samples = max(1, min(spec.batch, PLANES_BYTES // sample))
        plane = (samples * rows.pitch, columns.length)
        return {
            "images": (inputs, *plane),
            "kernels": (outputs, inputs // spec.groups, *spec.extent),
            "total": plane,
            "product": plane,
        }

    @classmethod
    def scratch_bytes(cls, spec, directions):
        sizes = ([_bytes(shape, spec.dtype) for shape in cls.parts(spec, d).values()] for d in directions)
        return max((sum(each) for each in sizes), default=0)

    def forward(self, x, w, b, out):
        arrays = self._arrays(FORWARD)
        self._spread_kernels(arrays["kernels"], w.transpose(3, 2, 0, 1))
        self._correlate_all(FORWARD, arrays, x, b, out, self.spec.activation == "relu")

    def grad_input(self, dy, w, dx):
        arrays = self._arrays(GRAD_INPUT)
        kh, kw, c, _ = w.shape
        turned = w.reshape(kh, kw, c, self.spec.groups, -1)[::-1, ::-1].transpose(3, 2, 4, 0, 1)
        self._spread_kernels(arrays["kernels"].reshape(self.spec.groups, c, -1, *self.spec.extent), turned)
        self._correlate_all(GRAD_INPUT, arrays, dy, None, dx, False)

    def _arrays(self, direction: str) -> dict[str, np.ndarray]:
        arrays, offset = {}, 0
        for name, shape in self.parts(self.spec, direction).items():
            arrays[name] = self.scratch(shape, self.spec.dtype, offset)
            offset += _bytes(shape, self.spec.dtype)
        return arrays

    def _spread_kernels(self, kernels: np.ndarray, w: np.ndarray) -> None:
        """One contiguous kernel per output and input channel, zeros between the taps of a dilated one."""
        dh, dw = self.spec.dilation
        kernels.fill(0)
        kernels[..., ::dh, ::dw] = w

    def _correlate_all(self, direction, arrays, x, b, out, relu):
        rows, columns = axes(self.spec, direction)
        anchor = (rows.anchor, columns.anchor)
        images, kernels = arrays["images"], arrays["kernels"]
        samples = images.shape[1] // rows.pitch
        per_group = len(kernels) // self.spec.groups
        images.fill(0)
        for start in range(0, len(x), samples):
            n = min(samples, len(x) - start)
            stacked = images[:, : n * rows.pitch]
            total, product = (arrays[name][: n * rows.pitch] for name in ("total", "product"))
            by_sample = stacked.reshape(len(images), n, rows.pitch, -1)
            by_sample[:, :, rows.inputs, columns.inputs] = x[start : start + n].transpose(3, 0, 1, 2)
            for f, filters in enumerate(kernels):
                channels = stacked[f // per_group * len(filters) :]
                self.correlate(channels[0], filters[0], anchor, total)
                for image, kernel in zip(channels[1:], filters[1:], strict=False):
                    self.correlate(image, kernel, anchor, product)
                    np.add(total, product, out=total)
                if b is not None:
                    np.add(total, b[f], out=total)
                if relu:
                    np.maximum(total, 0, out=total)
                out[start : start + n, :, :, f] = total.reshape(n, rows.pitch, -1)[:, rows.taken, columns.taken]


def _bytes(shape: Shape, dtype: str) -> int:
    """Bytes of a scratch array, rounded up so that the next one is aligned."""
    return -(-math.prod(shape) * ITEMSIZE[dtype] // ALIGNMENT) * ALIGNMENT
