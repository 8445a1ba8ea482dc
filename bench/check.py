"""Judge a result by a derived bound: error in units of the bound, element by element.

The rounding error of a sum of k products and a bias, in any order and with or without fused multiply-add, is at most
gamma_(k+1) * (sum |x||w| + |b|), where gamma_k = k u / (1 - k u) and u is the unit roundoff (N. J. Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., SIAM 2002, section 3.1). k is counted per element: the products whose
factors are both non-zero, since a zero adds no error. Underflow adds at most 2^-126 for each of the k + 1 operations.
A maximum rounds nothing; its gradient only where windows overlap and their gradients are added. The float64 truth is
rounded as well: what float64 gives may be off by both errors.

TF32 first cuts every factor to the 11 bits that a tensor core reads, an error of at most d = 2^-10 each (cut off; 2^-11
where it rounds), multiplies exactly, and cuts its sums off too (u = 2^-23). A sum of (1 + d)^2 x w is then in error by
((1 + d)^2 (1 + gamma_(k+1)) - 1) * (sum |x||w| + |b|).

An FFT mixes all values of its transform, so its bound is normwise: FFT_CONSTANT * u * log2(size) * |x|_2 |w|_2 per
channel, summed over the channels (same book, section 24.1). A weight's gradient correlates two images, so its norms are
those of x and dy; that of a bias is a plain sum, and held to the bound of one. For Winograd's see
``bench.winograd_bound``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.inputs import INTEGERS
from bench.winograd_bound import error_bound
from impls import Case, reference
from impls.arrays import array_module
from impls.contract import EVERY_PRODUCT, FFT, FLOAT64, TF32
from impls.conv2d.reference import groups
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ConvSpec, PoolSpec, arguments
from impls.winograd import sizes

Array = npt.NDArray[Any]

ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53, TF32: 2.0**-23}
"""Of every addition; a product is rounded with it."""
FACTOR_ROUNDOFF = {TF32: 2.0**-10}
"""Of every factor before it is multiplied, where the arithmetic reads less than it is given."""
SMALLEST_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}
FFT_CONSTANT = 8.0
"""Higham's worst case is about 6 per stage, over three transforms; rounding errors of random sign mostly cancel."""

BLOCK_BYTES = 256 * 2**20
"""The reference works on blocks of samples whose float64 arrays stay near this size."""


@dataclass(frozen=True)
class Expected:
    """What a call should give: per output its float64 value, and what the bound is made of.

    The arrays lie where the reference computed them, on the host or on a device; results are judged there.
    """

    values: tuple[Array | None, ...]
    magnitudes: tuple[Array | None, ...]
    """sum |x||w| + |b|."""
    roundings: tuple[Array | None, ...]
    """The most on the way to each value: non-zero products, each added, and the bias; see ``_expected_pool``."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The worst element of a result. ``bounds``: its error in units of its bound; above 1 is wrong, NaN becomes inf."""

    bounds: float
    where: str = ""

    @property
    def is_right(self) -> bool:
        """Whether every element lies within its bound."""
        return self.bounds <= 1.0


def expected(case: Case, direction: str, inputs: Sequence[Array | None], xp: Any = np) -> Expected:
    """The float64 result for these inputs, with the size and roundings of its sums; ``xp`` (or CuPy) computes it."""
    linear = _without_activation(case)
    inputs = [_map(xp.asarray, a) for a in inputs]
    if isinstance(case.spec, PoolSpec):
        return _expected_pool(case, direction, inputs, xp)
    magnitudes = definition(linear, direction, [_map(abs, a) for a in inputs], xp)
    indicators = [_map(_indicator, a) for a in inputs]
    if direction == FORWARD:
        indicators[2] = _map(xp.zeros_like, inputs[2])
    roundings = definition(linear, direction, indicators, xp)
    for count in roundings:
        if count is not None:
            count += 1
    return Expected(definition(case, direction, inputs, xp), magnitudes, roundings)


