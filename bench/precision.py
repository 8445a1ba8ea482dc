"""What arithmetic and what kind of algorithm really ran, inferred from one result for designed inputs.

The inputs are those of the design ``inputs.IMPULSE``: about four non-zero products per sum, every factor with a full
mantissa, one huge place in every image, and a second operand that float16 holds with fewer bits. Their float64 truth is
known, and so is what the truth becomes when the factors are first rounded to another format. A hypothesis explains a
result if the error that is left lies, element by element, within the bound of a sum in its arithmetic (bench.check):

    float64   every sum is the true one, correctly rounded
    float32   the sums of the given factors
    TF32      the sums of factors rounded, or cut, to 11 bits
    float16   the same with 11 bits and float16's range; sums in float32, or in float16
    bfloat16  the same with 8 bits; sums in float32, or in bfloat16

The first that explains it is what ran. All of these are sums of the products of a window, ``SUMS``: direct, or
GEMM; the order of a sum does not show. A transform mixes other values into a sum, and no bound of that sum holds: an
FFT spreads the error of the huge place evenly over its image, Winograd's algorithm only over the tiles that read it
(S. Winograd, Arithmetic Complexity of Computations, SIAM 1980; errors: B. Barabasz et al., ACM TOMS 46(4), 2020). A
transform that computes in float64, or whose errors stay within the bound of the sums, looks like the sums that it
replaces.

The rule of ``misfit``: a declaration promises how exact a result is at the least. More exact is no fault: float64 sums
declared float32, float32 declared TF32 (a library may use tensor cores, or not), sums declared FFT. Less exact is one:
TF32 declared float32, float16 declared TF32 (the same bits, another range), a transform declared direct or GEMM, an FFT
declared Winograd. A declared transform is held to an arithmetic by its own bound alone, since the hypotheses here are
about sums. What cannot be inferred is not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import check, inputs
from impls import Case, winograd
from impls.contract import BFLOAT16, FFT, FLOAT32, FLOAT64, TF32
from impls.specs import FORWARD, GRAD_WEIGHTS, ConvSpec, PoolSpec

Array = npt.NDArray[Any]
Rounding = Callable[[Array], Array]

FLOAT16 = "float16"
SUMS = "sums"
WINOGRAD = "winograd"
TRANSFORM = "transform"
"""An FFT or Winograd's algorithm, on an image too small to tell which."""

EXACTNESS = (FLOAT64, FLOAT32, TF32, FLOAT16, BFLOAT16)
"""From the most exact arithmetic to the least."""
LOCALITY = (SUMS, WINOGRAD, FFT)
"""From where errors stay in their own sum to where they are spread over the image."""

FEWEST_SUMS = 32
"""Float32 rounds each sum of two products correctly by luck with odds of about one in two: so many prove float64."""
REACH = 8
"""Rows or columns beyond a window that a tile of F(6x6, 3x3), the largest in use, reads."""
SPREAD_SHARE, TILE_SHARE = 0.5, 0.01
"""Of an FFT's values at least so many miss the bound of their sum, and so many of Winograd's near the huge place: more
than the single faults of a wrong implementation. Emulated: 0.87 and 0.019 at the least (tests/test_precision.py)."""
EVEN, STEEP = 8.0, 32.0
"""Largest error near the huge place over that far from it: at most EVEN in an FFT, at least STEEP in Winograd's tiles.
The huge place is 2^15 times as large as the others. Emulated: 0.7 to 1.3, and 120 to 10^4."""
TYPICAL = 0.6
"""Root mean square error, in units of the normwise bound spread evenly over the image, at the most. Emulated: 0.01 to
0.03; Winograd's tiles of 8 x 8, of the widest points, reached 0.52."""


@dataclass(frozen=True)
class Probe:
    """The inputs of a call without the samples that are zero, and their float64 truth."""

    case: Case
    """Its batch holds only the samples that are not zero."""
    direction: str
    inputs: tuple[Array | None, ...]
    truth: check.Expected


@dataclass(frozen=True, slots=True)
class Inferred:
    """What ran: one of EXACTNESS and one of LOCALITY, empty where nothing explains the result; and why."""

    arithmetic: str
    algorithm: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Factors rounded in one way, and a unit roundoff for the sums; ``tiny``: half a result's smallest number."""

    arithmetic: str
    words: str
    factors: Rounding
    roundoff: float
    results: Rounding | None = None
    """Where sums are of 16 bits too: every result is a number of this format."""
    tiny: float = 2.0**-126


def tells(case: Case) -> bool:
    """Whether a result of this operation tells anything: pooling multiplies nothing, and its own check is strict."""
    return not isinstance(case.spec, PoolSpec)


def probe(case: Case, direction: str, arrays: Sequence[Array | None]) -> Probe:
    """What is to be known of inputs of the design IMPULSE before a result can be looked at."""
    samples = inputs.impulse_samples(case, direction)
    small = replace(case, spec=replace(case.spec, batch=samples))
    batched = (True, direction == GRAD_WEIGHTS, False)
    kept = tuple(a if a is None or not cut else a[:samples] for a, cut in zip(arrays, batched, strict=False))
    return Probe(small, direction, kept, check.expected(small, direction, kept))


