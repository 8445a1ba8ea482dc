"""Judge implementations inside a reference model, on real images: layer by layer, and swapped into the network.

Layer by layer, an implementation gets what Keras had at that layer (the first one: the images themselves). Swapped in,
it computes one layer, or every layer of its operation, while Keras computes the others; logits, loss, every weight
gradient and the predictions are compared. Flattening, relu's gradient, softmax and the loss are done here, in NumPy.
Relu masks and the maxima that pooling's gradient follows are Keras' own in every chain: a value near zero, or two near
each other, may round either way, which moves whole gradients and says nothing about an implementation.

Two bounds; above 1, in units of either, is WRONG:

1. Elementwise, |error| <= gamma_(k+1) * (|x| * |w| + |b|) + (k+1) * 2^-126 with gamma_k = k*u / (1 - k*u), u = 2^-24
   and k the most products summed into one value (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
   No order of summation exceeds it. Max pooling computes nothing, so its bound is 0. On dense data it is generous for
   large k, hence the second one. A declared transform (FFT, Winograd) is held to its own bound, that of bench.check:
   it mixes other values into a sum, and leaves a rest where every product is zero.
2. Normwise, distance to float64 <= 4 * Keras' distance to float64 + max(8, sqrt(k)) * 2^-23 * scale. A plain running
   sum of k rounded terms of random or equal signs is off by about 0.4 * sqrt(k) * u of its size: each of its k
   additions rounds a partial sum by u / sqrt(3) at most in root mean square, and the partial sums grow as sqrt(j) or
   j. No implementation has to be cleverer than that, and sqrt(k) * 2^-23 is five times as much; what the rest of the
   network makes of errors is known from Keras'. Distances are Euclidean norms for layers and weight gradients, with
   the norm of the truth as scale, and maxima for logits and loss, with the largest logit as scale (the loss is a
   difference of logits). In a network k is the largest of the layers on the way. This one is a rule, not a theorem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

import numpy as np

from bench import check, precision
from bench.keras_model import Array, LayerTrace, Trace
from bench.results import Failure
from impls import Unavailable, reference
from impls.contract import DIRECT, FLOAT32
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, Case, PoolSpec, arguments, directions_of

Arrays: TypeAlias = tuple[Array | None, ...]
Compute: TypeAlias = Callable[[str, Case, str, Arrays], Arrays]
"""(implementation, case, direction, inputs in the order of the contract) -> outputs in the order of the contract.

Raises Failure, or Unavailable or NotImplementedError for what is not supported; anything else is an ERROR.
"""

Declared: TypeAlias = Callable[[str, Case, str], str]
"""(implementation, case, direction) -> the algorithm that it declares."""

KERAS = "keras"
"""The name, for ``compute``, of what does the layers that are not swapped."""

RECORDED = "keras (recorded)"
"""The name of Keras' own values in the rows of layers: a witness that contradicts float64 is WRONG too."""

