"""Average pooling on a CUDA device: one thread per result, neighbours on neighbouring channels.

The gradient is gathered: each pixel adds its share of every window over it. No atomics: the same input gives the same
bits.
"""

from __future__ import annotations

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
    flat,
    implementation,
    kernel,
    needs_wide_indices,
    position,
    under,
    unravel,
)
from impls.specs import FORWARD, GRAD_INPUT


@kernel(VECTOR, VECTOR, POOL_GEOMETRY)
def _forward(x, y, geometry):
    """One thread per value of y."""
    batch, height, width, channels, out_height, out_width, pool_i, pool_j, step_i, step_j, top, left = geometry
    index = cuda.grid(1)
    if index >= batch * out_height * out_width * channels:
        return
    n, i, j, c = unravel(index, (batch, out_height, out_width, channels))
    first_row, stop_row = under(i, pool_i, step_i, top, height)
    first_column, stop_column = under(j, pool_j, step_j, left, width)
    total = ZERO
    for row in range(first_row, stop_row):
        for column in range(first_column, stop_column):
            total += x[position(n, row, column, c, height, width, channels)]
    y[np.uint64(index)] = total / np.float32((stop_row - first_row) * (stop_column - first_column))


@kernel(VECTOR, VECTOR, POOL_GEOMETRY)
def _grad_input(dy, dx, geometry):
    """One thread per value of dx."""
    batch, height, width, channels, out_height, out_width, pool_i, pool_j, step_i, step_j, top, left = geometry
    index = cuda.grid(1)
    if index >= batch * height * width * channels:
        return
    n, row, column, c = unravel(index, (batch, height, width, channels))
    first_i, stop_i = covering(row, pool_i, step_i, top, out_height)
    first_j, stop_j = covering(column, pool_j, step_j, left, out_width)
    total = ZERO
    for i in range(first_i, stop_i):
        first_row, stop_row = under(i, pool_i, step_i, top, height)
        for j in range(first_j, stop_j):
            first_column, stop_column = under(j, pool_j, step_j, left, width)
            pixels = np.float32((stop_row - first_row) * (stop_column - first_column))
            total += dy[position(n, i, j, c, out_height, out_width, channels)] / pixels
    dx[np.uint64(index)] = total


class NumbaCudaDirect(CudaPoolPlan):
    """forward(x, out), grad_input(x, y, dy, dx); the gradient does not depend on x and y."""

    kernels: ClassVar = {FORWARD: _forward, GRAD_INPUT: _grad_input}

    def grad_input(self, x, y, dy, dx):
        self.enqueue(GRAD_INPUT, (flat(dy), flat(dx), self.geometry))


IMPL = implementation(NumbaCudaDirect, algorithm=DIRECT, note="one thread per result", why_not=needs_wide_indices)
