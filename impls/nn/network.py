"""A network on top of the registry: its parameters, and passes over it that are lists of bound calls.

All weights and biases lie in one flat array, their gradients in another of the same layout: an optimizer, a penalty or
a clip is one pass over it. A pass for one batch size binds every layer's calls to buffers once; a step then only calls.
Nothing is allocated after that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import registry
from impls.auto import AUTO, ONE_POOL, choose
from impls.contract import ALIGNMENT, Unavailable, aligned_empty
from impls.devices import CPU
from impls.nn import activations, dropout
from impls.nn.initializers import Initializer, default_for
from impls.nn.normalization import Normalization
from impls.nn.structure import AVERAGES, BatchNorm, Dropout, Flatten, MaxPool, Step, Structure, parse, steps
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, Case, Shape, SpecError

Array = npt.NDArray[Any]

ACTIVATION = "activation"
"""The direction of an operation that is no problem of the registry: an activation, forwards or backwards."""

EVERY = "*"
"""The name of a layer's options where the layer has none of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a layer's short text does not say. Penalties are Keras': l1 sum |w| + l2 sum w^2, added to the loss.

    A batch normalisation has no penalties; one that is not ``trainable`` uses its averages in training too, as Keras'.
    ``implementations``: the implementation's name for each direction; "auto" where it is not given.
    """

    initializer: Initializer | None = None
    l1_kernel: float = 0.0
    l2_kernel: float = 0.0
    l1_bias: float = 0.0
    l2_bias: float = 0.0
    trainable: bool = True
    implementations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A kernel, a bias, ...: where it lies in the flat arrays, its shape, and what its layer's options say of it.

    A normalisation's moving averages are parameters that are not trainable: they have no gradient.
    """

    layer: str
    kind: str
    start: int
    shape: Shape
    l1: float
    l2: float
    trainable: bool

    @property
    def name(self) -> str:
        """As "c0/kernel"."""
        return f"{self.layer}/{self.kind}"

    @property
    def stop(self) -> int:
        """The position after its last value."""
        return self.start + math.prod(self.shape)

    def of(self, flat: Array) -> Array:
        """Its values in a flat array, as a view of its shape."""
        return flat[self.start : self.stop].reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a pass: a layer in a direction; ``case`` is None where the registry has no part in it."""

    layer: str
    direction: str
    run: Callable[[], object]
    case: Case | None = None
    implementation: str = ""


class Network:
    """Layers with their weights.

    ``structure``: a Structure or its text. ``image_shape``: (H, W, C); may be left out where the text has it.
    ``options``: by layer name (c0, m1, d4), EVERY for all others. ``dtype`` float64 is for checking: every layer is
    then computed by ``reference``. Raises SpecError for layers that do not chain and for options of unknown layers.
    """

    def __init__(
        self,
        structure: Structure | str,
        image_shape: Shape | None = None,
        *,
        options: Mapping[str, Options] | None = None,
        seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        self.structure = parse(structure) if isinstance(structure, str) else structure
        shape = image_shape or self.structure.image_shape
        if shape is None:
            raise SpecError(f"{self.structure} does not say the shape of its images; give image_shape=(H, W, C)")
        self.steps = steps(self.structure, shape)
        self.image_shape = shape
        self.options = dict(options or {})
        self.dtype = dtype
        self.seed = seed
        _require_layers(self.options, self.steps)
        self.parameters = tuple(_parameters(self.steps, self.options_of))
        count = self.parameters[-1].stop if self.parameters else 0
        self.weights, self.gradients = (_aligned(count, dtype) for _ in range(2))
        self.initialize(seed)

    @property
    def output_shape(self) -> Shape:
        """The shape of one sample's result."""
        return self.steps[-1].output_shape

    @property
    def activation(self) -> str:
        """The activation of the last layer."""
        return activation_of(self.steps[-1])

    def options_of(self, layer: str) -> Options:
        """The options of a layer by its name."""
        return self.options.get(layer, self.options.get(EVERY, Options()))

    def initialize(self, seed: int) -> None:
        """Draw all weights; normalisations begin with 0 and 1, biases are zero. One seed, one result for any dtype."""
        rng = np.random.default_rng(seed)
        by_name = {step.name: step for step in self.steps}
        for parameter in self.parameters:
            values = parameter.of(self.weights)
            values[...] = parameter.kind in _ONES
            if parameter.kind == "kernel":
                step = by_name[parameter.layer]
                initializer = self.options_of(step.name).initializer or default_for(activation_of(step))
                values[...] = initializer.draw(parameter.shape, rng)

    def layer_weights(self, layer: str, flat: Array | None = None) -> tuple[Array, ...]:
        """A layer's parameters in order, (kernel, bias), as views; of another flat array if one is given."""
        source = self.weights if flat is None else flat
        return tuple(p.of(source) for p in self.parameters if p.layer == layer)

    def load_weights(self, arrays: Mapping[str, Array]) -> None:
        """Overwrite all parameters by their names. Raises SpecError for a missing, unknown or misshapen one."""
        known = {parameter.name: parameter for parameter in self.parameters}
        if set(arrays) != set(known):
            raise SpecError(f"weights {sorted(arrays)} do not fit this network, which has {sorted(known)}")
        for name, parameter in known.items():
            if arrays[name].shape != parameter.shape:
                raise SpecError(f"weights {name} have shape {arrays[name].shape}, not {parameter.shape}")
        for name, parameter in known.items():
            parameter.of(self.weights)[...] = arrays[name]

    def named_weights(self) -> dict[str, Array]:
        """Copies of all parameters by their names."""
        return {parameter.name: parameter.of(self.weights).copy() for parameter in self.parameters}


