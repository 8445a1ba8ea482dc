"""Judge implementations inside a reference model, on real images: layer by layer, and swapped into the network.

Layer by layer, an implementation gets what Keras had at that layer (the first one: the images themselves). Swapped in,
it computes one layer, or every layer of its operation, while Keras computes the others; logits, loss, every weight
gradient and the predictions are compared. Flattening, relu's gradient, softmax and the loss are done here, in NumPy.
Relu masks and the maxima that pooling's gradient follows are Keras' own in every chain: a value near zero, or two near
each other, may round either way, which moves whole gradients and says nothing about an implementation.

Two bounds; above 1, in units of either, is WRONG:

1. Elementwise: ``bench.check.bound`` for the declared algorithm and arithmetic, which no order of summation exceeds.
   On dense data it is generous for large k, hence the second one.
2. Normwise, distance to float64 <= 4 * Keras' distance to float64 + max(8, sqrt(k)) * 2u * scale, u being the
   roundoff of the declared arithmetic: 2^-24 for float32. A plain running sum of k rounded terms of random or equal
   signs is off by about 0.4 * sqrt(k) * u of its size: each of its k additions rounds a partial sum by u / sqrt(3) at
   most in root mean square, and the partial sums grow as sqrt(j) or j. No implementation has to be cleverer than
   that, and sqrt(k) * 2u is five times as much; what the rest of the network makes of errors is known from Keras'.
   Distances are Euclidean norms for layers and weight gradients, with the norm of the truth as scale, and maxima for
   logits and loss, with the largest logit as scale (the loss is a difference of logits). In a network k is the
   largest of the layers on the way. Arithmetic that cuts factors before it multiplies (TF32), by a part d at most, is
   allowed 2 * d * scale more for each layer and direction that it computes: cutting both factors of a product by d /
   2 on average makes it smaller by d, and sums of them as well. This one is a rule, not a theorem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from bench import check
from bench.keras_model import Array, LayerTrace, Trace
from bench.results import Failure
from impls import Unavailable
from impls.contract import DIRECT, FLOAT32
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, Case, PoolSpec, arguments, directions_of

Arrays: TypeAlias = tuple[Array | None, ...]
Compute: TypeAlias = Callable[[str, Case, str, Arrays], Arrays]
"""(implementation, case, direction, inputs in the order of the contract) -> outputs in the order of the contract.

Raises Failure, or Unavailable or NotImplementedError for what is not supported; anything else is an ERROR.
"""

Declared: TypeAlias = Callable[[str, Case, str], tuple[str, str]]
"""(implementation, case, direction) -> the algorithm and the arithmetic that it declares."""

KERAS = "keras"
"""The name, for ``compute``, of what does the layers that are not swapped."""

RECORDED = "keras (recorded)"
"""The name of Keras' own values in the rows of layers: a witness that contradicts float64 is WRONG too."""

AS_DEFINED = (DIRECT, FLOAT32)
"""What Keras is held to, and who declares nothing."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One implementation on what Keras had at one layer, in one direction.

    The first three figures are largest errors in units of sqrt(terms) * u * the root mean squares of the factors;
    the last two are in units of the bounds of this module. None where there is no result.
    """

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


@dataclass(frozen=True, slots=True)
class SwapRow:
    """One implementation in the place of Keras, at one layer or at all of its operation.

    ``logits`` and ``loss`` are largest differences to Keras'; ``gradients`` has one for every weight and bias, relative
    to the norm of Keras'. ``flips`` counts the predictions that differ, ``ties`` those among them between logits
    that are nearer to each other than the allowed error. ``left_to_keras`` names what it does not compute.
    """

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


