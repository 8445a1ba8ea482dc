"""Unroll every window into a row, then multiply once (im2col + GEMM): CuPy's copies, cuBLAS' products, in float32.

Blocks of samples (of a large image: of its rows, or columns) bound the scratch and keep it in the device's cache. A
kernel of one pixel without stride and padding multiplies the image as it is. Groups are a batch of products.

The input gradient without a stride is a forward convolution of dy with the kernel turned by half a turn. With one, or
with padding wider than the kernel, products of dy and the kernel are added back tap by tap (col2im).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from impls import cupy_setup
from impls.contract import GEMM
from impls.conv2d.numpy_gemm import by_group, is_pointwise, turned
from impls.cupy_setup import CupyPlan, blocks, byte_count, finish, implementation, ones_shape
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ITEMSIZE, ConvSpec, Shape


@dataclass(frozen=True)
class Block:
    """Some output pixels of some samples: those that are unrolled at a time."""

    samples: slice
    rows: slice
    columns: slice

    def of(self, y: Any) -> Any:
        """Its part of y (N, OH, OW, F) as a stack of one matrix (1, pixels, F), a view: the pixels are contiguous."""
        part = y[self.samples, self.rows, self.columns]
        return part.reshape(1, -1, y.shape[3])


class Unrolled:
    """Where the windows of a convolution lie in a padded image, and how many of them are unrolled at a time."""

    def __init__(self, spec: ConvSpec):
        self.spec = spec
        (top, bottom), (left, right) = spec.pads
        _, out_h, out_w, _ = spec.y_shape
        self.is_padded = spec.pads != ((0, 0), (0, 0))
        self.sides = (spec.height + top + bottom, spec.width + left + right)
        image = math.prod(self.sides) * spec.channels * ITEMSIZE[spec.dtype] if self.is_padded else 0
        pixel = spec.terms * spec.groups * ITEMSIZE[spec.dtype]
        samples, rows, columns = (
            max(1, min(whole, cupy_setup.BLOCK_BYTES // size))
            for whole, size in ((spec.batch, max(image, out_h * out_w * pixel)), (out_h, out_w * pixel), (out_w, pixel))
        )
        self.samples = samples
        self.blocks = [
            Block(n, i, j)
            for n in blocks(spec.batch, samples)
            for i in blocks(out_h, rows)
            for j in blocks(out_w, columns)
        ]
        self.windows_shape = (spec.groups, samples * rows * columns, spec.terms)
        self.image_shape = (samples, *self.sides, spec.channels) if self.is_padded else (0,)

    def interior(self, image: Any) -> Any:
        """A padded image without its border, a view."""
        (top, _), (left, _) = self.spec.pads
        return image[:, top : top + self.spec.height, left : left + self.spec.width]

    def windows(self, xp: Any, image: Any, block: Block) -> Any:
        """The windows of a block in the (padded) image of its samples, a view (G, n, rows, columns, KH, KW, C / G)."""
        spec = self.spec
        (kh, kw), (sh, sw), (dh, dw) = spec.kernel, spec.stride, spec.dilation
        sample, row, column, channel = image.strides
        first = image[:, block.rows.start * sh :, block.columns.start * sw :]
        c = spec.channels // spec.groups
        rows, columns = (part.stop - part.start for part in (block.rows, block.columns))
        shape = (spec.groups, len(image), rows, columns, kh, kw, c)
        strides = (c * channel, sample, sh * row, sw * column, dh * row, dw * column, channel)
        return xp.lib.stride_tricks.as_strided(first, shape, strides)


def gathers(spec: ConvSpec) -> bool:
    """Whether the input gradient is the forward convolution that ``turned`` describes."""
    covered = all(pad < extent for pads, extent in zip(spec.pads, spec.extent, strict=True) for pad in pads)
    return spec.stride == (1, 1) and covered


def split(stack: Any, groups: int) -> Any:
    """(1, pixels, F) as a stack of matrices (G, pixels, F / G), a view."""
    return stack.reshape(stack.shape[1], groups, -1).transpose(1, 0, 2)


class CupyConv(CupyPlan):
    """Every direction unrolls block by block into the same scratch."""

    spec: ConvSpec

    @classmethod
    def parts(cls, spec: ConvSpec, direction: str) -> dict[str, Shape]:
        """The scratch arrays that a direction needs."""
        if direction == GRAD_INPUT and gathers(spec):
            kh, kw, c, _ = spec.w_shape
            return cls.parts(turned(spec), FORWARD) | {"turned": (kh, kw, spec.filters // spec.groups, spec.groups, c)}
        unrolled = Unrolled(spec)
        found = {"image": unrolled.image_shape}
        if not is_pointwise(spec):
            found["windows"] = unrolled.windows_shape
        if direction == GRAD_WEIGHTS:
            found["ones"] = ones_shape()
        return found

    @classmethod
    def scratch_bytes(cls, spec, directions):
        return max(sum(map(byte_count, cls.parts(spec, direction).values())) for direction in directions)

    def prepare(self):
        """Cut the scratch into each direction's arrays, and the problem into blocks."""
        super().prepare()
        self.arrays: dict[str, dict[str, Any]] = {}
        for direction in self.directions:
            offset, self.arrays[direction] = 0, {}
            for name, shape in self.parts(self.spec, direction).items():
                if math.prod(shape):
                    self.arrays[direction][name] = self.scratch(shape, offset=offset)
                offset += byte_count(shape)
        self.unrolled = Unrolled(self.spec)
        if GRAD_INPUT in self.directions and gathers(self.spec):
            self.turned = Unrolled(turned(self.spec))

    def forward(self, x, w, b, out):
        self._convolve(self.unrolled, self.arrays[FORWARD], x, w, b, out)

    def _convolve(self, unrolled: Unrolled, arrays: dict[str, Any], x: Any, w: Any, b: Any, out: Any) -> None:
        """Multiply every window with the weights; bias and activation while the block is in the device's cache."""
        spec = unrolled.spec
        matrices = by_group(spec, w)
        for block, windows in self._lowered(unrolled, arrays, x):
            y = block.of(out)
            self.multiply(windows, matrices, split(y, spec.groups))
            finish(self.xp, y, b, spec.activation)

    def _lowered(self, unrolled: Unrolled, arrays: dict[str, Any], x: Any):
        """Every block with its windows as matrices (G, pixels, KH * KW * C / G), good until the next."""
        spec = unrolled.spec
        if is_pointwise(spec):
            for block in unrolled.blocks:
                yield block, split(block.of(x), spec.groups)
            return
        if unrolled.is_padded:
            arrays["image"].fill(0)
        for block in unrolled.blocks:
            image = x[block.samples]
            if unrolled.is_padded:
                image, pixels = arrays["image"][: len(image)], image
                if block.rows.start == block.columns.start == 0:
                    self.xp.copyto(unrolled.interior(image), pixels)
            source = unrolled.windows(self.xp, image, block)
            windows = arrays["windows"][:, : math.prod(source.shape[1:4])]
            self.xp.copyto(windows.reshape(source.shape), source)
            yield block, windows

    def grad_weights(self, x, dy, dw, db):
        """The windows, transposed, times dy; one block's products are added to the others'."""
        spec, arrays = self.spec, self.arrays[GRAD_WEIGHTS]
        gradient = by_group(spec, dw)
        for number, (block, windows) in enumerate(self._lowered(self.unrolled, arrays, x)):
            self.multiply(windows.transpose(0, 2, 1), split(block.of(dy), spec.groups), gradient, add=number > 0)
        if db is not None:
            self.sum_rows(arrays["ones"], dy.reshape(-1, spec.filters), db)

    def grad_input(self, dy, w, dx):
        if gathers(self.spec):
            self._gather(dy, w, dx)
        else:
            self._scatter(dy, w, dx)

    def _gather(self, dy: Any, w: Any, dx: Any) -> None:
        """Turn the weights, exchange channels and filters, convolve."""
        (kh, kw, c, _), groups = w.shape, self.spec.groups
        arrays = self.arrays[GRAD_INPUT]
        half_turn = w.reshape(kh, kw, c, groups, -1)[::-1, ::-1]
        self.xp.copyto(arrays["turned"], half_turn.transpose(0, 1, 4, 3, 2))
        self._convolve(self.turned, arrays, dy, arrays["turned"].reshape(kh, kw, -1, groups * c), None, dx)

    def _scatter(self, dy: Any, w: Any, dx: Any) -> None:
        """Multiply block by block; add the products tap by tap where their windows lie."""
        spec, unrolled, arrays = self.spec, self.unrolled, self.arrays[GRAD_INPUT]
        transposed = by_group(spec, w).transpose(0, 2, 1)
        for block in unrolled.blocks:
            target = dx[block.samples]
            if unrolled.is_padded:
                target, pixels = arrays["image"][: len(target)], target
            if block.rows.start == block.columns.start == 0:
                target.fill(0)
            places = unrolled.windows(self.xp, target, block)
            products = arrays["windows"][:, : math.prod(places.shape[1:4])]
            self.multiply(split(block.of(dy), spec.groups), transposed, products)
            by_place = products.reshape(places.shape)
            for a in range(spec.kernel[0]):
                for b in range(spec.kernel[1]):
                    pixels_of_tap = places[:, :, :, :, a, b]
                    self.xp.add(pixels_of_tap, by_place[:, :, :, :, a, b], out=pixels_of_tap)
            if unrolled.is_padded and block.rows.stop == spec.y_shape[1] and block.columns.stop == spec.y_shape[2]:
                self.xp.copyto(pixels, unrolled.interior(target))


IMPL = implementation(CupyConv, GEMM, note="CuPy: im2col in blocks, cuBLAS in float32")