class Pass:
    """A network bound to one batch size: ``x`` in, ``y`` out; backwards from ``dy`` to the gradients if ``training``.

    ``y`` holds pre-activations of the last layer (after relu, where that is its activation): the loss finishes it.
    """

    def __init__(self, network: Network, batch: int, *, training: bool) -> None:
        self.network = network
        self.batch = batch
        self.training = training
        self.dropout_step = 0
        self.x = _aligned(batch * math.prod(network.image_shape), network.dtype).reshape(batch, *network.image_shape)
        self._inputs: dict[str, Array] = {}
        self._outputs: dict[str, Array] = {}
        self._normalizations: dict[str, Normalization] = {}
        self.forward_operations = tuple(self._bind_forward())
        self.y = self._outputs[network.steps[-1].name]
        self.dy = _aligned(self.y.size, network.dtype).reshape(self.y.shape)
        self.backward_operations = tuple(self._bind_backward()) if training else ()

    def forward(self) -> None:
        """Compute y of x."""
        for operation in self.forward_operations:
            operation.run()

    def backward(self) -> None:
        """Fill the network's gradients, given dy with respect to the pre-activations."""
        for operation in self.backward_operations:
            operation.run()

    def finish(self) -> None:
        """Apply the last activation to y, where no loss does it."""
        activations.apply(self.network.activation, self.y)

    def output_of(self, layer: str) -> Array:
        """What a layer gave in the last forward pass."""
        return self._outputs[layer]

    # --- binding ---

    def _bind_forward(self) -> Iterator[Operation]:
        x = self.x
        for index, step in enumerate(self.network.steps):
            self._inputs[step.name] = x
            case = self._case(step)
            y: Array
            if isinstance(step.layer, Flatten):
                y = x.reshape(self.batch, -1)
            elif isinstance(step.layer, Dropout):
                y = x
                if self.training and step.layer.rate:
                    y = _aligned(x.size, x.dtype.name).reshape(x.shape)
                    yield Operation(step.name, FORWARD, partial(self._drop, index, step.layer.rate, x, y))
            elif isinstance(step.layer, BatchNorm):
                y = _aligned(x.size, x.dtype.name).reshape(x.shape)
                by_batch = self.training and self._learns(step)
                bound = Normalization(x, y, self._weights(step), by_batch=by_batch)
                self._normalizations[step.name] = bound
                yield Operation(step.name, FORWARD, bound.forward)
            else:
                assert case is not None
                y = _aligned(math.prod(case.spec.y_shape), self.network.dtype).reshape(case.spec.y_shape)
                yield self._call(step, case, FORWARD, (x, *self._weights(step), y))
                if activation_of(step) in activations.FORWARD and step is not self.network.steps[-1]:
                    yield Operation(step.name, ACTIVATION, partial(activations.apply, activation_of(step), y))
            self._outputs[step.name] = x = y

    def _bind_backward(self) -> Iterator[Operation]:
        """From the last layer to the first one that learns; what lies before it needs no error."""
        chain = self.network.steps
        learning = [i for i, step in enumerate(chain) if self._learns(step)]
        if not learning:
            return
        dy, is_taken_back = self.dy, False
        for index in range(len(chain) - 1, learning[0] - 1, -1):
            step, case = chain[index], self._case(chain[index])
            x, y = self._inputs[step.name], self._outputs[step.name]
            is_last, is_first = index == len(chain) - 1, index == learning[0]
            if not (is_last or is_taken_back) and activation_of(step) in activations.BACKWARD:
                yield Operation(step.name, ACTIVATION, partial(activations.take_back, activation_of(step), y, dy))
            is_taken_back = False
            gradients = self.network.layer_weights(step.name, self.network.gradients)
            if self._learns(step) and isinstance(step.layer, BatchNorm):
                run = partial(self._normalizations[step.name].grad_weights, dy, *gradients[:2])
                yield Operation(step.name, GRAD_WEIGHTS, run)
            elif self._learns(step):
                assert case is not None
                yield self._call(step, case, GRAD_WEIGHTS, (x, dy, *gradients))
            if is_first:
                return
            if isinstance(step.layer, Flatten):
                dy = dy.reshape(x.shape)
            elif isinstance(step.layer, Dropout):
                if step.layer.rate:
                    yield Operation(step.name, GRAD_INPUT, partial(self._drop, index, step.layer.rate, dy, dy))
            elif isinstance(step.layer, BatchNorm):
                yield Operation(step.name, GRAD_INPUT, partial(self._normalizations[step.name].grad_input, dy))
            else:
                assert case is not None
                name, activation = chain[index - 1].name, activation_of(chain[index - 1])
                is_taken_back = isinstance(step.layer, MaxPool) and activation in activations.OF_EACH
                if is_taken_back:
                    # A maximum is the activation's value where it came from: the same factor, on a fraction of values.
                    yield Operation(name, ACTIVATION, partial(activations.take_back, activation, y, dy))
                dx = _aligned(x.size, self.network.dtype).reshape(x.shape)
                weights = self._weights(step)
                inputs = (dy, weights[0]) if weights else (x, y, dy)
                yield self._call(step, case, GRAD_INPUT, (*inputs, dx))
                dy = dx

    def _drop(self, layer: int, rate: float, source: Array, out: Array) -> None:
        dropout.drop(source, rate, dropout.seed_of(self.network.seed, layer, self.dropout_step), out)

    def _call(self, step: Step, case: Case, direction: str, arrays: tuple[Array, ...]) -> Operation:
        """A layer's call by the implementation that its options name. Raises SpecError where that one cannot."""
        wished = self.network.options_of(step.name).implementations.get(direction, AUTO)
        try:
            if self.network.dtype == "float64":
                name = registry.REFERENCE
            else:
                name = choose(case, direction, ONE_POOL) if wished == AUTO else wished
            record = registry.get(case.op, name)
        except (KeyError, Unavailable) as error:
            raise SpecError(f"layer {step.name}: {error.args[0]}") from error
        reason = record.supports(case.spec, direction)
        if reason is None and record.device is not CPU:
            reason = f"its arrays live on {record.device}, the network's in the computer's memory"
        if reason is not None:
            raise SpecError(f"layer {step.name}, {case}: {name} cannot compute {direction}: {reason}")
        call = record.plan(case.spec, (direction,)).bind(direction, *arrays)
        return Operation(step.name, direction, call.run, case, name)

    def _case(self, step: Step) -> Case | None:
        case = step.case(self.batch)
        return None if case is None else replace(case, spec=replace(case.spec, dtype=self.network.dtype))

    def _weights(self, step: Step) -> tuple[Array, ...]:
        return self.network.layer_weights(step.name)

    def _learns(self, step: Step) -> bool:
        return bool(step.parameters) and self.network.options_of(step.name).trainable


