"""The stationary bootstrap: how far a median of samples taken one after the other can be off, though they depend.

Neighbouring samples share a machine's state (frequency, other work), so they tell less than as many independent ones.
The bootstrap draws blocks of neighbours, of random length and circular (D. Politis, J. Romano, The Stationary
Bootstrap, JASA 89, 1994), with the mean length that D. Politis and H. White derive (Automatic Block-Length Selection,
Econometric Reviews 23, 2004; constants as corrected by A. Patton with them, 28, 2009).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

RESAMPLES = 400
"""The standard error from as many is itself known to 1 / sqrt(2 * 400), 4 %."""
FEWEST = 8
"""Of fewer values no correlation can be estimated: they are taken as independent."""
FEWEST_BLOCKS = 5
"""Politis and White say 3. One series in twenty of 20 independent values would then have 3, and show nothing at all."""


def median_error(values: Array) -> tuple[float, float]:
    """The standard error of the median of values in the order of time, and its degrees of freedom.

    The block length is that of the values' signs about their median, on which the median's error depends, and at least
    the cube root of their number, the rate at which it grows. The degrees of freedom are those of as many independent
    values as there are blocks. A block's own mean is drawn too: n / (n - length) makes up for it, exactly for a mean.
    Both are NaN for a single value. The resamples are the same at every call, so that a report repeats itself.
    """
    count = values.size
    if count < 2:
        return math.nan, math.nan
    centred = values - np.median(values)
    length = 1.0
    if count >= FEWEST:
        length = max(block_length(np.sign(centred)), count ** (1 / 3))
    drawn = centred[resampled(count, length, RESAMPLES, np.random.default_rng(0))]
    error = float(np.std(np.median(drawn, axis=1))) * math.sqrt(count / (count - length))
    return error, max(count / length - 1, 1.0)


def resampled(count: int, length: float, resamples: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices (resamples, count): circular blocks of geometric length with this mean, from uniform starts."""
    begins = rng.random((resamples, count)) < 1 / length
    begins[:, 0] = True
    starts = rng.integers(count, size=(resamples, count))
    here = np.arange(count)
    begun = np.maximum.accumulate(np.where(begins, here, 0), axis=1)
    return (np.take_along_axis(starts, begun, axis=1) + here - begun) % count


def block_length(values: Array) -> float:
    """The mean length of blocks for the mean of these values, by Politis and White: (2 g^2 / d)^(1/3) n^(1/3).

    With R(k) the autocovariances under a flat-top window that ends where they have become noise: g = sum |k| R(k),
    d = 2 (sum R(k))^2. At least 1, and at most 3 sqrt(n), as they say, or n / FEWEST_BLOCKS.
    """
    count = values.size
    centred = values - values.mean()
    run = max(5, math.ceil(math.sqrt(math.log10(count))))
    most = min(math.ceil(math.sqrt(count)) + run, count - 1)
    covariance = np.array([centred[: count - lag] @ centred[lag:] for lag in range(most + 1)]) / count
    if covariance[0] == 0:
        return 1.0
    is_noise = np.abs(covariance[1:] / covariance[0]) < 2 * math.sqrt(math.log10(count) / count)
    window = min(2 * max(_last_telling(is_noise, run), 1), most)
    lags = np.arange(-window, window + 1)
    tapered = np.clip(2 * (1 - np.abs(lags) / window), 0, 1) * covariance[np.abs(lags)]
    d = 2 * tapered.sum() ** 2
    if d == 0:
        return 1.0
    g = (np.abs(lags) * tapered).sum()
    return float(np.clip((2 * g**2 / d * count) ** (1 / 3), 1, min(3 * math.sqrt(count), count / FEWEST_BLOCKS)))


def _last_telling(is_noise: npt.NDArray[np.bool_], run: int) -> int:
    """The lag before the first ``run`` lags that are all noise; the last one that is not where there is no such run."""
    for lag in range(is_noise.size - run + 1):
        if is_noise[lag : lag + run].all():
            return lag
    telling = np.flatnonzero(~is_noise)
    return int(telling[-1]) + 1 if telling.size else 1
