"""Convolution by its definition on a CUDA device: one thread per result, neighbours on neighbouring channels.

Neighbouring threads share a pixel and read neighbouring weights, so both loads of a product are coalesced or
broadcast. grad_input first turns the weights round (KH, KW, F, C / groups) to keep it so. grad_weights has too few
results to fill a device: its images' rows are cut into slices, one thread sums one slice of one weight, and a second
kernel adds the slices in their order. No atomics: the same input gives the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from impls.contract import DIRECT
from impls.cuda_setup import (
    ARRAY4,
    FLAG,
    MATRIX,
    PAIR,
    VECTOR,
    ZERO,
    CudaPlan,
    cuda,
    implementation,
    kernel,
    one_thread_each,
    unravel,
)
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ITEMSIZE, ConvSpec, Shape

MAX_SLICES = 256
"""Where summing the slices (one thread per weight) takes about as long as summing within them."""

ENOUGH_THREADS = 1 << 18
"""What the largest devices hold at a time: more slices than that takes gain nothing and cost scratch (1 MB)."""


@kernel(ARRAY4, ARRAY4, VECTOR, ARRAY4, PAIR, PAIR, PAIR, FLAG)
def _forward(x, w, b, y, stride, dilation, before, relu):
    """One thread per value of y. ``before``: rows and columns of padding above and on the left."""
    index = cuda.grid(1)
    if index >= y.size:
        return
    n, i, j, f = unravel(index, y.shape)
    kh, kw, channels, filters = w.shape
    groups = x.shape[3] // channels
    first = f // (filters // groups) * channels
    total = b[f]
    for u in range(kh):
        row = i * stride[0] + u * dilation[0] - before[0]
        if 0 <= row < x.shape[1]:
            for v in range(kw):
                column = j * stride[1] + v * dilation[1] - before[1]
                if 0 <= column < x.shape[2]:
                    for c in range(channels):
                        total += x[n, row, column, first + c] * w[u, v, c, f]
    if relu and total < ZERO:
        total = ZERO
    y[n, i, j, f] = total


@kernel(ARRAY4, ARRAY4, MATRIX, ARRAY4, PAIR, PAIR, PAIR)
def _sum_slices(x, dy, partial, dw, stride, dilation, before):
    """One thread per value of partial (slices, weights + biases). dw lends its shape."""
    index = cuda.grid(1)
    if index >= partial.size:
        return
    slices, items = partial.shape
    part, item = index // items, index % items
    height, width = dy.shape[1], dy.shape[2]
    rows = dy.shape[0] * height
    total = ZERO
    if item < dw.size:
        u, v, c, f = unravel(item, dw.shape)
        groups = x.shape[3] // dw.shape[2]
        channel = f // (dw.shape[3] // groups) * dw.shape[2] + c
        for k in range(part * rows // slices, (part + 1) * rows // slices):
            n, i = k // height, k % height
            row = i * stride[0] + u * dilation[0] - before[0]
            if 0 <= row < x.shape[1]:
                for j in range(width):
                    column = j * stride[1] + v * dilation[1] - before[1]
                    if 0 <= column < x.shape[2]:
                        total += x[n, row, column, channel] * dy[n, i, j, f]
    else:
        for k in range(part * rows // slices, (part + 1) * rows // slices):
            for j in range(width):
                total += dy[k // height, k % height, j, item - dw.size]
    partial[part, item] = total


@kernel(MATRIX, ARRAY4, VECTOR)
def _add_slices(partial, dw, db):
    """One thread per weight and bias; db is left alone where partial has no biases."""
    item = cuda.grid(1)
    if item >= partial.shape[1]:
        return
    total = ZERO
    for part in range(partial.shape[0]):
        total += partial[part, item]
    if item < dw.size:
        dw[unravel(item, dw.shape)] = total
    else:
        db[item - dw.size] = total


@kernel(ARRAY4, ARRAY4)
def _turn_round(w, turned):
    """(KH, KW, C / groups, F) to (KH, KW, F, C / groups), one thread per weight."""
    index = cuda.grid(1)
    if index >= turned.size:
        return
    u, v, f, c = unravel(index, turned.shape)
    turned[u, v, f, c] = w[u, v, c, f]


@kernel(ARRAY4, ARRAY4, ARRAY4, PAIR, PAIR, PAIR)
def _grad_input(dy, turned, dx, stride, dilation, before):
    """One thread per value of dx: it gathers from every output pixel whose window covers it."""
    index = cuda.grid(1)
    if index >= dx.size:
        return
    n, row, column, channel = unravel(index, dx.shape)
    kh, kw, filters, channels = turned.shape
    filters //= dx.shape[3] // channels
    first = channel // channels * filters
    c = channel % channels
    total = ZERO
    for u in range(kh):
        down = row + before[0] - u * dilation[0]
        i = down // stride[0]
        if 0 <= i < dy.shape[1] and i * stride[0] == down:
            for v in range(kw):
                right = column + before[1] - v * dilation[1]
                j = right // stride[1]
                if 0 <= j < dy.shape[2] and j * stride[1] == right:
                    for f in range(first, first + filters):
                        total += dy[n, i, j, f] * turned[u, v, f, c]
    dx[n, row, column, channel] = total


def partial_shape(spec: ConvSpec) -> Shape:
    """(slices, weights + biases): scratch of grad_weights. It depends on the spec alone, and so do the sums' bits."""
    items = math.prod(spec.w_shape) + (spec.filters if spec.bias else 0)
    rows = spec.batch * spec.y_shape[1]
    return max(1, min(rows, MAX_SLICES, ENOUGH_THREADS // items)), items


def turned_shape(spec: ConvSpec) -> Shape:
    """(KH, KW, F, C / groups): scratch of grad_input."""
    kh, kw, channels, filters = spec.w_shape
    return kh, kw, filters, channels


class NumbaCudaDirect(CudaPlan):
    """Three directions on one stream; grad_weights and grad_input share their scratch."""

    spec: ConvSpec

    @classmethod
    def launches(cls, spec, direction):
        x_size, w_size, y_size = (math.prod(shape) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
        if direction == FORWARD:
            return (one_thread_each(_forward, y_size),)
        if direction == GRAD_INPUT:
            return one_thread_each(_turn_round, w_size), one_thread_each(_grad_input, x_size)
        slices, items = partial_shape(spec)
        return one_thread_each(_sum_slices, slices * items), one_thread_each(_add_slices, items)

    @classmethod
    def scratch_bytes(cls, spec, directions):
        shapes = {FORWARD: (0,), GRAD_WEIGHTS: partial_shape(spec), GRAD_INPUT: turned_shape(spec)}
        return max(math.prod(shapes[direction]) for direction in directions) * ITEMSIZE[spec.dtype]

    def prepare(self):
        super().prepare()
        spec = self.spec
        (top, _), (left, _) = spec.pads
        self._geometry = spec.stride, spec.dilation, (top, left)
        self._no_bias = None if spec.bias else self.device.put(np.zeros(spec.filters, np.float32))
        if GRAD_WEIGHTS in self.directions:
            self._partial = self.scratch(partial_shape(spec))
        if GRAD_INPUT in self.directions:
            self._turned = self.scratch(turned_shape(spec))

    def forward(self, x, w, b, out):
        b = self._no_bias if b is None else b
        self.enqueue(FORWARD, (x, w, b, out, *self._geometry, self.spec.activation == "relu"))

    def grad_weights(self, x, dy, dw, db):
        db = self._no_bias if db is None else db
        self.enqueue(GRAD_WEIGHTS, (x, dy, self._partial, dw, *self._geometry), (self._partial, dw, db))

    def grad_input(self, dy, w, dx):
        self.enqueue(GRAD_INPUT, (w, self._turned), (dy, self._turned, dx, *self._geometry))


IMPL = implementation(NumbaCudaDirect, algorithm=DIRECT, note="one thread per result, no shared memory")
