"""Two right CUDA convolutions, small enough to be read: tests/test_cuda_faults.py changes one line of them at a time.

``TILES`` stages a strip of the image in shared memory. ``SPECTRA`` multiplies spectra (each by its definition, in a
square of steps), and keeps them in scratch memory.
"""

import math

import numpy as np

from impls.contract import DIRECT, FFT
from impls.cuda_setup import (
    ARRAY4,
    MATRIX,
    PAIR,
    VECTOR,
    ZERO,
    CudaPlan,
    Launch,
    cuda,
    device_function,
    implementation,
    kernel,
    one_thread_each,
    unravel,
)
from impls.specs import FORWARD

TILE = 32
WIDEST = 8
STRIP = TILE + WIDEST - 1


@device_function
def load(strip, x, n, row, first, width, c):
    """The threads of a block load neighbouring pixels of a row together, and wait for each other."""
    for place in range(cuda.threadIdx.x, width, TILE):
        column = first + place
        value = ZERO
        if 0 <= column < x.shape[2]:
            value = x[n, row, column, c]
        strip[place] = value
    cuda.syncthreads()


@kernel(ARRAY4, ARRAY4, VECTOR, ARRAY4, PAIR, threads=TILE, shared_bytes=4 * STRIP)
def _tiles(x, w, b, y, before):
    """One block computes TILE neighbours along a row of one filter; blocks are (columns, rows, filters)."""
    strip = cuda.shared.array(STRIP, np.float32)
    n, i = cuda.blockIdx.y // y.shape[1], cuda.blockIdx.y % y.shape[1]
    f = cuda.blockIdx.z
    first = cuda.blockIdx.x * TILE
    j = first + cuda.threadIdx.x
    total = b[f]
    for u in range(w.shape[0]):
        row = i + u - before[0]
        if 0 <= row < x.shape[1]:
            for c in range(w.shape[2]):
                load(strip, x, n, row, first - before[1], TILE + w.shape[1] - 1, c)
                for v in range(w.shape[1]):
                    total += strip[cuda.threadIdx.x + v] * w[u, v, c, f]
                cuda.syncthreads()
    if j < y.shape[2]:
        y[n, i, j, f] = total


class Tiles(CudaPlan):
    """forward for strides and dilations of 1, one group and a bias."""

    offers = (FORWARD,)

    @classmethod
    def launches(cls, spec, direction):
        n, rows, columns, filters = spec.y_shape
        return (Launch(_tiles, (-(-columns // TILE), n * rows, filters)),)

    def forward(self, x, w, b, out):
        (top, _), (left, _) = self.spec.pads
        self.enqueue(FORWARD, (x, w, b, out, (top, left)))


@kernel(ARRAY4, MATRIX, MATRIX, MATRIX)
def _spectrum(values, roots, real, imaginary):
    """One thread per frequency of a row of values (N, H, W, 1), which are zero beyond W. roots: (length, 2)."""
    index = cuda.grid(1)
    if index >= real.size:
        return
    length = real.shape[1]
    row, frequency = index // length, index % length
    total_real = total_imaginary = ZERO
    for place in range(values.shape[2]):
        root = place * frequency % length
        value = values[row // values.shape[1], row % values.shape[1], place, 0]
        total_real += value * roots[root, 0]
        total_imaginary -= value * roots[root, 1]
    real[row, frequency] = total_real
    imaginary[row, frequency] = total_imaginary


@kernel(MATRIX, MATRIX, MATRIX, MATRIX, MATRIX, VECTOR, ARRAY4, PAIR)
def _product(real, imaginary, w_real, w_imaginary, roots, b, y, before):
    """One thread per value of y: the real part of the inverse transform of X * conj(W)."""
    index = cuda.grid(1)
    if index >= y.size:
        return
    n, i, j, f = unravel(index, y.shape)
    length = real.shape[1]
    row = n * y.shape[1] + i
    total = ZERO
    for frequency in range(length):
        root = (j - before[1]) * frequency % length
        a, b_ = real[row, frequency], imaginary[row, frequency]
        c, d = w_real[0, frequency], -w_imaginary[0, frequency]
        total += (a * c - b_ * d) * roots[root, 0] - (a * d + b_ * c) * roots[root, 1]
    y[n, i, j, f] = total / np.float32(length) + b[0]


class Spectra(CudaPlan):
    """forward for one channel, one filter and kernels of one row, as Tiles otherwise."""

    offers = (FORWARD,)

    @classmethod
    def length(cls, spec):
        """Of the transform: a row and its padding, so that what wraps round falls on zeros."""
        return spec.width + spec.kernel[1] - 1

    @classmethod
    def launches(cls, spec, direction):
        rows = spec.batch * spec.height
        return (
            one_thread_each(_spectrum, rows * cls.length(spec)),
            one_thread_each(_spectrum, cls.length(spec)),
            one_thread_each(_product, math.prod(spec.y_shape)),
        )

    @classmethod
    def scratch_bytes(cls, spec, directions):
        return 2 * 4 * (spec.batch * spec.height + 1) * cls.length(spec)

    def prepare(self):
        super().prepare()
        rows, length = self.spec.batch * self.spec.height, self.length(self.spec)
        angles = 2 * np.pi * np.arange(length) / length
        self.roots = self.device.put(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
        places = np.cumsum([0, rows, rows, 1]) * 4 * length
        self.spectra = [
            self.scratch((count, length), offset=int(place))
            for count, place in zip((rows, rows, 1, 1), places, strict=True)
        ]

    def forward(self, x, w, b, out):
        (top, _), (left, _) = self.spec.pads
        real, imaginary, w_real, w_imaginary = self.spectra
        self.enqueue(
            FORWARD,
            (x, self.roots, real, imaginary),
            (w.reshape((1, 1, w.shape[1], 1)), self.roots, w_real, w_imaginary),
            (real, imaginary, w_real, w_imaginary, self.roots, b, out, (top, left)),
        )


TILES = implementation(Tiles, algorithm=DIRECT, note="right").named("conv2d", "tiles")
SPECTRA = implementation(Spectra, algorithm=FFT, note="right").named("conv2d", "spectra")
