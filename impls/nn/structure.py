"""Networks written as one line of text, the layer problems in them, and the published ones.

    structure    [64x64x1->]layer;layer;...[;]      layer x2 stands for the layer twice
    C(5,8,r)     convolution: 5x5 kernel, 8 filters, "same" padding, stride 1; the activation may be left out
    M(4)         max pooling: 4x4 windows side by side; what is left over at the bottom and right is dropped
    A(4)         average pooling of the same windows
    DR(0.25)     dropout: the fraction dropped in training; nothing happens in inference
    BN()         batch normalisation of every channel, or unit, with Keras' settings
    F()          flatten
    D(64,r)      dense: 64 units; the activation may be left out

Activations: r or relu, sm or softmax, s or sigmoid, t or tanh, l or linear (the default).
A repetition may be written with the multiplication sign too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, TypeAlias

from impls.specs import Activation, Case, ConvSpec, DenseSpec, PoolSpec, Shape, SpecError

ACTIVATIONS = {"linear": "l", "relu": "r", "sigmoid": "s", "softmax": "sm", "tanh": "t"}
"""Every activation and its short form."""

AVERAGES = ("moving_mean", "moving_variance")
"""Kinds of parameters that no gradient moves."""

_LONG = {short: name for name, short in ACTIVATIONS.items()}


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution with "same" padding and stride 1, then an activation."""

    code: ClassVar[str] = "C"
    kernel: int
    filters: int
    activation: str = "linear"

    def __post_init__(self) -> None:
        _require_counts(kernel=self.kernel, filters=self.filters)
        _require_activation(self.activation)

    def __str__(self) -> str:
        return f"C({self.kernel},{self.filters}{_activation_text(self.activation)})"


@dataclass(frozen=True, slots=True)
class MaxPool:
    """The maximum of square windows side by side; an incomplete window at the bottom or right is dropped."""

    code: ClassVar[str] = "M"
    pool: int

    def __post_init__(self) -> None:
        _require_counts(pool=self.pool)

    def __str__(self) -> str:
        return f"M({self.pool})"


@dataclass(frozen=True, slots=True)
class AveragePool:
    """The average of square windows side by side; an incomplete window at the bottom or right is dropped."""

    code: ClassVar[str] = "A"
    pool: int

    def __post_init__(self) -> None:
        _require_counts(pool=self.pool)

    def __str__(self) -> str:
        return f"A({self.pool})"


@dataclass(frozen=True, slots=True)
class Dropout:
    """In training, zeroes this fraction of the values; in inference, nothing."""

    code: ClassVar[str] = "DR"
    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise SpecError(f"rate={self.rate} must be at least 0 and below 1")

    def __str__(self) -> str:
        return f"DR({self.rate:g})"


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """Every channel brought to a learned mean and deviation: of the batch in training, of averages in inference."""

    code: ClassVar[str] = "BN"

    def __str__(self) -> str:
        return "BN()"


@dataclass(frozen=True, slots=True)
class Flatten:
    """An image as a row, in the order of its memory."""

    code: ClassVar[str] = "F"

    def __str__(self) -> str:
        return "F()"


@dataclass(frozen=True, slots=True)
class Dense:
    """Every input to every unit, then an activation."""

    code: ClassVar[str] = "D"
    units: int
    activation: str = "linear"

    def __post_init__(self) -> None:
        _require_counts(units=self.units)
        _require_activation(self.activation)

    def __str__(self) -> str:
        return f"D({self.units}{_activation_text(self.activation)})"


Layer: TypeAlias = Conv | MaxPool | AveragePool | Dropout | BatchNorm | Flatten | Dense


@dataclass(frozen=True, slots=True)
class Structure:
    """The layers of a network in order, and the shape of its images (H, W, C) where the text gave it."""

    layers: tuple[Layer, ...]
    image_shape: Shape | None = None

    @property
    def long(self) -> str:
        """The long text form: no repetitions, full names of the activations; ``parse`` reads it back."""
        body = "".join(f"{_long_text(layer)};" for layer in self.layers)
        return f"{'x'.join(map(str, self.image_shape))}->{body}" if self.image_shape else body

    def __str__(self) -> str:
        """The short text form; ``parse`` reads it back."""
        runs = [(layer, len(list(run))) for layer, run in groupby(self.layers)]
        body = "".join(f"{layer}{f'x{count}' if count > 1 else ''};" for layer, count in runs)
        return f"{'x'.join(map(str, self.image_shape))}->{body}" if self.image_shape else body


