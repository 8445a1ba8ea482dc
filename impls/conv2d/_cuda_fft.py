"""Two-dimensional real Fourier transforms of square tiles, one block for several neighbouring tiles.

A tile of T x T real values has T*T/2 + 2 frequencies that the others follow from. It is transformed in place, in
T*T/2 complex places of shared memory:

1. Rows 2p and 2p + 1 stand in one complex line p of T values, real and imaginary part. A line is transformed by
   decimation in frequency (radix 4, a last stage of radix 2 where T is not a power of 4): frequency k ends up in the
   place whose number is k with its bits reversed.
2. The two rows' spectra, A[k] = (Z[k] + conj Z[-k]) / 2 and B[k] = (Z[k] - conj Z[-k]) / 2i, take the places of Z[k]
   and Z[-k]. For k = 0 and T/2 both are real: the place of 0 holds A[0] + i A[T/2], that of T/2 holds B[0] + i B[T/2].
3. So column k, for 0 < k < T/2, is in the places of k (even rows) and -k (odd rows), and column 0 is the real
   columns 0 and T/2 as one complex one. T/2 columns are transformed as the lines were, and column 0 is taken apart.

No frequency is moved into its natural place: products work frequency by frequency, and the inverse walks the same way
back. Frequency number e is what stands in place e; the two real values left in each of places 0 and 1 are cut into
frequencies of their own, 0 and T*T/2, 1 and T*T/2 + 1. Frequency 0 is the sum of the tile.

Spectra are (parts, frequencies, real and imaginary, planes): a plane is one channel of one tile, neighbouring planes
are neighbouring channels, and so loads and stores are coalesced.

Sources: radix-4 butterflies and two real sequences in one transform: C. Van Loan, Computational Frameworks for the
Fast Fourier Transform, SIAM 1992, sections 2.4 and 4.3. Rounding: twiddles are computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import float32

from impls.cuda_setup import ARRAY4, FLAG, PAIR, VECTOR, ZERO, Kernel, Launch, cuda, device_function, kernel

LARGEST = 64
_ANGLES = -2 * np.pi * np.arange(LARGEST) / LARGEST
COSINES = np.cos(_ANGLES).astype(np.float32)
SINES = np.sin(_ANGLES).astype(np.float32)
"""exp(-2 pi i k / 64)."""

HALF = np.float32(0.5)


class Block(NamedTuple):
    """Tiles that a block transforms together, and its threads."""

    planes: int
    threads: int


BLOCKS = {4: Block(32, 64), 8: Block(32, 128), 16: Block(32, 256), 32: Block(8, 256), 64: Block(2, 256)}
"""By side of the tile. Lines times planes are a multiple of 32: the threads of a warp share their twiddles."""

SIDES = tuple(BLOCKS)


def frequencies(side: int) -> int:
    """Complex values of which all others of a real side x side tile's spectrum are conjugates."""
    return side * side // 2 + 2


@device_function
def column_places(column):
    """Places, in bit-reversed order, of frequencies k and -k, for the k in that order's column-th pair; 0: 0 and T/2.

    A power of two and the places up to the next one hold the frequencies of one number of trailing zeros, mirrored.
    """
    bits = column | column >> 1
    bits |= bits >> 2
    bits |= bits >> 4
    top = (bits + 1) >> 1
    return column + top, (5 * top - 1 - column if column > 0 else 1)


@device_function
def line_places(in_columns, line, side):
    """Places of elements 0 and 1 of a row pair, or of a column, and how far from each the next two elements are.

    Row pairs are side + 1 apart, against bank conflicts.
    """
    zero, one, step = line * (side + 1), line * (side + 1) + 1, 2
    if in_columns:
        zero, one = column_places(line)
        step = side + 1
    return zero, one, step


