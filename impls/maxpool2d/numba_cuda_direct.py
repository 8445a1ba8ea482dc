"""Max pooling on a CUDA device: one thread per result, neighbours on neighbouring channels.

Where windows overlap the gradient is gathered: each pixel looks at the windows over it, and where it equals the maximum
asks whether it is the first that does. Elsewhere a thread writes all the pixels from one window up to the next. No
atomics: the same input gives the same bits.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from impls.contract import DIRECT
from impls.cuda_setup import (
    POOL_GEOMETRY,
    VECTOR,
    ZERO,
    CudaPoolPlan,
    covering,
    cuda,
    device_function,
    divide,
    flat,
    implementation,
    kernel,
    needs_wide_indices,
    one_thread_each,
    position,
    under,
    unravel,
)
from impls.specs import FORWARD, GRAD_INPUT, PoolSpec, Shape

LOWEST = np.float32(-np.inf)


@device_function
def _same(value, other):
    """Equal, or both NaN."""
    return value == other or (value != value and other != other)


@kernel(VECTOR, VECTOR, POOL_GEOMETRY)
def _forward(x, y, geometry):
    """One thread per value of y. A NaN under the window makes its maximum NaN."""
    batch, height, width, channels, out_height, out_width, pool_i, pool_j, step_i, step_j, top, left = geometry
    index = cuda.grid(1)
    if index >= batch * out_height * out_width * channels:
        return
    n, i, j, c = unravel(index, (batch, out_height, out_width, channels))
    first_row, stop_row = under(i, pool_i, step_i, top, height)
    first_column, stop_column = under(j, pool_j, step_j, left, width)
    largest = LOWEST
    for row in range(first_row, stop_row):
        for column in range(first_column, stop_column):
            value = x[position(n, row, column, c, height, width, channels)]
            if value > largest or value != value:
                largest = value
    y[np.uint64(index)] = largest


@device_function
def _is_first(x, largest, n, row, column, c, first_row, first_column, stop_column, height, width, channels):
    """Whether no pixel of the window before this one, in row-major order, is its maximum."""
    for k in range(first_row, row + 1):
        for m in range(first_column, stop_column if k < row else column):
            if _same(x[position(n, k, m, c, height, width, channels)], largest):
                return False
    return True


@kernel(VECTOR, VECTOR, VECTOR, VECTOR, POOL_GEOMETRY)
def _grad_input(x, y, dy, dx, geometry):
    """One thread per value of dx."""
    batch, height, width, channels, out_height, out_width, pool_i, pool_j, step_i, step_j, top, left = geometry
    index = cuda.grid(1)
    if index >= batch * height * width * channels:
        return
    n, row, column, c = unravel(index, (batch, height, width, channels))
    first_i, stop_i = covering(row, pool_i, step_i, top, out_height)
    first_j, stop_j = covering(column, pool_j, step_j, left, out_width)
    own = x[np.uint64(index)]
    total = ZERO
    for i in range(first_i, stop_i):
        first_row, _ = under(i, pool_i, step_i, top, height)
        for j in range(first_j, stop_j):
            window = position(n, i, j, c, out_height, out_width, channels)
            if _same(own, y[window]):
                first_column, stop_column = under(j, pool_j, step_j, left, width)
                if _is_first(x, own, n, row, column, c, first_row, first_column, stop_column, height, width, channels):
                    total += dy[window]
    dx[np.uint64(index)] = total


@kernel(VECTOR, VECTOR, VECTOR, VECTOR, POOL_GEOMETRY)
def _grad_input_apart(x, y, dy, dx, geometry):
    """One thread per cell of stride x stride pixels, a window in its corner, and channel; no windows overlap.

    What is beyond the last windows is cells too, without a window. All pixels under none are zero.
    """
    batch, height, width, channels, out_height, out_width, pool_i, pool_j, step_i, step_j, top, left = geometry
    down, _ = divide(height + top + step_i - 1, step_i)
    across, _ = divide(width + left + step_j - 1, step_j)
    index = cuda.grid(1)
    if index >= batch * down * across * channels:
        return
    n, i, j, c = unravel(index, (batch, down, across, channels))
    searching = i < out_height and j < out_width
    largest = gradient = ZERO
    if searching:
        window = position(n, i, j, c, out_height, out_width, channels)
        largest, gradient = y[window], dy[window]
    first_row, stop_row = under(i, step_i, step_i, top, height)
    first_column, stop_column = under(j, step_j, step_j, left, width)
    bottom = i * step_i - top + pool_i
    right = j * step_j - left + pool_j
    for row in range(first_row, stop_row):
        for column in range(first_column, stop_column):
            place = position(n, row, column, c, height, width, channels)
            value = ZERO
            if searching and row < bottom and column < right and _same(x[place], largest):
                searching = False
                value = gradient
            dx[place] = value


def cells(spec: PoolSpec) -> Shape | None:
    """(N, rows, columns, C) of the cells that windows without overlap lie in, or None where they overlap."""
    if any(pool > step for pool, step in zip(spec.pool, spec.step, strict=True)):
        return None
    sides = zip(spec.x_shape[1:3], spec.pads, spec.step, strict=True)
    rows, columns = (-(-(side + before) // step) for side, (before, _), step in sides)
    return spec.batch, rows, columns, spec.channels


class NumbaCudaDirect(CudaPoolPlan):
    """forward(x, out), grad_input(x, y, dy, dx)."""

    kernels: ClassVar = {FORWARD: _forward, GRAD_INPUT: _grad_input}

    @classmethod
    def launches(cls, spec, direction):
        apart = cells(spec)
        if direction == GRAD_INPUT and apart:
            return (one_thread_each(_grad_input_apart, math.prod(apart)),)
        return super().launches(spec, direction)

    def grad_input(self, x, y, dy, dx):
        self.enqueue(GRAD_INPUT, (flat(x), flat(y), flat(dy), flat(dx), self.geometry))


IMPL = implementation(
    NumbaCudaDirect, algorithm=DIRECT, note="one thread per result, or per window", why_not=needs_wide_indices
)
