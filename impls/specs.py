"""Layer problems as frozen values: shapes, FLOPs, bytes and a one-line text form.

Everything about shape is asked of a spec. Layouts are Keras': images (N, H, W, C), convolution weights
(KH, KW, C / groups, F), dense weights (inputs, units). Convolution is cross-correlation: the kernel is not flipped.

Text form (what ``--case`` takes, and what ``str(spec)`` prints; only what differs from the default is written):

    convolution  32x28x28x1,k5x5,f8[,s2x2][,valid|,p1:1:0:0][,d2x2][,g4][,nobias][,relu][,float64]
    pooling      32x28x28x8,pool2x2[,s1x1][,same|,p1:1:0:0]
    dense        32x784,u128[,nobias][,relu]

Explicit padding is p followed by rows above, rows below, columns left, columns right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import product
from typing import Literal, TypeAlias, cast

Pair: TypeAlias = tuple[int, int]
Sides: TypeAlias = tuple[Pair, Pair]
"""((top, bottom), (left, right)): rows and columns of padding."""
Padding: TypeAlias = Literal["same", "valid"] | Sides
Activation: TypeAlias = Literal["relu"] | None
Shape: TypeAlias = tuple[int, ...]

FORWARD = "forward"
GRAD_WEIGHTS = "grad_weights"
GRAD_INPUT = "grad_input"
DIRECTIONS = (FORWARD, GRAD_WEIGHTS, GRAD_INPUT)

DTYPES = ("float32", "float64")
ITEMSIZE = {"float32": 4, "float64": 8}


class SpecError(ValueError):
    """A layer problem that cannot exist; the message names the value and the remedy."""


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """y[n,i,j,f] = activation(b[f] + sum over a,b,c of x[n, i*s + a*d - p, j*s + b*d - p, c] * w[a,b,c,f]).

    With groups, channels and filters are cut into that many equal parts and part g of y reads part g of x alone.
    ``same`` pads as Keras does: the output has ceil(side / stride) pixels, the odd pixel of padding goes to the
    bottom and right. Raises SpecError for sizes that are not positive integers, groups that do not divide channels
    and filters, or a kernel that is larger than the padded image.
    """

    batch: int
    height: int
    width: int
    channels: int
    filters: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Padding = "same"
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = True
    dtype: str = "float32"
    activation: Activation = None

    def __post_init__(self) -> None:
        _require_positive(self, "batch", "height", "width", "channels", "filters", "groups")
        _require_pairs(self, "kernel", "stride", "dilation")
        _require_padding(self)
        _require_options(self)
        if self.channels % self.groups or self.filters % self.groups:
            raise SpecError(f"groups={self.groups} must divide channels={self.channels} and filters={self.filters}")
        _require_fit(self, "kernel", self.extent)

    @property
    def extent(self) -> Pair:
        """Rows and columns from the first to the last tap of the dilated kernel, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))  # type: ignore[return-value]  # two in, two out

    @property
    def pads(self) -> Sides:
        """((top, bottom), (left, right)), whatever way the padding was written."""
        return _pads(self.padding, (self.height, self.width), self.extent, self.stride)

    @property
    def x_shape(self) -> Shape:
        """(N, H, W, C)."""
        return (self.batch, self.height, self.width, self.channels)

    @property
    def w_shape(self) -> Shape:
        """(KH, KW, C / groups, F)."""
        return (*self.kernel, self.channels // self.groups, self.filters)

    @property
    def b_shape(self) -> Shape | None:
        """(F,), or None without bias."""
        return (self.filters,) if self.bias else None

    @property
    def y_shape(self) -> Shape:
        """(N, OH, OW, F)."""
        return (self.batch, *_out_sides(self.pads, (self.height, self.width), self.extent, self.stride), self.filters)

    @property
    def terms(self) -> int:
        """Products summed into one output value away from the border: KH * KW * C / groups."""
        return math.prod(self.w_shape[:3])

    def terms_of(self, direction: str) -> int:
        """The largest number of products summed into one value of the direction's result."""
        kh, kw = self.kernel
        _, out_h, out_w, _ = self.y_shape
        return {
            FORWARD: self.terms,
            GRAD_WEIGHTS: self.batch * out_h * out_w,
            GRAD_INPUT: kh * kw * self.filters // self.groups,
        }[direction]

    @property
    def flops(self) -> int:
        """Two per product of a real pixel and a weight; taps on padding do not count. Equal in every direction."""
        sides = (self.height, self.width)
        rows, columns = (
            _taps_inside(side, out, k, s, d, pad[0])
            for side, out, k, s, d, pad in zip(
                sides, self.y_shape[1:3], self.kernel, self.stride, self.dilation, self.pads, strict=True
            )
        )
        return 2 * self.batch * rows * columns * (self.channels // self.groups) * self.filters

    @property
    def bytes(self) -> int:
        """The least traffic of a forward call: x, w and b read once, y written once."""
        return _bytes(self, FORWARD)

    def __str__(self) -> str:
        """The one-line text form; ``parse`` reads it back."""
        parts = [_join(self.x_shape), f"k{_join(self.kernel)}", f"f{self.filters}"]
        parts += [f"s{_join(self.stride)}"] if self.stride != (1, 1) else []
        parts += _padding_text(self.padding, default="same")
        parts += [f"d{_join(self.dilation)}"] if self.dilation != (1, 1) else []
        parts += [f"g{self.groups}"] if self.groups != 1 else []
        return ",".join(parts + _ending_text(self.bias, self.activation, self.dtype))


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The maximum, or the average, of every window of every channel; the op says which.

    ``stride=None`` becomes the pool size. A window that holds only padding is refused. An average divides by the
    pixels really under the window. Raises SpecError as ConvSpec does.
    """

    batch: int
    height: int
    width: int
    channels: int
    pool: Pair = (2, 2)
    stride: Pair | None = None
    padding: Padding = "valid"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.stride is None:
            object.__setattr__(self, "stride", self.pool)
        _require_positive(self, "batch", "height", "width", "channels")
        _require_pairs(self, "pool", "stride")
        _require_padding(self)
        _require_options(self)
        _require_fit(self, "pool", self.pool)
        if any(before >= p or after >= p for (before, after), p in zip(self.pads, self.pool, strict=True)):
            raise SpecError(
                f"padding={self.padding} leaves windows of pool={self.pool} with no pixel under them; "
                "padding must be smaller than the window on every side"
            )

    @property
    def step(self) -> Pair:
        """The stride, never None."""
        return cast(Pair, self.stride)

    @property
    def pads(self) -> Sides:
        """((top, bottom), (left, right)), whatever way the padding was written."""
        return _pads(self.padding, (self.height, self.width), self.pool, self.step)

    @property
    def x_shape(self) -> Shape:
        """(N, H, W, C)."""
        return (self.batch, self.height, self.width, self.channels)

    @property
    def w_shape(self) -> None:
        """Pooling has no weights."""
        return None

    @property
    def b_shape(self) -> None:
        """Pooling has no bias."""
        return None

    @property
    def y_shape(self) -> Shape:
        """(N, OH, OW, C)."""
        sides = _out_sides(self.pads, (self.height, self.width), self.pool, self.step)
        return (self.batch, *sides, self.channels)

    @property
    def terms(self) -> int:
        """Pixels under one window away from the border: PH * PW."""
        return math.prod(self.pool)

    def terms_of(self, direction: str) -> int:
        """Pixels under a window (forward), or the most windows over one pixel (input gradient)."""
        if direction == FORWARD:
            return self.terms
        return math.prod(-(-p // s) for p, s in zip(self.pool, self.step, strict=True))

    @property
    def flops(self) -> int:
        """One per real pixel under a window: a comparison or an addition."""
        sides = (self.height, self.width)
        rows, columns = (
            _taps_inside(side, out, p, s, 1, pad[0])
            for side, out, p, s, pad in zip(sides, self.y_shape[1:3], self.pool, self.step, self.pads, strict=True)
        )
        return self.batch * rows * columns * self.channels

    @property
    def bytes(self) -> int:
        """The least traffic of a forward call: x read once, y written once."""
        return _bytes(self, FORWARD)

    def __str__(self) -> str:
        """The one-line text form; ``parse`` reads it back."""
        parts = [_join(self.x_shape), f"pool{_join(self.pool)}"]
        parts += [f"s{_join(self.step)}"] if self.step != self.pool else []
        parts += _padding_text(self.padding, default="valid")
        return ",".join(parts + _ending_text(True, None, self.dtype))


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """y = activation(x @ w + b) for a batch of rows. Raises SpecError for sizes that are not positive integers."""

    batch: int
    inputs: int
    units: int
    bias: bool = True
    dtype: str = "float32"
    activation: Activation = None

    def __post_init__(self) -> None:
        _require_positive(self, "batch", "inputs", "units")
        _require_options(self)

    @property
    def x_shape(self) -> Shape:
        """(batch, inputs)."""
        return (self.batch, self.inputs)

    @property
    def w_shape(self) -> Shape:
        """(inputs, units)."""
        return (self.inputs, self.units)

    @property
    def b_shape(self) -> Shape | None:
        """(units,), or None without bias."""
        return (self.units,) if self.bias else None

    @property
    def y_shape(self) -> Shape:
        """(batch, units)."""
        return (self.batch, self.units)

    @property
    def terms(self) -> int:
        """Products summed into each output value."""
        return self.inputs

    def terms_of(self, direction: str) -> int:
        """Products summed into each value of the direction's result."""
        return {FORWARD: self.inputs, GRAD_WEIGHTS: self.batch, GRAD_INPUT: self.units}[direction]

    @property
    def flops(self) -> int:
        """Two per product; equal in every direction."""
        return 2 * self.batch * self.inputs * self.units

    @property
    def bytes(self) -> int:
        """The least traffic of a forward call: x, w and b read once, y written once."""
        return _bytes(self, FORWARD)

    def __str__(self) -> str:
        """The one-line text form; ``parse`` reads it back."""
        return ",".join([_join(self.x_shape), f"u{self.units}", *_ending_text(self.bias, self.activation, self.dtype)])


Spec: TypeAlias = ConvSpec | PoolSpec | DenseSpec

SPEC_TYPES: Mapping[str, type[ConvSpec] | type[PoolSpec] | type[DenseSpec]] = {
    "conv2d": ConvSpec,
    "maxpool2d": PoolSpec,
    "avgpool2d": PoolSpec,
    "dense": DenseSpec,
}
"""Every operation and the kind of problem it solves."""

OPS = tuple(SPEC_TYPES)


@dataclass(frozen=True, slots=True)
class Argument:
    """One array of a call: its name in the contract, its shape (None: absent), and whether the call fills it."""

    name: str
    shape: Shape | None
    is_output: bool


def directions_of(op: str) -> tuple[str, ...]:
    """The directions that exist: pooling has no weights."""
    return (FORWARD, GRAD_INPUT) if SPEC_TYPES[op] is PoolSpec else DIRECTIONS


def arguments(spec: Spec, direction: str) -> tuple[Argument, ...]:
    """The arrays of a direction's call, in the order of the contract: inputs first, then outputs.

    convolution and dense: forward(x, w, b, out), grad_weights(x, dy, dw, db), grad_input(dy, w, dx);
    pooling: forward(x, out), grad_input(x, y, dy, dx). Raises KeyError for a direction that does not exist.
    """
    x, w, b, y = spec.x_shape, spec.w_shape, spec.b_shape, spec.y_shape
    signatures: dict[str, tuple[tuple[tuple[str, Shape | None], ...], tuple[tuple[str, Shape | None], ...]]]
    if isinstance(spec, PoolSpec):
        signatures = {
            FORWARD: ((("x", x),), (("out", y),)),
            GRAD_INPUT: ((("x", x), ("y", y), ("dy", y)), (("dx", x),)),
        }
    else:
        signatures = {
            FORWARD: ((("x", x), ("w", w), ("b", b)), (("out", y),)),
            GRAD_WEIGHTS: ((("x", x), ("dy", y)), (("dw", w), ("db", b))),
            GRAD_INPUT: ((("dy", y), ("w", w)), (("dx", x),)),
        }
    inputs, outputs = signatures[direction]
    return tuple(Argument(name, shape, False) for name, shape in inputs) + tuple(
        Argument(name, shape, True) for name, shape in outputs
    )


def traffic(spec: Spec, direction: str) -> int:
    """Bytes of a direction's arrays, each counted once."""
    return _bytes(spec, direction)


@dataclass(frozen=True, slots=True)
class Case:
    """One operation on one problem, written ``conv2d:32x28x28x1,k5x5,f8``."""

    op: str
    spec: Spec

    def __post_init__(self) -> None:
        expected = spec_type(self.op)
        if not isinstance(self.spec, expected):
            raise SpecError(f"{self.op} takes a {expected.__name__}, not a {type(self.spec).__name__}")

    def least_traffic(self, direction: str) -> int:
        """The least bytes that have to move: every output once, and once every input that a result depends on.

        No window reads the pixels between windows that are further apart than they are wide; no pixel meets a tap, or a
        window, that only ever lies on padding. The maximum y follows from x; the gradient of an average depends on
        neither.
        """
        return self.least_reads(direction) + self.least_writes(direction)

    def least_reads(self, direction: str) -> int:
        """Of the least traffic the inputs' bytes."""
        spare = {"maxpool2d": ("y",), "avgpool2d": ("x", "y")}.get(self.op, ()) if direction == GRAD_INPUT else ()
        kept = (a for a in arguments(self.spec, direction) if not a.is_output and a.name not in spare)
        return self._bytes(self._needed(direction, a) for a in kept)

    def least_writes(self, direction: str) -> int:
        """Of the least traffic the outputs' bytes."""
        return self._bytes(a.shape for a in arguments(self.spec, direction) if a.is_output)

    def _bytes(self, shapes: Iterable[Shape | None]) -> int:
        return sum(math.prod(shape) for shape in shapes if shape) * ITEMSIZE[self.spec.dtype]

    def _needed(self, direction: str, argument: Argument) -> Shape | None:
        """The shape of the part of an input on which the direction's result depends."""
        shape = argument.shape
        if shape is None or isinstance(self.spec, DenseSpec) or argument.name == "b":
            return shape
        pixels, taps, windows = zip(*_met_by_axis(self.spec), strict=True)
        if argument.name == "w":
            return (*taps, *shape[2:])
        if argument.name == "dy" and direction == GRAD_WEIGHTS and self.spec.b_shape:
            return shape  # the gradient of the bias sums all of it
        return (shape[0], *(pixels if argument.name == "x" else windows), shape[3])

    def __str__(self) -> str:
        return f"{self.op}:{self.spec}"


def spec_type(op: str) -> type[ConvSpec] | type[PoolSpec] | type[DenseSpec]:
    """The kind of problem an operation solves. Raises SpecError for an unknown operation, listing the known ones."""
    if op not in SPEC_TYPES:
        raise SpecError(f"unknown operation {op!r}; known: {', '.join(OPS)}")
    return SPEC_TYPES[op]


def parse_case(text: str) -> Case:
    """Read ``op:spec``. Raises SpecError that names the part which cannot be read."""
    op, colon, rest = text.partition(":")
    if not colon or op not in SPEC_TYPES:
        raise SpecError(f"case {text!r} must start with an operation and a colon: {', '.join(f'{o}:' for o in OPS)}")
    return Case(op, parse(op, rest))


def parse(op: str, text: str) -> Spec:
    """Read the text form of an operation's spec. Raises SpecError that names the part which cannot be read."""
    kind = spec_type(op)
    head, *rest = [part.strip() for part in text.strip().split(",")]
    sizes = _sizes(head, text)
    leading = ("batch", "inputs") if kind is DenseSpec else ("batch", "height", "width", "channels")
    if len(sizes) != len(leading):
        raise SpecError(f"{op} case {text!r} must start with {'x'.join(leading)}, not {head!r}")
    values: dict[str, object] = dict(zip(leading, sizes, strict=True))
    known = {field.name for field in fields(kind)}
    for part in rest:
        name, value = _read_part(part, text)
        if name not in known or name in values:
            raise SpecError(f"{part!r} in {text!r} {'is given twice' if name in values else f'is not for {op}'}")
        values[name] = value
    needed = {ConvSpec: ("kernel", "filters"), PoolSpec: (), DenseSpec: ("units",)}[kind]
    for name in needed:
        if name not in values:
            raise SpecError(f"{op} case {text!r} lacks its {name}; for example {_EXAMPLES[kind]}")
    return cast(Callable[..., Spec], kind)(**values)


_EXAMPLES = {
    ConvSpec: "32x28x28x1,k5x5,f8",
    PoolSpec: "32x28x28x8,pool2x2",
    DenseSpec: "32x784,u128",
}

_WORDS: Mapping[str, tuple[str, object]] = {
    "same": ("padding", "same"),
    "valid": ("padding", "valid"),
    "bias": ("bias", True),
    "nobias": ("bias", False),
    "relu": ("activation", "relu"),
    "linear": ("activation", None),
    "float32": ("dtype", "float32"),
    "float64": ("dtype", "float64"),
}

_PAIRS = {"k": "kernel", "s": "stride", "d": "dilation", "pool": "pool"}
_NUMBERS = {"f": "filters", "g": "groups", "u": "units"}


def _read_part(part: str, text: str) -> tuple[str, object]:
    """One comma-separated part as (field, value)."""
    if part in _WORDS:
        return _WORDS[part]
    match = re.fullmatch(r"p(\d+):(\d+):(\d+):(\d+)", part)
    if match:
        top, bottom, left, right = map(int, match.groups())
        return "padding", ((top, bottom), (left, right))
    match = re.fullmatch(r"([a-z]+)([\dx]+)", part)
    if match and match[1] in _PAIRS:
        sizes = _sizes(match[2], text)
        if len(sizes) in (1, 2):
            return _PAIRS[match[1]], (sizes[0], sizes[-1])
    if match and match[1] in _NUMBERS and match[2].isdigit():
        return _NUMBERS[match[1]], int(match[2])
    raise SpecError(f"cannot read {part!r} in {text!r}; examples: {'; '.join(_EXAMPLES.values())}")


def _sizes(text: str, whole: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(x\d+)*", text):
        raise SpecError(f"cannot read {text!r} in {whole!r}: expected whole numbers joined by x")
    return tuple(int(part) for part in text.split("x"))


def _join(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _padding_text(padding: Padding, default: str) -> list[str]:
    if isinstance(padding, str):
        return [padding] if padding != default else []
    return ["p" + ":".join(str(side) for pair in padding for side in pair)]


def _ending_text(bias: bool, activation: Activation, dtype: str) -> list[str]:
    ending = [] if bias else ["nobias"]
    ending += [activation] if activation else []
    return ending + ([dtype] if dtype != "float32" else [])


def _bytes(spec: Spec, direction: str) -> int:
    values = sum(math.prod(a.shape) for a in arguments(spec, direction) if a.shape is not None)
    return values * ITEMSIZE[spec.dtype]


def _pads(padding: Padding, sides: Pair, extent: Pair, stride: Pair) -> Sides:
    if padding == "valid":
        return ((0, 0), (0, 0))
    if padding == "same":
        totals = (max(0, (-(-side // s) - 1) * s + e - side) for side, e, s in zip(sides, extent, stride, strict=True))
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
        return ((top, bottom), (left, right))
    return padding


def _out_sides(pads: Sides, sides: Pair, extent: Pair, stride: Pair) -> Pair:
    rows, columns = (
        (side + sum(pad) - e) // s + 1 for side, pad, e, s in zip(sides, pads, extent, stride, strict=True)
    )
    return (rows, columns)


def _taps_inside(side: int, out: int, taps: int, stride: int, dilation: int, before: int) -> int:
    """Over all output positions of one axis, the taps that meet a real pixel."""
    return sum(
        0 <= position * stride + tap * dilation - before < side for tap in range(taps) for position in range(out)
    )


def _met_by_axis(spec: ConvSpec | PoolSpec) -> Iterator[tuple[int, int, int]]:
    """Of the rows, then the columns: how many pixels some tap meets, and how many taps and windows meet a pixel."""
    if isinstance(spec, ConvSpec):
        all_taps, stride, dilation = spec.kernel, spec.stride, spec.dilation
    else:
        all_taps, stride, dilation = spec.pool, spec.step, (1, 1)
    axes = zip(spec.x_shape[1:3], spec.y_shape[1:3], all_taps, stride, dilation, spec.pads, strict=True)
    for side, out, count, step, apart, (before, _) in axes:
        pixels, taps, windows = set[int](), set[int](), set[int]()
        for tap, window in product(range(count), range(out)):
            pixel = window * step + tap * apart - before
            if 0 <= pixel < side:
                pixels.add(pixel)
                taps.add(tap)
                windows.add(window)
        yield len(pixels), len(taps), len(windows)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_positive(spec: Spec, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        if not _is_count(value) or value < 1:
            raise SpecError(f"{name}={value!r} must be a whole number of at least 1")


def _require_pairs(spec: Spec, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        if not isinstance(value, tuple) or len(value) != 2 or not all(_is_count(v) and v >= 1 for v in value):
            raise SpecError(f"{name}={value!r} must be two whole numbers of at least 1, for rows and columns")


def _require_padding(spec: ConvSpec | PoolSpec) -> None:
    padding: object = spec.padding
    if padding in ("same", "valid"):
        return
    explicit = (
        isinstance(padding, tuple)
        and len(padding) == 2
        and all(isinstance(pair, tuple) and len(pair) == 2 for pair in padding)
        and all(_is_count(side) and side >= 0 for pair in padding for side in pair)
    )
    if not explicit:
        raise SpecError(
            f"padding={padding!r} must be 'same', 'valid' or ((top, bottom), (left, right)) of whole numbers from 0"
        )


def _require_options(spec: Spec) -> None:
    if spec.dtype not in DTYPES:
        raise SpecError(f"dtype={spec.dtype!r} must be one of {', '.join(DTYPES)}")
    if not isinstance(spec, PoolSpec):
        if spec.activation not in (None, "relu"):
            raise SpecError(f"activation={spec.activation!r} must be None or 'relu'")
        if not isinstance(spec.bias, bool):
            raise SpecError(f"bias={spec.bias!r} must be True or False")


def _require_fit(spec: ConvSpec | PoolSpec, name: str, extent: Pair) -> None:
    padded = tuple(side + sum(pad) for side, pad in zip((spec.height, spec.width), spec.pads, strict=True))
    if any(e > side for e, side in zip(extent, padded, strict=True)):
        raise SpecError(
            f"{name}={getattr(spec, name)} spans {_join(extent)} pixels, more than the padded image of "
            f"{_join(padded)}; "
            "use a smaller one, less dilation, or more padding"
        )