def infer(known: Probe, outputs: Sequence[Array | None]) -> Inferred:
    """What arithmetic and algorithm explain these outputs, of the whole batch; only the first one is looked at."""
    value, output = known.truth.values[0], outputs[0]
    assert value is not None
    assert output is not None
    got = output[: len(value)].astype(np.float64)
    if not np.isfinite(got).all():
        return Inferred("", "", "not every value is finite")
    if _is_correctly_rounded(known, got):
        return Inferred(FLOAT64, SUMS, f"all {got.size} sums are the float64 ones, correctly rounded")
    worst: dict[str, float] = {}
    for hypothesis in _hypotheses(known.case.spec.dtype):
        ratio = _worst(known, got, hypothesis)
        worst.setdefault(hypothesis.arithmetic, ratio)
        if ratio <= 1:
            otherwise = "".join(f"; {name} {worst[name]:.2g} of it" for name in worst if name != hypothesis.arithmetic)
            evidence = f"{hypothesis.words}: the largest error is {ratio:.2g} of its bound{otherwise}"
            return Inferred(hypothesis.arithmetic, SUMS, evidence)
    return _transform(known, got) or Inferred("", "", "no arithmetic and no transform explains the errors")


def kind(algorithm: str) -> str:
    """The one of LOCALITY that a declared algorithm is."""
    return WINOGRAD if winograd.sizes(algorithm) else FFT if algorithm == FFT else SUMS


def misfit(algorithm: str, arithmetic: str, found: Inferred) -> str | None:
    """Why a declaration does not fit what ran, by the rule at the top of this file, or None."""
    promised, ran = kind(algorithm), found.algorithm
    if ran and not is_kind(algorithm, ran) and (ran == TRANSFORM or LOCALITY.index(ran) > LOCALITY.index(promised)):
        return f"declared {algorithm}, ran as {ran}: {found.evidence}"
    known = promised == SUMS and found.arithmetic in EXACTNESS and arithmetic in EXACTNESS
    if known and EXACTNESS.index(found.arithmetic) > EXACTNESS.index(arithmetic):
        return f"declared {arithmetic}, ran as {found.arithmetic}: {found.evidence}"
    return None


def is_kind(algorithm: str, ran: str) -> bool:
    """Whether what was inferred may be the declared algorithm: a transform that could not be told is any of them."""
    promised = kind(algorithm)
    return ran == promised or (ran == TRANSFORM and promised != SUMS)


def _hypotheses(dtype: str) -> Iterator[Hypothesis]:
    """From the most exact to the least, for factors of this dtype.

    Sums of 16 bits come last: their bound is so wide that results of more bits could hide in it.
    """
    if dtype == FLOAT64:
        yield Hypothesis(FLOAT64, "float64 sums", lambda a: a, 2.0**-53, tiny=2.0**-1022)
    yield Hypothesis(FLOAT32, "float32 sums", _single, 2.0**-24)
    tensor = 2.0**-23  # a tensor core cuts its sums off
    yield Hypothesis(TF32, "factors rounded to 11 bits", _keeper(11), tensor)
    yield Hypothesis(TF32, "factors cut to 11 bits", _keeper(11, cut=True), tensor)
    yield Hypothesis(FLOAT16, "factors rounded to float16", _half, tensor)
    yield Hypothesis(BFLOAT16, "factors rounded to bfloat16", _keeper(8), tensor)
    yield Hypothesis(BFLOAT16, "factors cut to bfloat16", _keeper(8, cut=True), tensor)
    yield Hypothesis(FLOAT16, "factors and sums of float16", _half, 2.0**-11, _half, tiny=2.0**-25)
    yield Hypothesis(BFLOAT16, "factors and sums of bfloat16", _keeper(8), 2.0**-8, _keeper(8))


def _single(array: Array) -> Array:
    """Rounded to float32."""
    return np.asarray(array, np.float32)


def _half(array: Array) -> Array:
    """Rounded to float16."""
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float16).astype(np.float32)


def _keeper(bits: int, *, cut: bool = False) -> Rounding:
    """A rounding to so many significant bits in float32's range: to the nearest, or cut off."""
    dropped = 24 - bits
    half = 0 if cut else 1 << (dropped - 1)
    mask = np.uint32(0xFFFFFFFF ^ ((1 << dropped) - 1))

    def keep(array: Array) -> Array:
        pattern = np.asarray(array, np.float32).view(np.uint32)
        return ((pattern + np.uint32(half)) & mask).view(np.float32)

    return keep