ROUNDOFF = 2.0**-24
ULP = 2.0**-23
SMALLEST_NORMAL = 2.0**-126


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One implementation on what Keras had at one layer, in one direction.

    The first three figures are largest errors in units of sqrt(terms) * u * the root mean squares of the factors;
    the last two are in units of the bounds of this module. None where there is no result.
    """

    columns: ClassVar[tuple[str, ...]] = (
        *("model", "layer", "problem", "direction", "implementation", "status"),
        *("to Keras", "to float64", "Keras to float64", "of bound", "of allowance", "reason"),
    )
    model: str
    layer: str
    case: Case
    direction: str
    implementation: str
    status: str
    reason: str = ""
    to_keras: float | None = None
    to_float64: float | None = None
    keras_to_float64: float | None = None
    of_bound: float | None = None
    of_allowance: float | None = None

    def cells(self) -> tuple[str, ...]:
        """The row as text, under ``columns``; of the reason the first line."""
        figures = (self.to_keras, self.to_float64, self.keras_to_float64, self.of_bound, self.of_allowance)
        name = (self.model, self.layer, str(self.case), self.direction, self.implementation, self.status)
        return (*name, *map(_text, figures), _first_line(self.reason))


@dataclass(frozen=True, slots=True)
class SwapRow:
    """One implementation in the place of Keras, at one layer or at all of its operation.

    ``logits`` and ``loss`` are largest differences to Keras'; ``gradients`` has one for every weight and bias, relative
    to the norm of Keras'. ``flips`` counts the predictions that differ, ``ties`` those among them between logits
    that are nearer to each other than the allowed error. ``left_to_keras`` names what it does not compute.
    """

    columns: ClassVar[tuple[str, ...]] = (
        *("model", "swapped", "implementation", "status", "logits", "loss", "gradients", "at"),
        *("flips", "ties", "of allowance", "left to Keras", "reason"),
    )
    model: str
    swapped: str
    implementation: str
    status: str
    reason: str = ""
    logits: float | None = None
    loss: float | None = None
    gradients: Mapping[str, float] = field(default_factory=dict)
    flips: int | None = None
    ties: int | None = None
    of_allowance: float | None = None
    left_to_keras: tuple[str, ...] = ()

    def cells(self) -> tuple[str, ...]:
        """The row as text, under ``columns``: the largest difference of a gradient, the reason's first line."""
        worst = max(self.gradients, key=lambda name: self.gradients[name], default="")
        name = (self.model, self.swapped, self.implementation, self.status)
        figures = (self.logits, self.loss, self.gradients.get(worst))
        counts = tuple("" if count is None else str(count) for count in (self.flips, self.ties))
        left = ", ".join(self.left_to_keras)
        return (*name, *map(_text, figures), worst, *counts, _text(self.of_allowance), left, _first_line(self.reason))


def verify_model(
    trace: Trace,
    names: Mapping[str, tuple[str, ...]],
    compute: Compute,
    model: str = "",
    declared: Declared = lambda name, case, direction: DIRECT,
) -> Iterator[LayerRow | SwapRow]:
    """Judge the named implementations of every operation: first at each layer, then swapped in; rows as they come.

    At each layer and direction the first row is Keras' own record.

    ``model`` is what the rows call the network; its structure if empty. ``declared`` decides whose bound holds.
    """
    model = model or str(trace.structure)
    failures: dict[tuple[str, str, str], Failure] = {}
    for layer in trace.layers:
        for direction in directions_of(layer.case.op):
            witness = _Witness(layer, direction)
            yield witness.judge(model, RECORDED, witness.keras)
            for name in names.get(layer.case.op, ()):
                try:
                    outputs = _call(compute, name, layer.case, direction, witness.inputs)
                    algorithm = declared(name, layer.case, direction)
                    yield witness.judge(model, name, _present(outputs), algorithm)
                except Failure as failure:
                    failures[name, layer.name, direction] = failure
                    yield LayerRow(model, layer.name, layer.case, direction, name, failure.status, failure.reason)
    network = _Network(trace, compute)
    for op in dict.fromkeys(layer.case.op for layer in trace.layers):
        for name in names.get(op, ()):
            refused = {key[1:]: failure for key, failure in failures.items() if key[0] == name}
            for label, swapped in _swaps(trace, op):
                try:
                    yield network.judge(model, label, swapped, name, refused)
                except Failure as failure:
                    yield SwapRow(model, label, name, failure.status, failure.reason)


def definition(case: Case, direction: str, inputs: Arrays) -> Arrays:
    """The outputs in float64, by the operation's reference."""
    plan = reference(case.op).plan(case.spec, (direction,))
    outputs = tuple(
        None if argument.shape is None else np.empty(argument.shape)
        for argument in arguments(case.spec, direction)
        if argument.is_output
    )
    getattr(plan, direction)(*inputs, *outputs)
    return outputs


def gamma_bound(case: Case, direction: str, inputs: Arrays) -> Arrays:
    """How far each float32 output may be from ``definition``, whatever the order of summation; see the module."""
    terms = case.spec.terms_of(direction)
    if isinstance(case.spec, PoolSpec):
        rounded = _gamma(terms - 1 if direction == GRAD_INPUT else 0)  # gradients that meet are added, nothing else is
        *windows, last = inputs
        sizes = definition(case, direction, (*windows, _absolute(last)))
        return tuple(rounded * np.abs(size) for size in sizes if size is not None)
    linear = Case(case.op, replace(case.spec, activation=None))
    sizes = definition(linear, direction, tuple(map(_absolute, inputs)))
    least = (terms + 1) * SMALLEST_NORMAL
    return tuple(None if size is None else _gamma(terms + 1) * size + least for size in sizes)