@dataclass(frozen=True, slots=True)
class Step:
    """A layer in its place: its name (code and position, as in c0 or dr2) and the shapes without the batch."""

    name: str
    layer: Layer
    input_shape: Shape
    output_shape: Shape

    @property
    def parameter_shapes(self) -> dict[str, Shape]:
        """The shape of every parameter by its kind, in the order in which Keras' layer has them."""
        inputs = self.input_shape[-1]
        match self.layer:
            case Conv(kernel, filters):
                return {"kernel": (kernel, kernel, inputs, filters), "bias": (filters,)}
            case Dense(units):
                return {"kernel": (inputs, units), "bias": (units,)}
            case BatchNorm():
                return dict.fromkeys(("gamma", "beta", *AVERAGES), (inputs,))
        return {}

    @property
    def parameters(self) -> int:
        """Weights and biases; of a normalisation its averages too."""
        return sum(map(math.prod, self.parameter_shapes.values()))

    def case(self, batch: int) -> Case | None:
        """The layer problem of this step, None where there is none to compute (dropout, normalisation, flatten).

        An activation other than relu is left to whoever runs the network: the problem is then linear.
        """
        layer = self.layer
        if isinstance(layer, Dense):
            (inputs,) = self.input_shape
            return Case("dense", DenseSpec(batch, inputs, layer.units, activation=_fused(layer.activation)))
        if isinstance(layer, Conv):
            h, w, c = self.input_shape
            kernel, activation = (layer.kernel, layer.kernel), _fused(layer.activation)
            return Case("conv2d", ConvSpec(batch, h, w, c, layer.filters, kernel, activation=activation))
        if isinstance(layer, MaxPool | AveragePool):
            h, w, c = self.input_shape
            op = "maxpool2d" if isinstance(layer, MaxPool) else "avgpool2d"
            return Case(op, PoolSpec(batch, h, w, c, pool=(layer.pool, layer.pool)))
        return None


def steps(structure: Structure, image_shape: Shape) -> tuple[Step, ...]:
    """Every layer in its place, the first one on images (H, W, C).

    Raises SpecError, naming the layer, for shapes that do not chain or that vanish, and for images of another shape
    than the structure was written for.
    """
    if structure.image_shape not in (None, image_shape):
        raise SpecError(f"{structure} is for images of {structure.image_shape}, not {image_shape}")
    if len(image_shape) != 3:
        raise SpecError(f"image shape {image_shape} must be height, width, channels")
    chain: list[Step] = []
    shape: Shape = image_shape
    for index, layer in enumerate(structure.layers):
        name = f"{layer.code.lower()}{index}"
        try:
            chain.append(Step(name, layer, shape, _output_shape(layer, shape)))
        except SpecError as error:
            raise SpecError(f"layer {name}, {layer}, in {structure}: {error}") from error
        shape = chain[-1].output_shape
    return tuple(chain)


def problems(structure: Structure, image_shape: Shape, batch: int) -> tuple[Case, ...]:
    """The layer problems of a network, in order, at this batch size. Raises SpecError as ``steps`` does."""
    cases = (step.case(batch) for step in steps(structure, image_shape))
    return tuple(case for case in cases if case is not None)


def parse(text: str) -> Structure:
    """Read a structure. Raises SpecError that points at the character where reading stopped."""
    scanner = _Scanner(text)
    prefix = scanner.optional(r"(\d+)x(\d+)x(\d+)->")
    layers: list[Layer] = []
    while not (layers and scanner.at_end):
        layers += _read_layer(scanner)
    return Structure(tuple(layers), tuple(map(int, prefix.groups())) if prefix else None)


_FORMS = "C(kernel,filters), M(pool), A(pool), DR(rate), BN(), F(), D(units)"
_WHOLE = r"\d+"
_FRACTION = r"\d*\.\d+|\d+"
_ACTIVATION = r"[a-z]+"