def bound(
    case: Case,
    direction: str,
    inputs: Sequence[Array | None],
    truth: Expected,
    algorithm: str,
    arithmetic: str,
) -> tuple[Array | None, ...]:
    """The largest error that the declared algorithm and arithmetic can explain, for every element of every output.

    Raises ValueError for an arithmetic that has no bound.
    """
    if arithmetic not in ROUNDOFF:
        raise ValueError(f"no bound is known for {arithmetic} arithmetic; declare one of {', '.join(ROUNDOFF)}")
    u = max(ROUNDOFF[arithmetic], ROUNDOFF[case.spec.dtype])
    d = 0.0 if isinstance(case.spec, PoolSpec) else FACTOR_ROUNDOFF.get(arithmetic, 0.0)
    tiny = SMALLEST_NORMAL[case.spec.dtype]
    sums: list[Array | None] = []
    for magnitude, roundings in zip(truth.magnitudes, truth.roundings, strict=True):
        if magnitude is None or roundings is None:
            sums.append(None)
            continue
        gamma = roundings * u / (1 - roundings * u)
        sums.append((gamma + d * (2 + d) * (1 + gamma)) * magnitude + roundings * tiny)
    bounds, first = list(sums), truth.values[0]
    if algorithm == FFT and isinstance(case.spec, ConvSpec) and first is not None:
        norm = FFT_CONSTANT * u * _fft_log(case.spec) * _channel_norms(case.spec, direction, inputs)
        bounds[0] = array_module(first).broadcast_to(_like(norm + tiny, first), first.shape)
    if (form := sizes(algorithm)) and isinstance(case.spec, ConvSpec) and first is not None:
        bounds[0] = _like(error_bound(case.spec, direction, inputs, *form, u, tiny), first)
    if case.spec.dtype == FLOAT64:  # the truth has as many roundings
        return tuple(None if b is None or own is None else b + own for b, own in zip(bounds, sums, strict=True))
    return tuple(bounds)


def judge(
    case: Case, direction: str, outputs: Sequence[Array | None], truth: Expected, bounds: Sequence[Array | None]
) -> Judgement:
    """The worst element over all outputs, in units of its bound; where that is 0, any error is infinite."""
    worst = Judgement(0.0)
    names = [a.name for a in arguments(case.spec, direction) if a.is_output]
    for name, got, value, limit in zip(names, outputs, truth.values, bounds, strict=True):
        if got is None or value is None or limit is None:
            continue
        xp = array_module(value)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            error = abs(_like(got, value).astype(np.float64) - value)
            ratio = xp.where(error == 0, 0.0, error / limit)
        ratio = xp.where(xp.isfinite(ratio), ratio, np.inf).ravel()
        place = int(ratio.argmax())
        if ratio[place] > worst.bounds:
            index = tuple(int(i) for i in np.unravel_index(place, got.shape))
            text = f"{name}{list(index)} is {got.flat[place]:.9g}, should be {float(value.ravel()[place]):.9g}"
            worst = Judgement(float(ratio[place]), text)
    return worst


def judge_exact(case: Case, direction: str, outputs: Sequence[Array | None], truth: Expected) -> Judgement:
    """0 where every element has the exact value, else inf: for integers in direct sums."""
    nothing = tuple(_map(lambda v: array_module(v).zeros(v.shape), v) for v in truth.values)
    return judge(case, direction, outputs, truth, nothing)


def needs_exact(case: Case, design: str, algorithm: str) -> bool:
    """Whether this design leaves no room for rounding: integers whose products are summed.

    Averages of integers are rounded by their division.
    """
    return case.op != "avgpool2d" and design == INTEGERS and algorithm in EVERY_PRODUCT


def dense_error(case: Case, direction: str, outputs: Sequence[Array | None], truth: Expected) -> float:
    """The largest |error| over sqrt(terms) * u * rms(result): of order 1 for float32 sums of random signs."""
    u = ROUNDOFF[case.spec.dtype]
    worst = 0.0
    for got, value in zip(outputs, truth.values, strict=True):
        if got is None or value is None:
            continue
        rms = math.sqrt(float((value * value).mean())) or 1.0
        with np.errstate(invalid="ignore", over="ignore"):
            error = float(abs(_like(got, value).astype(np.float64) - value).max())
        scale = math.sqrt(case.spec.terms_of(direction)) * u * rms
        worst = max(worst, error / scale if math.isfinite(error) else math.inf)
    return worst


def verdict(
    case: Case,
    direction: str,
    design: str,
    inputs: Sequence[Array | None],
    outputs: Sequence[Array | None],
    truth: Expected,
    algorithm: str,
    arithmetic: str,
) -> Judgement:
    """Judge one result of one design: exactly where exactness is due, else by the bound."""
    if needs_exact(case, design, algorithm):
        return judge_exact(case, direction, outputs, truth)
    limits = bound(case, direction, inputs, truth, algorithm, arithmetic)
    judgement = judge(case, direction, outputs, truth, limits)
    if design == INTEGERS and algorithm not in EVERY_PRODUCT and case.op == "conv2d":
        return _judge_rounded(case, direction, outputs, truth, limits, judgement)
    return judgement