def verify_model(
    trace: Trace,
    names: Mapping[str, tuple[str, ...]],
    compute: Compute,
    model: str = "",
    declared: Declared = lambda name, case, direction: AS_DEFINED,
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
                    yield _judge(witness, model, name, outputs, declared)
                except Failure as failure:
                    failures[name, layer.name, direction] = failure
                    yield LayerRow(model, layer.name, layer.case, direction, name, failure.status, failure.reason)
    network = _Network(trace, compute, declared)
    for op in dict.fromkeys(layer.case.op for layer in trace.layers):
        for name in names.get(op, ()):
            refused = {key[1:]: failure for key, failure in failures.items() if key[0] == name}
            for label, swapped in _swaps(trace, op):
                try:
                    yield network.judge(model, label, swapped, name, refused)
                except Failure as failure:
                    yield SwapRow(model, label, name, failure.status, failure.reason)


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
        self.keras: Arrays = tuple(getattr(layer, role.name) for role in roles if role.is_output)
        self.truth = check.expected(layer.case, direction, self.inputs)
        self.bounds: dict[tuple[str, str], Arrays] = {}
        self.unit = _dense_unit(layer.case, direction, self.inputs)

    def judge(self, model: str, name: str, ours: Arrays, declared: tuple[str, str] = AS_DEFINED) -> LayerRow:
        """The row of the outputs of an implementation that declares this algorithm and arithmetic."""
        layer, direction = self.layer, self.direction
        if declared not in self.bounds:
            self.bounds[declared] = check.bound(layer.case, direction, self.inputs, self.truth, *declared)
        judgement = check.judge(layer.case, direction, ours, self.truth, self.bounds[declared])
        of_allowance = self._of_allowance(ours, declared[1])
        wrong = [] if judgement.is_right else [f"{judgement.bounds:.3g} of the elementwise bound: {judgement.where}"]
        wrong += [] if of_allowance <= 1 else [f"{of_allowance:.3g} of the allowed distance to float64"]
        return LayerRow(
            *(model, layer.name, layer.case, direction, name, "WRONG" if wrong else "OK", " and ".join(wrong)),
            to_keras=self._in_units(ours, self.keras),
            to_float64=self._in_units(ours, self.truth.values),
            keras_to_float64=self._in_units(self.keras, self.truth.values),
            of_bound=judgement.bounds,
            of_allowance=of_allowance,
        )

    @np.errstate(invalid="ignore", over="ignore")  # what is not a number is judged, not warned of
    def _of_allowance(self, ours: Arrays, arithmetic: str) -> float:
        terms = self.layer.case.spec.terms_of(self.direction)
        each = zip(*map(_present, (ours, self.keras, self.truth.values)), strict=True)
        return max(_fraction(_norm(o - t), _norm(k - t), _norm(t), terms, (arithmetic,)) for o, k, t in each)

    @np.errstate(invalid="ignore", over="ignore")
    def _in_units(self, some: Arrays, others: Arrays) -> float:
        largest = max(_largest(a - b) for a, b in zip(_present(some), _present(others), strict=True))
        return largest / self.unit if self.unit else largest


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a network gave: logits (N, classes), loss, and the gradient of every weight and bias by name."""

    logits: Array
    loss: float
    gradients: Mapping[str, Array]


class _Network:
    """A reference model in which any layer may be computed by anything; Keras' and float64's outcome as witnesses."""

    def __init__(self, trace: Trace, compute: Compute, declared: Declared) -> None:
        self.trace, self.compute, self.declared = trace, compute, declared
        self.keras = _Outcome(
            trace.logits, trace.loss, {key: g for layer in trace.layers for key, g in _gradients(layer).items()}
        )
        self.truth = self._run(
            lambda layer, direction, inputs: check.definition(layer.case, direction, inputs), np.float64
        )
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
        used = [
            self.declared(name, layer.case, direction)[1]
            for layer in swapped
            for direction in directions_of(layer.case.op)
            if (layer.name, direction) not in refused
        ]
        left_to_keras = tuple(" ".join(part) for part in parts if part in refused)
        return self._row(model, label, name, outcome, left_to_keras, used)

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

    def _row(
        self, model: str, label: str, name: str, ours: _Outcome, left_to_keras: tuple[str, ...], used: Sequence[str]
    ) -> SwapRow:
        keras, truth, terms = self.keras, self.truth, self.terms
        scale = _largest(truth.logits)
        keras_logits = _largest(keras.logits - truth.logits)
        fractions = {
            "logits": _fraction(_largest(ours.logits - truth.logits), keras_logits, scale, terms, used),
            "loss": _fraction(abs(ours.loss - truth.loss), abs(keras.loss - truth.loss), scale, terms, used),
        }
        for key, exact in truth.gradients.items():
            distance, keras_distance = _norm(ours.gradients[key] - exact), _norm(keras.gradients[key] - exact)
            most = max(terms, self.gradient_terms[key])
            fractions[key] = _fraction(distance, keras_distance, _norm(exact), most, used)
        worst = max(fractions, key=lambda key: fractions[key])
        wrong = not fractions[worst] <= 1
        nearest = 2 * (_allowance(keras_logits, scale, terms, used) + keras_logits)
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


def _judge(witness: _Witness, model: str, name: str, outputs: Arrays, declared: Declared) -> LayerRow:
    """The row of these outputs, or Failure where the checker cannot say: that is no pass."""
    try:
        return witness.judge(model, name, outputs, declared(name, witness.layer.case, witness.direction))
    except Exception as error:
        raise Failure("ERROR", f"it cannot be judged: {type(error).__name__}: {error}") from error


def _gradients(layer: LayerTrace) -> dict[str, Array]:
    """The recorded gradients of a layer's weights and bias, by their names in a network."""
    found = {f"{layer.name}.dw": layer.dw, f"{layer.name}.db": layer.db}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def _dense_unit(case: Case, direction: str, inputs: Arrays) -> float:
    """sqrt(terms) * u * the product of the factors' root mean squares; pooling has one: its pixels, or gradients."""
    factors = inputs[-1:] if isinstance(case.spec, PoolSpec) else inputs[:2]
    return math.sqrt(case.spec.terms_of(direction)) * check.ROUNDOFF[FLOAT32] * math.prod(map(_rms, _present(factors)))


def _allowance(keras_distance: float, scale: float, terms: int, used: Sequence[str]) -> float:
    """The second bound of this module; ``used``: the arithmetic of each layer and direction on the way."""
    u = max(check.ROUNDOFF[arithmetic] for arithmetic in (FLOAT32, *used))
    cut = sum(2 * check.FACTOR_ROUNDOFF.get(arithmetic, 0.0) for arithmetic in used)
    return 4 * keras_distance + (max(8.0, math.sqrt(terms)) * 2 * u + cut) * scale


def _fraction(distance: float, keras_distance: float, scale: float, terms: int, used: Sequence[str]) -> float:
    """A distance in units of what is allowed; infinite if it is not a number, or not 0 where only 0 is allowed."""
    allowance = _allowance(keras_distance, scale, terms, used)
    if distance == 0:
        return 0.0
    return distance / allowance if math.isfinite(distance) and allowance > 0 else math.inf


def _relative(difference: Array, whole: Array) -> float:
    size = _norm(whole)
    return _norm(difference) / size if size else _norm(difference)


def _present(arrays: Iterable[Array | None]) -> tuple[Array, ...]:
    return tuple(array for array in arrays if array is not None)


def _largest(array: Array) -> float:
    return float(np.abs(array).max())


def _norm(array: Array) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float64)))


def _rms(array: Array) -> float:
    return _norm(array) / math.sqrt(array.size)