class _Scanner:
    """Reads patterns one after the other from a text; blanks between them are skipped."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    @property
    def at_end(self) -> bool:
        return self.optional("$") is not None

    def optional(self, pattern: str) -> re.Match[str] | None:
        match = re.compile(rf"\s*(?:{pattern})").match(self.text, self.position)
        if match:
            self.position = match.end()
        return match

    def take(self, pattern: str, expected: str) -> str:
        self.optional("")
        start = self.position
        if self.optional(pattern) is None:
            raise self.error(start, f"expected {expected}")
        return self.text[start : self.position]

    def error(self, position: int, message: str) -> SpecError:
        return SpecError(f"{message} at character {position + 1} of the structure\n  {self.text}\n  {' ' * position}^")


def _read_layer(scanner: _Scanner) -> Iterator[Layer]:
    """One layer as often as it is repeated, and the semicolon after it."""
    scanner.optional("")
    start = scanner.position
    code = scanner.take("DR|BN|[CMAFD]", f"one of the layers {_FORMS}")
    scanner.take(r"\(", "an opening bracket")
    try:
        layer = _read_arguments(scanner, code)
    except SpecError as error:
        raise error if "\n" in str(error) else scanner.error(start, f"{error}:") from None
    scanner.take(r"\)", "a closing bracket")
    count = 1
    if scanner.optional("[x\u00d7]"):
        count = int(scanner.take("[1-9][0-9]*", "how often the layer is repeated"))
    if not scanner.at_end:
        scanner.take(";", "a semicolon")
    yield from [layer] * count


def _read_arguments(scanner: _Scanner, code: str) -> Layer:
    if code == "C":
        kernel = int(scanner.take(_WHOLE, "the kernel's side"))
        scanner.take(",", "a comma and the number of filters")
        return Conv(kernel, int(scanner.take(_WHOLE, "the number of filters")), _read_activation(scanner))
    if code in ("M", "A"):
        pool = int(scanner.take(_WHOLE, "the window's side"))
        return MaxPool(pool) if code == "M" else AveragePool(pool)
    if code == "DR":
        return Dropout(float(scanner.take(_FRACTION, "the fraction to drop")))
    if code == "D":
        return Dense(int(scanner.take(_WHOLE, "the number of units")), _read_activation(scanner))
    return BatchNorm() if code == "BN" else Flatten()


def _read_activation(scanner: _Scanner) -> str:
    if not scanner.optional(","):
        return "linear"
    scanner.optional("")
    start = scanner.position
    word = scanner.take(_ACTIVATION, "an activation")
    if word not in ACTIVATIONS and word not in _LONG:
        known = ", ".join(f"{short} ({name})" for name, short in ACTIVATIONS.items())
        raise scanner.error(start, f"unknown activation {word!r}; known: {known};")
    return _LONG.get(word, word)


def _output_shape(layer: Layer, shape: Shape) -> Shape:
    if isinstance(layer, Conv | MaxPool | AveragePool) and len(shape) != 3:
        raise SpecError(f"needs an image, but gets a row of {shape[0]}")
    if isinstance(layer, Dense) and len(shape) != 1:
        raise SpecError(f"needs a row, but gets an image of {shape}; put F() before it")
    if isinstance(layer, Conv):
        return (*shape[:2], layer.filters)
    if isinstance(layer, MaxPool | AveragePool):
        height, width = shape[0] // layer.pool, shape[1] // layer.pool
        if not height or not width:
            raise SpecError(f"its window is larger than the image of {shape}, of which nothing is left")
        return (height, width, shape[2])
    if isinstance(layer, Flatten):
        return (math.prod(shape),)
    return (layer.units,) if isinstance(layer, Dense) else shape


def _fused(activation: str) -> Activation:
    return "relu" if activation == "relu" else None


def _activation_text(activation: str) -> str:
    return "" if activation == "linear" else f",{ACTIVATIONS[activation]}"


def _long_text(layer: Layer) -> str:
    activation = getattr(layer, "activation", "linear")
    short = _activation_text(activation)
    return f"{str(layer).removesuffix(f'{short})')},{activation})" if short else str(layer)


def _require_counts(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise SpecError(f"{name}={value} must be at least 1")


def _require_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise SpecError(f"activation={activation!r} must be one of {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True, slots=True)
class Published:
    """One published experiment: its data set, its number there, its network, and the batch it was trained with."""

    dataset: str
    number: int
    structure: Structure
    image_shape: Shape
    batch: int

    def problems(self, batch: int | None = None) -> tuple[Case, ...]:
        """The layer problems, at the published batch size or another one."""
        return problems(self.structure, self.image_shape, self.batch if batch is None else batch)


def _experiments(dataset: str, image_shape: Shape, batch: int, *texts: str) -> tuple[Published, ...]:
    return tuple(Published(dataset, n, parse(text), image_shape, batch) for n, text in enumerate(texts, start=1))


PUBLISHED: tuple[Published, ...] = (
    *_experiments(
        "olivetti",
        (64, 64, 1),
        28,
        "F();D(8,r);DR(0.25);D(40,sm);",
        "F();D(64,r);DR(0.25);D(40,sm);",
        "F();D(64,r);DR(0.25);D(64,r);DR(0.25);D(40,sm);",
        "C(5,8,r);M(4);DR(0.25);F();D(64,r);DR(0.25);D(40,sm);",
        "C(9,16,r);M(4);DR(0.25);F();D(64,r);DR(0.25);D(40,sm);",
        "C(5,8,r);M(4);DR(0.25);C(3,16,r);M(2);DR(0.25);F();D(64,r);DR(0.25);D(40,sm);",
        "C(5,8,r);M(2);DR(0.25);C(3,16,r);M(2);DR(0.25);F();D(64,r);DR(0.25);D(40,sm);",
        "C(5,8,r)x2;M(4);DR(0.25);F();D(64,r);DR(0.25);D(40,sm);",
        "C(3,8,r)x2;M(4);DR(0.25);F();D(64,r);DR(0.25);D(40,sm);",
        "C(5,8,r)x2;M(2);DR(0.25);C(3,16,r)x2;M(2);DR(0.25);F();D(64,r);DR(0.25);D(40,sm);",
        "C(5,8,r)x2;M(4);DR(0.25);C(3,32,r)x2;M(2);DR(0.25);F();D(64,r);DR(0.25);D(40,sm);",
    ),
    *_experiments(
        "mnist",
        (28, 28, 1),
        3000,
        "F();D(128,r);DR(0.125);D(128,r);DR(0.125);D(10,sm);",
        "F();D(512,r);DR(0.125);D(512,r);DR(0.125);D(10,sm);",
        "F();D(512,r);DR(0.125);D(512,r);DR(0.125);D(512,r);DR(0.125);D(10,sm);",
        "C(7,64,r);M(2);DR(0.125);F();D(128,r);DR(0.125);D(10,sm);",
        "C(7,64,r);M(2);DR(0.125);C(5,128,r);M(2);DR(0.125);F();D(128,r);DR(0.125);D(10,sm);",
        "C(5,64,r);M(2);DR(0.125);C(3,128,r);M(2);DR(0.125);F();D(128,r);DR(0.125);D(10,sm);",
        "C(5,32,r)x2;M(2);DR(0.125);C(3,64,r)x2;M(2);DR(0.125);F();D(128,r);DR(0.125);D(10,sm);",
        "C(3,32,r)x2;M(2);DR(0.125);C(3,64,r)x2;M(2);DR(0.125);C(3,128,r)x2;M(2);DR(0.125);"
        "F();D(128,r);DR(0.125);D(10,sm);",
        "C(5,32,r)x2;M(2);DR(0.125);C(3,64,r)x2;M(2);DR(0.125);C(3,128,r)x2;M(2);DR(0.125);"
        "F();D(128,r);DR(0.125);D(10,sm);",
        "C(5,32,r)x2;M(2);DR(0.125);C(3,64,r)x2;M(2);DR(0.25);C(3,128,r)x2;M(2);DR(0.5);F();D(128,r);DR(0.5);D(10,sm);",
    ),
    *_experiments(
        "cifar10",
        (32, 32, 3),
        1000,
        "F();D(512,r);DR(0.25);D(512,r);DR(0.25);D(512,r);DR(0.25);D(10,sm);",
        "F();D(512,r);DR(0.125);D(512,r);DR(0.125);D(512,r);DR(0.125);D(10,sm);",
        "C(3,32,r);M(2);DR(0.125);F();D(128,r);DR(0.125);D(10,sm);",
        "C(3,32,r);M(2);DR(0.125);F();D(128,r);DR(0.25);D(10,sm);",
        "C(7,32,r);M(2);DR(0.125);F();D(128,r);DR(0.125);D(10,sm);",
        "C(7,32,r);M(2);DR(0.125);C(5,64,r);M(2);DR(0.125);F();D(128,r);DR(0.125);D(10,sm);",
        "C(3,32,r);C(5,16,r);M(2);DR(0.125);F();D(128,r);DR(0.25);D(10,sm);",
        "C(7,32,r);C(5,32,r);M(2);DR(0.125);C(3,64,r)x2;M(2);DR(0.25);F();D(128,r);DR(0.5);D(10,sm);",
        "C(3,32,r)x2;M(2);DR(0.125);C(3,64,r)x2;M(2);DR(0.125);F();D(128,r);DR(0.125);D(10,sm);",
        "C(3,32,r)x2;M(2);DR(0.125);C(3,64,r)x2;M(2);DR(0.25);F();D(128,r);DR(0.5);D(10,sm);",
        "C(3,32,r)x2;M(2);DR(0.125);C(3,64,r)x2;M(2);DR(0.125);C(3,128,r)x2;M(2);DR(0.125);"
        "F();D(128,r);DR(0.125);D(10,sm);",
        "C(3,32,r)x2;M(2);DR(0.125);C(3,64,r)x2;M(2);DR(0.25);C(3,128,r)x2;M(2);DR(0.5);F();D(128,r);DR(0.5);D(10,sm);",
    ),
)
"""The networks of P. Klęsk, Appl. Sci. 2024, 14(21), 9972, with the images and batch sizes they were trained on.

They stand here and nowhere else.
"""
