"""Synthetic problems whose truth is known: curves, clusters, an orbit, the zeta function, rare events, rough losses.

Arrays from a seed, always the same: x (n, d) and y (n,) in float64, and what they were made of. They are no data sets
of layerbench's list: the adaptive models are judged by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import factorial
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAX_DIMENSIONS = 10

ZETA_ZEROS = (14.134725141734693, 21.022039638771555, 25.010857580145688, 30.424876125859513, 32.935061587739189)
"""Imaginary parts of the first zeros of the zeta function (A. Odlyzko's tables)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Samples x (n, d), responses y (n,), the same without noise, and by name what they were made of."""

    x: Array
    y: Array
    clean: Array
    truth: dict[str, Array] = field(default_factory=dict)


def bumps(n: int = 300, d: int = 1, count: int = 3, noise: float = 0.02, seed: int = 0, signed: bool = True) -> Problem:
    """A sum of Gaussian kernels in [0, 1]^d at centres that keep their distance; d from 1 to 10.

    truth: centres (count, d), widths (count,), amplitudes (count,), not ``signed``: above 0. ``noise``: its standard
    deviation. Raises ValueError for another d.
    """
    if not 1 <= d <= MAX_DIMENSIONS:
        raise ValueError(f"d={d}: curves are made in 1 to {MAX_DIMENSIONS} dimensions")
    random = np.random.default_rng(seed)
    # The first coordinates are spread over the interval, so that no two kernels are at one place.
    centres = random.uniform(0.2, 0.8, size=(count, d))
    centres[:, 0] = (random.permutation(count) + random.uniform(0.3, 0.7, count)) / count
    widths = random.uniform(0.1, 0.2, count) * np.sqrt(d) / count ** (1 / d)
    amplitudes = random.uniform(0.5, 2, count) * (random.choice([-1, 1], count) if signed else 1)
    x = random.uniform(size=(n, d))
    distances = np.square(x[:, None, :] - centres).sum(axis=-1)
    clean = np.exp(-distances / (2 * widths**2)) @ amplitudes
    truth = {"centres": centres, "widths": widths, "amplitudes": amplitudes}
    return Problem(x, clean + noise * random.standard_normal(n), clean, truth)


def singular(n: int = 400, noise: float = 0.02, seed: int = 0) -> Problem:
    """-log |x - 0.3| + |x - 0.7|^(1/4): a pole and a cusp. truth: places (2,)."""
    random = np.random.default_rng(seed)
    x = random.uniform(size=(n, 1))
    clean = -np.log(np.abs(x[:, 0] - 0.3)) + np.abs(x[:, 0] - 0.7) ** 0.25
    return Problem(x, clean + noise * random.standard_normal(n), clean, {"places": np.array([0.3, 0.7])})


def clusters(n: int = 600, noise: float = 0.02, seed: int = 0) -> Problem:
    """Points in three clusters of the plane, y their density. truth: centres (3, 2), masses, widths."""
    random = np.random.default_rng(seed)
    centres = np.array([[0.25, 0.3], [0.7, 0.25], [0.55, 0.75]])
    masses, widths = np.array([0.5, 0.2, 0.3]), np.array([0.1, 0.07, 0.12])
    own = random.choice(3, size=n, p=masses)
    x = centres[own] + widths[own, None] * random.standard_normal((n, 2))
    distances = np.square(x[:, None, :] - centres).sum(axis=-1)
    clean = np.exp(-distances / (2 * widths**2)) @ (masses / (2 * np.pi * widths**2))
    truth = {"centres": centres, "widths": widths, "masses": masses}
    return Problem(x, clean + noise * clean.std() * random.standard_normal(n), clean, truth)


def orbit(n: int = 300, eccentricity: float = 0.6, noise: float = 0.02, seed: int = 0) -> Problem:
    """A planet's x over three periods, by Kepler's equation. truth: eccentricity (1,)."""
    random = np.random.default_rng(seed)
    time = np.sort(random.uniform(0, 3, n))
    mean_anomaly = 2 * np.pi * time
    anomaly = mean_anomaly.copy()
    for _ in range(50):  # Newton's method; ten steps do for e = 0.6
        anomaly -= (anomaly - eccentricity * np.sin(anomaly) - mean_anomaly) / (1 - eccentricity * np.cos(anomaly))
    clean = np.cos(anomaly) - eccentricity
    y = clean + noise * random.standard_normal(n)
    return Problem(time[:, None], y, clean, {"eccentricity": np.array([eccentricity])})


def zeta_line(n: int = 400, low: float = 0.0, high: float = 40.0) -> Problem:
    """The real part of zeta(1/2 + it), t from low to high, without noise. truth: zeros, those between."""
    t = np.linspace(low, high, n)
    y = zeta(t).real
    zeros = np.array([zero for zero in ZETA_ZEROS if low <= zero <= high])
    return Problem(t[:, None], y, y, {"zeros": zeros})


def dirichlet(n: int = 400, terms: int = 6, noise: float = 0.02, seed: int = 0, high: float = 40.0) -> Problem:
    """The real part of sum_k k^-(1/2 + it), k = 2 ... terms, at t from 0 to high. truth: terms (terms - 1,)."""
    random = np.random.default_rng(seed)
    t = np.sort(random.uniform(0, high, n))
    k = np.arange(2, terms + 1)
    clean = (np.cos(t[:, None] * np.log(k)) / np.sqrt(k)).sum(axis=1)
    return Problem(t[:, None], clean + noise * random.standard_normal(n), clean, {"terms": k.astype(float)})


def zeta(t: Array) -> Array:
    """zeta(1/2 + it), complex, |t| up to 60, to some 12 digits: P. Borwein's alternating series (1995, algorithm 2).

    Its error is below 3 / (3 + sqrt 8)^n * (1 + 2 |t|) e^(pi |t| / 2) / |1 - 2^(1 - s)|. Raises ValueError beyond 60.
    """
    t = np.asarray(t, float)
    if np.abs(t).max(initial=0) > 60:
        raise ValueError("zeta is computed for |t| up to 60")
    n, s = 90, 0.5 + 1j * t
    parts = [factorial(n + i - 1) * 4**i / (factorial(n - i) * factorial(2 * i)) for i in range(n + 1)]
    sums = np.cumsum(parts) * n
    signs = (-1.0) ** np.arange(n)
    weights = signs * (sums[:n] / sums[n] - 1)
    logs = np.log(np.arange(1, n + 1))
    return np.asarray(-(weights * np.exp(-s[..., None] * logs)).sum(axis=-1) / (1 - 2 ** (1 - s)))


def rare(n: int = 3000, share: float = 0.01, noise: float = 0.02, seed: int = 0) -> Problem:
    """Events in a small square of the plane that holds ``share`` of the samples, over a gentle slope.

    truth: centre (2,) of the events.
    """
    random = np.random.default_rng(seed)
    centre = np.array([0.62, 0.41])
    x = random.uniform(size=(n, 2))
    width = np.sqrt(share) / 4  # +-2 widths: a square of that area
    clean = 0.2 * np.sin(np.pi * x[:, 0]) + np.exp(-np.square(x - centre).sum(axis=1) / (2 * width**2))
    return Problem(x, clean + noise * random.standard_normal(n), clean, {"centre": centre})


def brownian(d: int = 2, seed: int = 0, depth: int = 14, roughness: float = 0.3) -> Callable[[Array], Array]:
    """A loss of points (m, d) in [0, 1]^d, nowhere differentiable: a bowl around 0.7, and a Brownian path per axis.

    The paths are sampled at 2^depth + 1 places; below that distance the loss is constant.
    """
    random = np.random.default_rng(seed)
    count = 2**depth
    paths = np.cumsum(random.standard_normal((d, count + 1)), axis=1) / np.sqrt(count)

    def loss(points: Array) -> Array:
        places = np.clip(np.rint(points * count), 0, count).astype(int)
        rough = np.sum([path[places[:, j]] for j, path in enumerate(paths)], axis=0)
        return np.asarray(np.square(points - 0.7).sum(axis=1) * 4 + roughness * rough)

    return loss
