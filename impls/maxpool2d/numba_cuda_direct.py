"""Max pooling on a CUDA device: one thread per result, neighbours on neighbouring channels.

The gradient is gathered: each pixel looks at the windows over it and asks whether it is their first maximum. No
atomics: the same input gives the same bits.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from impls.contract import DIRECT
from impls.cuda_setup import (
    ARRAY4,
    PAIR,
    ZERO,
    CudaPoolPlan,
    covering,
    cuda,
    device_function,
    implementation,
    kernel,
    under,
    unravel,
)
from impls.specs import FORWARD, GRAD_INPUT

LOWEST = np.float32(-np.inf)


@device_function
def _same(value, other):
    """Equal, or both NaN."""
    return value == other or (value != value and other != other)


@device_function
def _first(x, largest, n, top, bottom, left, right, c):
    """(row, column) of the window's first pixel, in row-major order, that is its maximum; (-1, -1) without one."""
    for row in range(top, bottom):
        for column in range(left, right):
            if _same(x[n, row, column, c], largest):
                return row, column
    return -1, -1


@kernel(ARRAY4, ARRAY4, PAIR, PAIR, PAIR)
def _forward(x, y, pool, stride, before):
    """One thread per value of y. A NaN under the window makes its maximum NaN."""
    index = cuda.grid(1)
    if index >= y.size:
        return
    n, i, j, c = unravel(index, y.shape)
    top, bottom = under(i, pool[0], stride[0], before[0], x.shape[1])
    left, right = under(j, pool[1], stride[1], before[1], x.shape[2])
    largest = LOWEST
    for row in range(top, bottom):
        for column in range(left, right):
            value = x[n, row, column, c]
            if value > largest or value != value:
                largest = value
    y[n, i, j, c] = largest


@kernel(ARRAY4, ARRAY4, ARRAY4, ARRAY4, PAIR, PAIR, PAIR)
def _grad_input(x, y, dy, dx, pool, stride, before):
    """One thread per value of dx."""
    index = cuda.grid(1)
    if index >= dx.size:
        return
    n, row, column, c = unravel(index, dx.shape)
    first_i, stop_i = covering(row, pool[0], stride[0], before[0], y.shape[1])
    first_j, stop_j = covering(column, pool[1], stride[1], before[1], y.shape[2])
    total = ZERO
    for i in range(first_i, stop_i):
        top, bottom = under(i, pool[0], stride[0], before[0], x.shape[1])
        for j in range(first_j, stop_j):
            left, right = under(j, pool[1], stride[1], before[1], x.shape[2])
            if _first(x, y[n, i, j, c], n, top, bottom, left, right, c) == (row, column):
                total += dy[n, i, j, c]
    dx[n, row, column, c] = total


class NumbaCudaDirect(CudaPoolPlan):
    """forward(x, out), grad_input(x, y, dy, dx)."""

    kernels: ClassVar = {FORWARD: _forward, GRAD_INPUT: _grad_input}

    def forward(self, x, out):
        self.enqueue(FORWARD, (x, out, *self.geometry))

    def grad_input(self, x, y, dy, dx):
        self.enqueue(GRAD_INPUT, (x, y, dy, dx, *self.geometry))


IMPL = implementation(NumbaCudaDirect, algorithm=DIRECT, note="one thread per result")
