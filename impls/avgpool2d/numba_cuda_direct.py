"""Average pooling on a CUDA device: one thread per result, neighbours on neighbouring channels.

The gradient is gathered: each pixel adds its share of every window over it. No atomics: the same input gives the same
bits.
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
    implementation,
    kernel,
    under,
    unravel,
)
from impls.specs import FORWARD, GRAD_INPUT


@kernel(ARRAY4, ARRAY4, PAIR, PAIR, PAIR)
def _forward(x, y, pool, stride, before):
    """One thread per value of y."""
    index = cuda.grid(1)
    if index >= y.size:
        return
    n, i, j, c = unravel(index, y.shape)
    top, bottom = under(i, pool[0], stride[0], before[0], x.shape[1])
    left, right = under(j, pool[1], stride[1], before[1], x.shape[2])
    total = ZERO
    for row in range(top, bottom):
        for column in range(left, right):
            total += x[n, row, column, c]
    y[n, i, j, c] = total / np.float32((bottom - top) * (right - left))


@kernel(ARRAY4, ARRAY4, PAIR, PAIR, PAIR)
def _grad_input(dy, dx, pool, stride, before):
    """One thread per value of dx."""
    index = cuda.grid(1)
    if index >= dx.size:
        return
    n, row, column, c = unravel(index, dx.shape)
    first_i, stop_i = covering(row, pool[0], stride[0], before[0], dy.shape[1])
    first_j, stop_j = covering(column, pool[1], stride[1], before[1], dy.shape[2])
    total = ZERO
    for i in range(first_i, stop_i):
        top, bottom = under(i, pool[0], stride[0], before[0], dx.shape[1])
        for j in range(first_j, stop_j):
            left, right = under(j, pool[1], stride[1], before[1], dx.shape[2])
            total += dy[n, i, j, c] / np.float32((bottom - top) * (right - left))
    dx[n, row, column, c] = total


class NumbaCudaDirect(CudaPoolPlan):
    """forward(x, out), grad_input(x, y, dy, dx); the gradient does not depend on x and y."""

    kernels: ClassVar = {FORWARD: _forward, GRAD_INPUT: _grad_input}

    def forward(self, x, out):
        self.enqueue(FORWARD, (x, out, *self.geometry))

    def grad_input(self, x, y, dy, dx):
        self.enqueue(GRAD_INPUT, (dy, dx, *self.geometry))


IMPL = implementation(NumbaCudaDirect, algorithm=DIRECT, note="one thread per result")