def activation_of(step: Step) -> str:
    """The activation of a layer, linear where it has none."""
    return getattr(step.layer, "activation", "linear")


def _parameters(chain: tuple[Step, ...], options_of: Callable[[str], Options]) -> Iterator[Parameter]:
    start = 0
    for step in chain:
        options = options_of(step.name)
        penalties = {"kernel": (options.l1_kernel, options.l2_kernel), "bias": (options.l1_bias, options.l2_bias)}
        for kind, shape in step.parameter_shapes.items():
            trainable = options.trainable and kind not in AVERAGES
            parameter = Parameter(step.name, kind, start, shape, *penalties.get(kind, (0.0, 0.0)), trainable)
            yield parameter
            start = -(-parameter.stop // _LINE) * _LINE


_ONES = ("gamma", "moving_variance")
"""Kinds of parameters that begin with 1."""

_LINE = ALIGNMENT // 4
"""Every parameter begins on a cache line; what lies between stays zero, weights and gradients alike."""


def _aligned(count: int, dtype: str) -> Array:
    """Zeros, aligned."""
    size = count * np.dtype(dtype).itemsize
    values: Array = aligned_empty(size)[:size].view(dtype)
    return values


def _require_layers(options: Mapping[str, Options], chain: tuple[Step, ...]) -> None:
    names = [step.name for step in chain]
    for name in options:
        if name != EVERY and name not in names:
            raise SpecError(f"options name a layer {name!r} that is not there; the layers are {', '.join(names)}")