def _judge_rounded(
    case: Case,
    direction: str,
    outputs: Sequence[Array | None],
    truth: Expected,
    limits: Sequence[Array | None],
    judgement: Judgement,
) -> Judgement:
    """Integer results of transforms: where the bound is below one half, rounding must give the exact integer."""
    for got, value, limit in zip(outputs, truth.values, limits, strict=True):
        if got is None or value is None or limit is None:
            continue
        sure = limit < 0.5
        if not bool((_like(got, value).round() == value)[sure].all()):
            return Judgement(max(judgement.bounds, math.inf), "rounded integers differ from the exact ones")
    return judgement


def _expected_pool(case: Case, direction: str, inputs: Sequence[Array | None], xp: Any) -> Expected:
    """Pooling. An average adds its pixels (its gradient what windows give) and takes one factor, itself rounded; a
    maximum is copied, and its gradient the sum of those that windows give to one pixel.
    """
    x_and_y, last = inputs[:-1], inputs[-1]
    terms = float(case.spec.terms_of(direction))
    values = definition(case, direction, inputs, xp)
    if case.op != "maxpool2d":
        roundings = tuple(_map(lambda v: xp.full(v.shape, terms + 1), v) for v in values)
    elif direction == FORWARD:
        roundings = tuple(_map(xp.zeros_like, v) for v in values)
    else:
        given = definition(case, direction, (*x_and_y, _map(_indicator, last)), xp)
        roundings = tuple(_map(lambda v: xp.maximum(v - 1, 0), v) for v in given)
    return Expected(values, definition(case, direction, (*x_and_y, _map(abs, last)), xp), roundings)


def definition(case: Case, direction: str, inputs: Sequence[Array | None], xp: Any = np) -> tuple[Array | None, ...]:
    """The reference's float64 outputs, computed in blocks of samples so that memory stays bounded."""
    spec = replace(case.spec, dtype=FLOAT64)
    per_sample = 8 * sum(math.prod(s) for s in (spec.x_shape, spec.y_shape)) // spec.batch
    block = max(1, min(spec.batch, BLOCK_BYTES // (8 * per_sample)))
    outputs: list[Array | None] = [
        None if a.shape is None else xp.zeros(a.shape) for a in arguments(spec, direction) if a.is_output
    ]
    batched = [a.name in ("x", "y", "dy", "out", "dx") for a in arguments(spec, direction)]
    for start in range(0, spec.batch, block):
        stop = min(start + block, spec.batch)
        part = replace(spec, batch=stop - start)
        cut = [a if a is None or not split else a[start:stop] for a, split in zip(inputs, batched, strict=False)]
        plan = reference(case.op).plan(part, (direction,))
        if direction == GRAD_WEIGHTS:
            sums = [_map(xp.empty_like, o) for o in outputs]
            plan.grad_weights(*cut, *sums)
            for total, addend in zip(outputs, sums, strict=True):
                if total is not None and addend is not None:
                    total += addend
        else:
            getattr(plan, direction)(*cut, *(None if o is None else o[start:stop] for o in outputs))
    return tuple(outputs)


def _without_activation(case: Case) -> Case:
    return case if isinstance(case.spec, PoolSpec) else replace(case, spec=replace(case.spec, activation=None))


def _fft_log(spec: ConvSpec) -> float:
    """log2 of a transform that covers a whole padded image."""
    sides = [side + extent for side, extent in zip((spec.height, spec.width), spec.extent, strict=True)]
    return math.log2(math.prod(sides))


def _channel_norms(spec: ConvSpec, direction: str, inputs: Sequence[Array | None]) -> Array:
    """For every output channel, the sum over the channels it reads of |image|_2 |kernel|_2, over the whole batch.

    For grad_weights (C / groups, F): |x|_2 |dy|_2 of the channel and the filter of a weight.
    """
    first, second = (np.asarray(a, np.float64) for a in inputs[:2])
    images = np.sqrt(np.square(first).sum(axis=(0, 1, 2)))
    seconds = np.sqrt(np.square(second).sum(axis=(0, 1, 2) if direction == GRAD_WEIGHTS else (0, 1)))
    parts = []
    for channels, filters in groups(spec):
        if direction == FORWARD:
            parts.append(images[channels] @ seconds[:, filters])
        elif direction == GRAD_INPUT:
            parts.append(seconds[:, filters] @ images[filters])
        else:
            parts.append(np.outer(images[channels], seconds[filters]))
    norms: Array = np.concatenate(parts, axis=-1)
    bias = inputs[2] if direction == FORWARD else None
    return norms if bias is None else norms + np.abs(bias)


def _map(function: Any, array: Array | None) -> Any:
    return None if array is None else function(array)


def _indicator(array: Array) -> Any:
    return (array != 0).astype(np.float64)


def _like(array: Array, other: Array) -> Array:
    """The array where the other one lies."""
    moved: Array = array_module(other).asarray(array)
    return moved