@device_function
def transform_lines(re, im, cosines, sines, side, planes, in_columns):
    """Transform every line in place, decimation in frequency; ends with a barrier. In natural, out bit-reversed."""
    lines = side // 2
    span = side
    while span > 2:
        quarter = span >> 2
        for item in range(cuda.threadIdx.x, side // 4 * lines * planes, cuda.blockDim.x):
            zero, one, step = line_places(in_columns, item // planes % lines, side)
            butterfly = item // (planes * lines)
            k = butterfly & (quarter - 1)
            start = (butterfly - k) * 4 + k
            next_ = start + quarter
            p0 = ((one if start & 1 else zero) + (start >> 1) * step) * planes + item % planes
            p1 = ((one if next_ & 1 else zero) + (next_ >> 1) * step) * planes + item % planes
            p2 = p0 + quarter * step * planes
            p3 = p1 + quarter * step * planes
            sum_re, sum_im = re[p0] + re[p2], im[p0] + im[p2]
            odd_re, odd_im = re[p1] + re[p3], im[p1] + im[p3]
            gap_re, gap_im = re[p0] - re[p2], im[p0] - im[p2]
            turn_re, turn_im = im[p1] - im[p3], re[p3] - re[p1]
            re[p0], im[p0] = sum_re + odd_re, sum_im + odd_im
            angle = k * (LARGEST // span)
            a, b, c, s = sum_re - odd_re, sum_im - odd_im, cosines[2 * angle], sines[2 * angle]
            re[p1], im[p1] = a * c - b * s, a * s + b * c
            a, b, c, s = gap_re + turn_re, gap_im + turn_im, cosines[angle], sines[angle]
            re[p2], im[p2] = a * c - b * s, a * s + b * c
            a, b, c, s = gap_re - turn_re, gap_im - turn_im, cosines[3 * angle], sines[3 * angle]
            re[p3], im[p3] = a * c - b * s, a * s + b * c
        cuda.syncthreads()
        span = quarter
    if span == 2:
        sums_and_differences(re, im, side, planes, in_columns)


@device_function
def restore_lines(re, im, cosines, sines, side, planes, in_columns):
    """The inverse of transform_lines, but for the factor: decimation in time. In bit-reversed, out natural."""
    lines = side // 2
    span = 4
    if side == 8 or side == 32:
        sums_and_differences(re, im, side, planes, in_columns)
        span = 8
    while span <= side:
        quarter = span >> 2
        for item in range(cuda.threadIdx.x, side // 4 * lines * planes, cuda.blockDim.x):
            zero, one, step = line_places(in_columns, item // planes % lines, side)
            butterfly = item // (planes * lines)
            k = butterfly & (quarter - 1)
            start = (butterfly - k) * 4 + k
            next_ = start + quarter
            p0 = ((one if start & 1 else zero) + (start >> 1) * step) * planes + item % planes
            p1 = ((one if next_ & 1 else zero) + (next_ >> 1) * step) * planes + item % planes
            p2 = p0 + quarter * step * planes
            p3 = p1 + quarter * step * planes
            angle = k * (LARGEST // span)
            a, b, c, s = re[p1], im[p1], cosines[2 * angle], sines[2 * angle]
            two_re, two_im = a * c + b * s, b * c - a * s
            a, b, c, s = re[p2], im[p2], cosines[angle], sines[angle]
            one_re, one_im = a * c + b * s, b * c - a * s
            a, b, c, s = re[p3], im[p3], cosines[3 * angle], sines[3 * angle]
            three_re, three_im = a * c + b * s, b * c - a * s
            sum_re, sum_im = re[p0] + two_re, im[p0] + two_im
            gap_re, gap_im = re[p0] - two_re, im[p0] - two_im
            odd_re, odd_im = one_re + three_re, one_im + three_im
            turn_re, turn_im = three_im - one_im, one_re - three_re
            re[p0], im[p0] = sum_re + odd_re, sum_im + odd_im
            re[p1], im[p1] = gap_re + turn_re, gap_im + turn_im
            re[p2], im[p2] = sum_re - odd_re, sum_im - odd_im
            re[p3], im[p3] = gap_re - turn_re, gap_im - turn_im
        cuda.syncthreads()
        span *= 4


@device_function
def sums_and_differences(re, im, side, planes, in_columns):
    """The stage of radix 2, its own inverse but for the factor; ends with a barrier."""
    lines = side // 2
    for item in range(cuda.threadIdx.x, side // 2 * lines * planes, cuda.blockDim.x):
        zero, one, step = line_places(in_columns, item // planes % lines, side)
        pair = item // (planes * lines)
        p0 = (zero + pair * step) * planes + item % planes
        p1 = (one + pair * step) * planes + item % planes
        sum_re, sum_im = re[p0] + re[p1], im[p0] + im[p1]
        re[p1], im[p1] = re[p0] - re[p1], im[p0] - im[p1]
        re[p0], im[p0] = sum_re, sum_im
    cuda.syncthreads()


@device_function
def separate_or_join(re, im, side, planes, in_columns, is_joined):
    """Take what two real sequences gave as one apart, or put it together again; ends with a barrier.

    Of rows, every line, with frequencies 0 and T/2 as the places above say; of columns, only column 0, and not those.
    Separated, Z[k] and Z[-k] in places p and q become A[k] and B[k].
    """
    lines = side // 2
    step = side + 1 if in_columns else 2
    count = lines if in_columns else lines * lines
    for item in range(cuda.threadIdx.x, count * planes, cuda.blockDim.x):
        column = item // planes % lines
        first = item // (planes * lines) * (side + 1)
        even, odd = column_places(column)
        p = (first + (even & 1) + (even >> 1) * step) * planes + item % planes
        q = (first + (odd & 1) + (odd >> 1) * step) * planes + item % planes
        a, b, c, d = re[p], im[p], re[q], im[q]
        if column == 0:
            if not in_columns:
                im[p], re[q] = c, b
        elif is_joined:
            re[p], im[p], re[q], im[q] = a - d, b + c, a + d, c - b
        else:
            re[p], im[p] = (a + c) * HALF, (b - d) * HALF
            re[q], im[q] = (b + d) * HALF, (c - a) * HALF
    cuda.syncthreads()


@device_function
def source_pixel(position, spread, size):
    """Which pixel stands at a position of an image whose pixels are ``spread`` apart, zeros between; -1: none."""
    pixel = position
    if spread > 1:
        pixel = position // spread
        if pixel * spread != position:
            pixel = -1
    return pixel if pixel < size else -1


def _to_spectrum(side: int, planes: int, threads: int) -> Kernel:
    """The transform of real tiles; see ``transform`` for the arguments."""
    pitch = side + 1
    lines = side // 2
    places = lines * side
    size = lines * pitch * planes

    @kernel(
        *(ARRAY4, ARRAY4, "int64", PAIR, PAIR, PAIR, PAIR, PAIR),
        threads=threads,
        shared_bytes=8 * size,
        variant=f"{side}x{side}",
    )
    def transform(source, spectrum, first, tiles, advance, before, spread, kept):
        """``planes`` neighbouring planes of spectrum (1, frequencies, 2, planes) from source (N, H, W, C).

        Plane p is channel p % C of tile first + p // C; the tiles of an image are ``tiles``, one begins ``advance``
        after the one before it, the first ``before`` pixels above and on the left of the image. The image's pixels are
        ``spread`` apart, with zeros between. Only the first ``kept`` rows and columns of a tile are read.
        """
        re = cuda.shared.array(size, float32)
        im = cuda.shared.array(size, float32)
        cosines = cuda.const.array_like(COSINES)
        sines = cuda.const.array_like(SINES)
        lane = cuda.threadIdx.x % planes
        start = cuda.threadIdx.x // planes
        step = cuda.blockDim.x // planes
        plane = cuda.blockIdx.x * planes + lane
        inside = plane < spectrum.shape[3]
        channel = plane % source.shape[3]
        tile = first + plane // source.shape[3]
        n = tile // (tiles[0] * tiles[1])
        top = tile // tiles[1] % tiles[0] * advance[0] - before[0]
        left = tile % tiles[1] * advance[1] - before[1]

        for place in range(start, places, step):
            column = place % side
            at = (place // side * pitch + column) * planes + lane
            j = source_pixel(left + column, spread[1], source.shape[2])
            for half in range(2):
                row = place // side * 2 + half
                i = source_pixel(top + row, spread[0], source.shape[1])
                value = ZERO
                if inside and i >= 0 and j >= 0 and row < kept[0] and column < kept[1]:
                    value = source[n, i, j, channel]
                if half:
                    im[at] = value
                else:
                    re[at] = value
        cuda.syncthreads()

        for in_columns in range(2):
            transform_lines(re, im, cosines, sines, side, planes, in_columns)
            separate_or_join(re, im, side, planes, in_columns, False)

        if inside:
            for place in range(start, places, step):
                at = (place // side * pitch + place % side) * planes + lane
                spectrum[0, place, 0, plane] = re[at]
                spectrum[0, place, 1, plane] = im[at] if place > 1 else ZERO
                if place < 2:
                    spectrum[0, places + place, 0, plane] = im[at]
                    spectrum[0, places + place, 1, plane] = ZERO

    return transform


def _from_spectrum(side: int, planes: int, threads: int) -> Kernel:
    """The inverse transform; see ``restore`` for the arguments."""
    pitch = side + 1
    lines = side // 2
    places = lines * side
    size = lines * pitch * planes
    scale = np.float32(1 / (side * side))

    @kernel(
        *(ARRAY4, VECTOR, ARRAY4, "int64", PAIR, PAIR, PAIR, PAIR, FLAG, FLAG),
        threads=threads,
        shared_bytes=8 * size,
        variant=f"{side}x{side}",
    )
    def restore(spectrum, bias, out, first, tiles, advance, shift, step, biased, relu):
        """Results out (N, H, W, C) in ``planes`` neighbouring planes of spectrum, whose parts are summed.

        Planes and tiles are those of ``transform``. Pixel ``shift`` of a tile is its first result, one of ``advance``;
        over an image every step-th is kept. ``biased``: add bias[channel]; ``relu``: then the larger of it and 0.
        """
        re = cuda.shared.array(size, float32)
        im = cuda.shared.array(size, float32)
        cosines = cuda.const.array_like(COSINES)
        sines = cuda.const.array_like(SINES)
        lane = cuda.threadIdx.x % planes
        start = cuda.threadIdx.x // planes
        stride = cuda.blockDim.x // planes
        plane = cuda.blockIdx.x * planes + lane
        inside = plane < spectrum.shape[3]

        for place in range(start, places, stride):
            total_re = ZERO
            total_im = ZERO
            if inside:
                for part in range(spectrum.shape[0]):
                    total_re += spectrum[part, place, 0, plane]
                    if place > 1:
                        total_im += spectrum[part, place, 1, plane]
                    else:
                        total_im += spectrum[part, places + place, 0, plane]
            at = (place // side * pitch + place % side) * planes + lane
            re[at] = total_re
            im[at] = total_im
        cuda.syncthreads()

        for in_columns in range(1, -1, -1):
            separate_or_join(re, im, side, planes, in_columns, True)
            restore_lines(re, im, cosines, sines, side, planes, in_columns)

        if inside:
            channel = plane % out.shape[3]
            tile = first + plane // out.shape[3]
            n = tile // (tiles[0] * tiles[1])
            top = tile // tiles[1] % tiles[0] * advance[0] - shift[0]
            left = tile % tiles[1] * advance[1] - shift[1]
            addend = bias[channel] if biased else ZERO
            for place in range(start, places, stride):
                column = place % side
                j = source_pixel(left + column, step[1], out.shape[2])
                if j >= 0 and shift[1] <= column < shift[1] + advance[1]:
                    at = (place // side * pitch + column) * planes + lane
                    for half in range(2):
                        row = place // side * 2 + half
                        i = source_pixel(top + row, step[0], out.shape[1])
                        if i >= 0 and shift[0] <= row < shift[0] + advance[0]:
                            value = (im[at] if half else re[at]) * scale + addend
                            if relu and value < ZERO:
                                value = ZERO
                            out[n, i, j, channel] = value

    return restore


TO_SPECTRUM = {side: _to_spectrum(side, *block) for side, block in BLOCKS.items()}
FROM_SPECTRUM = {side: _from_spectrum(side, *block) for side, block in BLOCKS.items()}


def over_planes(kernels: dict[int, Kernel], side: int, planes: int) -> Launch:
    """The launch of a transform over this many planes."""
    return Launch(kernels[side], (-(-planes // BLOCKS[side].planes), 1, 1))