def softmax_loss(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean cross-entropy of softmax(logits) (N, classes) with integer labels (N,), and its gradient, in float64."""
    shifted = np.asarray(logits, np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    gradient = exponentials / sums
    gradient[rows, labels] -= 1
    return float(np.mean(np.log(sums[:, 0]) - shifted[rows, labels])), gradient / len(labels)


class _Witness:
    """What Keras and float64 say about one layer and direction, computed once for all implementations."""

    def __init__(self, layer: LayerTrace, direction: str) -> None:
        roles = arguments(layer.case.spec, direction)
        self.layer, self.direction = layer, direction
        self.inputs: Arrays = tuple(getattr(layer, role.name) for role in roles if not role.is_output)
        self.keras = _present(getattr(layer, role.name) for role in roles if role.is_output)
        self.truth = _present(definition(layer.case, direction, self.inputs))
        self.bound = _present(gamma_bound(layer.case, direction, self.inputs))
        self.unit = _dense_unit(layer.case, direction, self.inputs)

    def bound_of(self, algorithm: str) -> tuple[Array, ...]:
        """The elementwise bound of an algorithm."""
        if precision.kind(algorithm) == precision.SUMS:
            return self.bound
        case, direction = self.layer.case, self.direction
        truth = check.expected(case, direction, self.inputs)
        return _present(check.bound(case, direction, self.inputs, truth, algorithm, FLOAT32))

    @np.errstate(invalid="ignore", over="ignore")  # what is not a number is judged, not warned of
    def judge(self, model: str, name: str, ours: tuple[Array, ...], algorithm: str = DIRECT) -> LayerRow:
        """The row of the outputs of an implementation that declares this algorithm."""
        layer, terms = self.layer, self.layer.case.spec.terms_of(self.direction)
        of_bound = max(
            _largest_ratio(np.abs(o - t), bound)
            for o, t, bound in zip(ours, self.truth, self.bound_of(algorithm), strict=True)
        )
        of_allowance = max(
            _fraction(_norm(o - t), _norm(k - t), _norm(t), terms)
            for o, k, t in zip(ours, self.keras, self.truth, strict=True)
        )
        wrong = [] if of_bound <= 1 else [f"{of_bound:.3g} of the elementwise bound"]
        wrong += [] if of_allowance <= 1 else [f"{of_allowance:.3g} of the allowed distance to float64"]
        return LayerRow(
            *(model, layer.name, layer.case, self.direction, name, "WRONG" if wrong else "OK", " and ".join(wrong)),
            to_keras=self._in_units(ours, self.keras),
            to_float64=self._in_units(ours, self.truth),
            keras_to_float64=self._in_units(self.keras, self.truth),
            of_bound=of_bound,
            of_allowance=of_allowance,
        )

    def _in_units(self, some: tuple[Array, ...], others: tuple[Array, ...]) -> float:
        largest = max(_largest(a - b) for a, b in zip(some, others, strict=True))
        return largest / self.unit if self.unit else largest


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a network gave: logits (N, classes), loss, and the gradient of every weight and bias by name."""

    logits: Array
    loss: float
    gradients: Mapping[str, Array]


class _Network:
    """A reference model in which any layer may be computed by anything; Keras' and float64's outcome as witnesses."""

    def __init__(self, trace: Trace, compute: Compute) -> None:
        self.trace, self.compute = trace, compute
        self.keras = _Outcome(
            trace.logits, trace.loss, {key: g for layer in trace.layers for key, g in _gradients(layer).items()}
        )
        self.truth = self._run(lambda layer, direction, inputs: definition(layer.case, direction, inputs), np.float64)
        specs = [layer.case.spec for layer in trace.layers]
        self.terms = max(spec.terms_of(direction) for spec in specs for direction in (FORWARD, GRAD_INPUT))
        self.gradient_terms = {
            key: layer.case.spec.terms_of(GRAD_WEIGHTS) for layer in trace.layers for key in _gradients(layer)
        }

    @np.errstate(invalid="ignore", over="ignore")
    def judge(
        self,
        model: str,
        label: str,
        swapped: tuple[LayerTrace, ...],
        name: str,
        refused: Mapping[tuple[str, str], Failure],
    ) -> SwapRow:
        """Swap the implementation in, except where it is known to refuse. Raises Failure without a result."""
        parts = [(layer.name, direction) for layer in swapped for direction in directions_of(layer.case.op)]
        failed = [refused[part] for part in parts if part in refused]
        hard = [failure for failure in failed if failure.status != "UNSUPPORTED"]
        if hard or len(failed) == len(parts):
            raise (hard or failed)[0]

        def call(layer: LayerTrace, direction: str, inputs: Arrays) -> Arrays:
            if layer in swapped and (layer.name, direction) not in refused:
                return _call(self.compute, name, layer.case, direction, inputs)
            try:
                return _call(self.compute, KERAS, layer.case, direction, inputs)
            except Failure as failure:
                raise Failure("ERROR", f"at layer {layer.name}, left to {KERAS}: {failure.reason}") from failure

        outcome = self._run(call, np.float32, start=self.trace.layers.index(swapped[0]))
        return self._row(model, label, name, outcome, tuple(" ".join(part) for part in parts if part in refused))

    def _run(
        self, call: Callable[[LayerTrace, str, Arrays], Arrays], dtype: type[np.floating], start: int = 0
    ) -> _Outcome:
        """Forward from layer ``start`` (what is before it is as Keras recorded it), then all the way back."""
        layers = self.trace.layers
        inputs = [layer.x for layer in layers[:start]]
        value = layers[start].x
        for layer in layers[start:]:
            inputs.append(np.ascontiguousarray(value.reshape(layer.x.shape), dtype))
            given: Arrays = (inputs[-1],) if layer.w is None else (inputs[-1], layer.w, layer.b)
            (value,) = _present(call(layer, FORWARD, given))
        loss, gradient = softmax_loss(value, self.trace.labels)
        gradients: dict[str, Array] = {}
        dy: Array = gradient.astype(dtype)
        for layer, x in zip(reversed(layers), reversed(inputs), strict=True):
            dy = dy.reshape(layer.out.shape)
            if getattr(layer.case.spec, "activation", None) == "relu":
                dy = dy * (layer.out > 0)
            if layer.w is not None:
                dw, db = _present(call(layer, GRAD_WEIGHTS, (x, dy)))
                gradients |= {f"{layer.name}.dw": dw, f"{layer.name}.db": db}
            if layer is not layers[0]:
                given = (layer.x, layer.out, dy) if layer.w is None else (dy, layer.w)
                (dy,) = _present(call(layer, GRAD_INPUT, given))
        return _Outcome(value, loss, gradients)

    def _row(self, model: str, label: str, name: str, ours: _Outcome, left_to_keras: tuple[str, ...]) -> SwapRow:
        keras, truth, terms = self.keras, self.truth, self.terms
        scale = _largest(truth.logits)
        keras_logits = _largest(keras.logits - truth.logits)
        fractions = {
            "logits": _fraction(_largest(ours.logits - truth.logits), keras_logits, scale, terms),
            "loss": _fraction(abs(ours.loss - truth.loss), abs(keras.loss - truth.loss), scale, terms),
        }
        for key, exact in truth.gradients.items():
            distance, keras_distance = _norm(ours.gradients[key] - exact), _norm(keras.gradients[key] - exact)
            fractions[key] = _fraction(distance, keras_distance, _norm(exact), max(terms, self.gradient_terms[key]))
        worst = max(fractions, key=lambda key: fractions[key])
        wrong = not fractions[worst] <= 1
        nearest = 2 * (_allowance(keras_logits, scale, terms) + keras_logits)
        flipped = ours.logits.argmax(axis=1) != keras.logits.argmax(axis=1)
        top = np.sort(keras.logits[flipped], axis=1)
        return SwapRow(
            *(model, label, name, "WRONG" if wrong else "OK"),
            reason=f"{worst}: {fractions[worst]:.3g} of the allowed distance to float64" if wrong else "",
            logits=_largest(ours.logits - keras.logits),
            loss=abs(ours.loss - keras.loss),
            gradients={k: _relative(ours.gradients[k] - v, v) for k, v in keras.gradients.items()},
            flips=int(flipped.sum()),
            ties=int((top[:, -1] - top[:, -2] <= nearest).sum()),
            of_allowance=fractions[worst],
            left_to_keras=left_to_keras,
        )


def _swaps(trace: Trace, op: str) -> Iterator[tuple[str, tuple[LayerTrace, ...]]]:
    """Every layer of the operation alone, then, where there are several, all of them."""
    layers = tuple(layer for layer in trace.layers if layer.case.op == op)
    yield from ((layer.name, (layer,)) for layer in layers)
    if len(layers) > 1:
        yield f"all {op}", layers


def _call(compute: Compute, name: str, case: Case, direction: str, inputs: Arrays) -> Arrays:
    """What ``compute`` gives, or Failure whatever goes wrong."""
    try:
        outputs = compute(name, case, direction, inputs)
    except Failure:
        raise
    except (Unavailable, NotImplementedError) as error:
        raise Failure("UNSUPPORTED", str(error)) from error
    except Exception as error:  # an implementation's mistake is a row, not the end of the run
        raise Failure("ERROR", f"{name}: {type(error).__name__}: {error}") from error
    shapes = [argument.shape for argument in arguments(case.spec, direction) if argument.is_output]
    found = [None if output is None else output.shape for output in outputs]
    if found != shapes:
        raise Failure("ERROR", f"{name} gave shapes {found} instead of {shapes}")
    return outputs


def _gradients(layer: LayerTrace) -> dict[str, Array]:
    """The recorded gradients of a layer's weights and bias, by their names in a network."""
    found = {f"{layer.name}.dw": layer.dw, f"{layer.name}.db": layer.db}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def _dense_unit(case: Case, direction: str, inputs: Arrays) -> float:
    """sqrt(terms) * u * the product of the factors' root mean squares; pooling has one: its pixels, or gradients."""
    factors = inputs[-1:] if isinstance(case.spec, PoolSpec) else inputs[:2]
    return math.sqrt(case.spec.terms_of(direction)) * ROUNDOFF * math.prod(map(_rms, _present(factors)))


def _allowance(keras_distance: float, scale: float, terms: int) -> float:
    return 4 * keras_distance + max(8.0, math.sqrt(terms)) * ULP * scale


def _fraction(distance: float, keras_distance: float, scale: float, terms: int) -> float:
    """A distance in units of what is allowed; infinite if it is not a number, or not 0 where only 0 is allowed."""
    allowance = _allowance(keras_distance, scale, terms)
    if distance == 0:
        return 0.0
    return distance / allowance if math.isfinite(distance) and allowance > 0 else math.inf


def _largest_ratio(error: Array, bound: Array) -> float:
    """The largest error / bound, with 0 / 0 = 0; infinite if an error is not a number."""
    ratio = np.divide(error, bound, out=np.where(error == 0, 0.0, np.inf), where=(bound > 0) & np.isfinite(error))
    return float(ratio.max())


def _relative(difference: Array, whole: Array) -> float:
    size = _norm(whole)
    return _norm(difference) / size if size else _norm(difference)


def _gamma(terms: int) -> float:
    return terms * ROUNDOFF / (1 - terms * ROUNDOFF)


def _present(arrays: Iterable[Array | None]) -> tuple[Array, ...]:
    return tuple(array for array in arrays if array is not None)


def _absolute(array: Array | None) -> Array | None:
    return None if array is None else np.abs(array)


def _largest(array: Array) -> float:
    return float(np.abs(array).max())


def _norm(array: Array) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float64)))


def _rms(array: Array) -> float:
    return _norm(array) / math.sqrt(array.size)


def _first_line(reason: str) -> str:
    return reason.partition("\n")[0]


def _text(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2g}"
