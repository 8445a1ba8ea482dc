"""How far Winograd's minimal filtering may err: a bound for every element, from its matrices and the actual inputs.

Y = A^T (sum over c of (G g G^T) * (B^T d B)) A in floating point. A sum of k terms errs by at most gamma_k times the
same sum of absolute values, gamma_k = k u / (1 - k u), and (1 + gamma_j)(1 + gamma_k) <= 1 + gamma_(j + k)
(N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM 2002, lemma 3.3). So do the nested sums:

    |error| <= gamma_K |A^T| (sum over c of (|G| |g| |G^T|) * (|B^T| |d| |B|)) |A|

with K = 2 (a + g + b + 3) + channels: a, g, b are the most non-zero coefficients in a row of A^T, G, B^T, each passed
twice, with one more for a coefficient that is rounded itself; channels are those of the element's own tile whose pixels
and taps are both not all zero, since a zero adds no error. A bias is one more term. The same expression, as norms:
B. Barabasz, A. Anderson, K. M. Soodhalter, D. Gregg, Error Analysis and Improving the Accuracy of Winograd Convolution
for Deep Neural Networks, ACM TOMS 46 (4), 2020, theorem 2. It holds for sums in any order, with or without fused
multiply-add. How much larger than |x| * |w| it is says what the fewer multiplications cost.

An underflow adds up to ``tiny`` to any operation. Of M X M^T a value has at most 2 k operations in either pass, k the
most non-zero coefficients in a row of M, each scaled by at most s, the largest sum of a row's absolute coefficients
or 1: together 2 k tiny s (s + 1). What transformed taps lost is multiplied by transformed pixels, and the other way
round; these products pass through |A^T| and |A| as all do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.specs import FORWARD, GRAD_INPUT, ConvSpec
from impls.winograd import Matrix, matrices

Array = npt.NDArray[Any]

BLOCK_VALUES = 2**22
"""float64 values of the transforms of the samples that are looked at together."""


def error_bound(
    spec: ConvSpec, direction: str, inputs: Sequence[Array | None], m: int, r: int, u: float, tiny: float
) -> Array:
    """The largest error of every element of the forward pass or of the input gradient, in float64.

    ``u``: the unit roundoff; ``tiny``: what an underflow may add, magnified as the products of a tile are.
    Raises ValueError for a problem that is no correlation with r x r taps, without stride, dilation and groups.
    """
    plain = (spec.kernel, spec.stride, spec.dilation, spec.groups) == ((r, r), (1, 1), (1, 1), 1)
    if not plain or direction not in (FORWARD, GRAD_INPUT):
        raise ValueError(f"F({m}, {r}) does not compute {direction} of {spec}")
    image, kernel = (np.abs(np.asarray(a, np.float64)) for a in inputs[:2])
    before, shape = [pad[0] for pad in spec.pads], spec.y_shape
    if direction == GRAD_INPUT:
        kernel = kernel[::-1, ::-1].swapaxes(2, 3)
        before, shape = [r - 1 - pad for pad in before], spec.x_shape
    back, of_kernel, of_image = (_absolute(matrix) for matrix in matrices(m, r))
    roundings = 2 * sum(1 + int((matrix > 0).sum(axis=1).max()) for matrix in (back, of_kernel, of_image))
    taps = np.einsum("ea,abcf,gb->egcf", of_kernel, kernel, of_kernel, optimize=True).reshape(-1, *kernel.shape[2:])
    lost_taps, lost_pixels = (_lost(matrix, tiny) for matrix in (of_kernel, of_image))
    seen_taps = np.asarray((kernel > 0).any(axis=(0, 1)), np.float64)
    bias = inputs[2] if direction == FORWARD else None
    magnify = float(back.sum(axis=1).max()) ** 2
    found: Array = np.empty(shape)
    per_sample = len(taps) * max(kernel.shape[2:]) * -(-shape[1] // m) * -(-shape[2] // m)
    block = max(1, BLOCK_VALUES // per_sample)
    for start in range(0, shape[0], block):
        tiles = _tiles(image[start : start + block], before, shape[1:3], m, r)
        count, down, across = tiles.shape[:3]
        pixels = np.einsum("ea,nijabc,gb->egnijc", of_image, tiles, of_image, optimize=True)
        pixels = pixels.reshape(len(taps), -1, pixels.shape[-1])
        lost = lost_taps * pixels.sum(axis=2)[:, :, None] + lost_pixels * (taps + lost_taps).sum(axis=1)[:, None]
        grid = (len(of_image), len(of_image), count, down, across, -1)
        channels = np.asarray((tiles > 0).any(axis=(3, 4)), np.float64) @ seen_taps
        terms = roundings + 1 + np.repeat(np.repeat(channels, m, axis=1), m, axis=2)
        magnitude = _results(back, (pixels @ taps).reshape(grid)) + (0 if bias is None else np.abs(bias))
        gamma = terms * u / (1 - terms * u)
        limit = gamma * magnitude + (1 + gamma) * _results(back, lost.reshape(grid)) + terms * tiny * magnify
        found[start : start + block] = limit[:, : shape[1], : shape[2]]
    return found


def _absolute(matrix: Matrix) -> Array:
    return np.array([[abs(float(c)) for c in row] for row in matrix])


def _lost(matrix: Array, tiny: float) -> float:
    """What underflows may add to a value of M X M^T."""
    scale = max(1.0, float(matrix.sum(axis=1).max()))
    return 2 * int((matrix > 0).sum(axis=1).max()) * tiny * scale * (scale + 1)


def _results(back: Array, products: Array) -> Array:
    """(N, down * m, across * m, F): |A^T| times products (n, n, N, down, across, F) times |A|."""
    sums: Array = np.einsum("pe,egnijf,qg->nipjqf", back, products, back, optimize=True)
    n, down, m, across, _, filters = sums.shape
    return sums.reshape(n, down * m, across * m, filters)


def _tiles(image: Array, before: Sequence[int], results: Sequence[int], m: int, r: int) -> Array:
    """(N, down, across, m + r - 1, m + r - 1, C): the pixels under each m x m results, zero beyond the image."""
    for axis, pad, count in ((1, before[0], results[0]), (3, before[1], results[1])):
        places = np.arange(-(-count // m))[:, None] * m + np.arange(m + r - 1) - pad
        inside = (places >= 0) & (places < image.shape[axis])
        image = np.take(image, places.clip(0, image.shape[axis] - 1), axis)
        image *= np.expand_dims(inside, tuple(k for k in range(image.ndim) if k not in (axis, axis + 1)))
    return image.swapaxes(2, 3)