def _is_correctly_rounded(known: Probe, got: Array) -> bool:
    """Whether float32 results are the float64 sums rounded once, and there are enough to say so."""
    value, roundings = known.truth.values[0], known.truth.roundings[0]
    if known.case.spec.dtype != FLOAT32 or value is None or roundings is None:
        return False
    slack = 1 + 2.0**-20  # the float64 sums are rounded as well
    if not (abs(got - value) <= slack * check.ROUNDOFF[FLOAT32] * abs(value)).all():
        return False
    telling = (roundings > 2) & (value != 0) & ~_hides_roundings(known)
    return int(telling.sum()) >= FEWEST_SUMS


def _hides_roundings(known: Probe) -> Array:
    """Which sums have the huge place among their products.

    A fused multiply-add that adds it last rounds such a sum but once: the roundings before are far below its last bit.
    """
    first, *others = known.inputs
    assert first is not None
    huge = np.where(abs(first) >= inputs.IMPULSE_SIZE, first, first.dtype.type(0))
    without_bias = (a if i == 0 or a is None else np.zeros_like(a) for i, a in enumerate(others))
    magnitude = check.expected(known.case, known.direction, (huge, *without_bias)).magnitudes[0]
    assert magnitude is not None
    hides: Array = magnitude > 0
    return hides


def _worst(known: Probe, got: Array, hypothesis: Hypothesis) -> float:
    """The largest error in units of the hypothesis' bound; infinite where results are not of its format."""
    if hypothesis.results is not None and not np.array_equal(hypothesis.results(got), got):
        return float("inf")
    truth = known.truth
    factors = [a for a in known.inputs[:2] if a is not None]
    rounded = [hypothesis.factors(a) for a in factors]
    if not all(map(np.array_equal, rounded, factors)):
        truth = check.expected(known.case, known.direction, (*rounded, *known.inputs[2:]))
    value = truth.values[0]
    limit = _limit(truth, hypothesis.roundoff, hypothesis.tiny)
    assert value is not None
    with np.errstate(invalid="ignore"):
        ratio = abs(got - value) / limit
    return float(np.where(np.isfinite(ratio), ratio, np.inf).max())


def _limit(truth: check.Expected, u: float, tiny: float) -> Array:
    """gamma of each sum's roundings times its magnitude, as in bench.check."""
    magnitude, roundings = truth.magnitudes[0], truth.roundings[0]
    assert magnitude is not None
    assert roundings is not None
    limit: Array = roundings * u / (1 - roundings * u) * magnitude + roundings * tiny
    return limit


def _transform(known: Probe, got: Array) -> Inferred | None:
    """A transform in the arithmetic of the spec's dtype, where the errors have its size and its place; else None."""
    spec, truth = known.case.spec, known.truth
    value = truth.values[0]
    if not isinstance(spec, ConvSpec) or value is None:
        return None
    normwise = check.bound(known.case, known.direction, known.inputs, truth, FFT, spec.dtype)[0]
    assert normwise is not None
    errors = abs(got - value)
    size = float(np.sqrt(np.square(errors / normwise).mean() * spec.height * spec.width))
    if size > TYPICAL:
        return None
    missed = errors > _limit(truth, check.ROUNDOFF[spec.dtype], check.SMALLEST_NORMAL[spec.dtype])
    telling = (got != 0) | (value != 0)
    share = _share(missed, telling)
    text = f"{share:.2g} of all values miss the bound of their sum, by errors of a transform's size"
    far = _far(spec, known.direction, value.shape)
    if far is None or far.all() or not far.any():
        return Inferred(spec.dtype, TRANSFORM, text) if share >= TILE_SHARE else None
    near_error, far_error = (float(np.where(missed, errors, 0)[:, where].max()) for where in (~far, far))
    ratio = near_error / far_error if far_error else float("inf")
    text = f"{text}; those near a huge value are {ratio:.2g} times as large as those far from it"
    if ratio <= EVEN and share >= SPREAD_SHARE:
        return Inferred(spec.dtype, FFT, text)
    near_share = _share(missed[:, ~far], telling[:, ~far])
    return Inferred(spec.dtype, WINOGRAD, text) if ratio >= STEEP and near_share >= TILE_SHARE else None


def _share(missed: Array, telling: Array) -> float:
    """The part of the values that are not zero for want of products, or by a relu, that missed their bound."""
    return float(missed[telling].mean()) if telling.any() else 0.0


def _far(spec: ConvSpec, direction: str, shape: tuple[int, ...]) -> Array | None:
    """Which (row, column) of an image no tile can connect with the huge place.

    None for gradients of weights: whatever the transform, it mixes all taps of a channel and a filter.
    """
    if direction == GRAD_WEIGHTS:
        return None
    near = []
    for axis in range(2):
        stride, before, extent = spec.stride[axis], spec.pads[axis][0], spec.extent[axis]
        side = (spec.x_shape if direction == FORWARD else spec.y_shape)[1 + axis]
        place = min(inputs.IMPULSE_AT, side - 1)
        index = np.arange(shape[1 + axis])
        offset = index * stride - before - place if direction == FORWARD else index - (place * stride - before)
        near.append(abs(offset) < extent + REACH)
    far: Array = ~(near[0][:, None] & near[1][None, :])
    return far
