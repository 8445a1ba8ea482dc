"""Families of parametric functions phi(x; theta): what their parameters are called, and their values.

kernel          exp(-sum_j z_j^2 / 2), z_j = (x_j - centre_j) / (width_j s_j), s_j the extent of the data
skewed          kernel * (1 + tanh(sum_j skewness_j z_j))
mixture         kernel / prod_j (width_j sqrt(2 pi)): a density in units of the extent, its amplitude a mass
trigonometric   cos(2 pi (sum_j frequency_j (x_j - low_j) / s_j - phase)): frequencies in waves over the data
zeta            cos(x log n - 2 pi phase) / sqrt(n): for natural n a term of the zeta function at 1/2 + ix
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from impls.nn.adaptive.scales import LINEAR, RECIPROCAL, SQUARE, Axis
from impls.nn.adaptive.tables import Scalars
from impls.specs import SpecError

Array = npt.NDArray[Any]
Values: TypeAlias = Callable[[Array, Array, Scalars], Array]
"""Samples x (n, d) and natural parameters theta (..., K, axes) to values (..., n, K)."""

WIDTHS = (0.01, 10.0)
"""Of kernels, in units of the data's extent: from a spike to what hardly depends on the variable."""
MAX_WAVES = 12.0
"""Frequency of trigonometric functions, in waves over the data's extent."""
MAX_TERM = 12.0
"""The largest n of the zeta family."""
MAX_SKEWNESS = 4.0


@dataclass(frozen=True, slots=True)
class Family:
    """Functions of one kind: the axes of theta, and ``values``."""

    name: str
    axes: tuple[Axis, ...]
    values: Values


def _axes(name: str, low: float, high: float, d: int, reparameterisation: str = LINEAR) -> tuple[Axis, ...]:
    """The same interval for every variable."""
    return tuple(Axis(f"{name}[{j}]", low, high, reparameterisation) for j in range(d))


def _local(low: Array, high: Array, widths: str) -> tuple[Axis, ...]:
    """Centres within the data, then widths."""
    centres = (Axis(f"centre[{j}]", a, b) for j, (a, b) in enumerate(zip(low, high, strict=True)))
    return (*centres, *_axes("width", *WIDTHS, len(low), widths))


def _reduced(extent: Array, x: Array, theta: Array) -> Iterator[Array]:
    """z_j = (x_j - centre_j) / (width_j s_j), (..., n, K), of one variable after the other."""
    d = len(extent)
    for j in range(d):
        yield (x[:, j, None] - theta[..., None, :, j]) / (theta[..., None, :, d + j] * extent[j])


def _kernel(extent: Array, x: Array, theta: Array, scalars: Scalars) -> Array:
    return scalars.decay(np.sum([z * z for z in _reduced(extent, x, theta)], axis=0) / 2)


def _skewed(extent: Array, x: Array, theta: Array, scalars: Scalars) -> Array:
    skewness = theta[..., None, :, 2 * len(extent) :]
    lean = np.sum([skewness[..., j] * z for j, z in enumerate(_reduced(extent, x, theta))], axis=0)
    return _kernel(extent, x, theta, scalars) * (1 + scalars.bend(lean))


def _mixture(extent: Array, x: Array, theta: Array, scalars: Scalars) -> Array:
    d = len(extent)
    volumes = (theta[..., None, :, d : 2 * d] * np.sqrt(2 * np.pi)).prod(axis=-1)
    return _kernel(extent, x, theta, scalars) / volumes


def _trigonometric(low: Array, extent: Array, x: Array, theta: Array, scalars: Scalars) -> Array:
    d = len(extent)
    turns = np.sum([theta[..., None, :, j] * ((x[:, j, None] - low[j]) / extent[j]) for j in range(d)], axis=0)
    return scalars.wave(turns - theta[..., None, :, d])


def _zeta(x: Array, theta: Array, scalars: Scalars) -> Array:
    n = theta[..., None, :, 0]
    return scalars.wave(x * np.log(n) / (2 * np.pi) - theta[..., None, :, 1]) / np.sqrt(n)


def _make_kernel(low: Array, high: Array, widths: str) -> Family:
    return Family("kernel", _local(low, high, widths), partial(_kernel, high - low))


def _make_skewed(low: Array, high: Array, widths: str) -> Family:
    skewness = _axes("skewness", -MAX_SKEWNESS, MAX_SKEWNESS, len(low))
    return Family("skewed", (*_local(low, high, widths), *skewness), partial(_skewed, high - low))


def _make_mixture(low: Array, high: Array, widths: str) -> Family:
    return Family("mixture", _local(low, high, widths), partial(_mixture, high - low))


def _make_trigonometric(low: Array, high: Array, _widths: str) -> Family:
    # A wave and its mirror image are the same: of one frequency the sign says nothing.
    frequencies = _axes("frequency", 0 if len(low) == 1 else -MAX_WAVES, MAX_WAVES, len(low))
    return Family("trigonometric", (*frequencies, Axis("phase", 0, 1)), partial(_trigonometric, low, high - low))


def _make_zeta(low: Array, _high: Array, _widths: str) -> Family:
    if len(low) != 1:
        raise SpecError(f"the zeta family is of one variable; the data have {len(low)}")
    return Family("zeta", (Axis("n", 1, MAX_TERM, SQUARE), Axis("phase", -0.5, 0.5)), _zeta)


FAMILIES: Mapping[str, Callable[[Array, Array, str], Family]] = MappingProxyType(
    {
        "kernel": _make_kernel,
        "skewed": _make_skewed,
        "mixture": _make_mixture,
        "trigonometric": _make_trigonometric,
        "zeta": _make_zeta,
    }
)


def family(name: str, low: Array, high: Array, widths: str = RECIPROCAL) -> Family:
    """A family for data between low and high (d,); ``widths``: how [0, 1] covers the widths of kernels.

    A variable without extent counts as having extent 1. Raises SpecError for an unknown name, listing the known ones.
    """
    if name not in FAMILIES:
        raise SpecError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    low, high = np.asarray(low, float), np.asarray(high, float)
    return FAMILIES[name](low, np.where(high > low, high, low + 1), widths)
