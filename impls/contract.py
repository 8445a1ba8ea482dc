"""What an implementation is: a Plan that computes, and a record that says what it can do.

plan, then run. Making a plan may be slow: it compiles, chooses tile sizes and takes its scratch memory. A plan's
methods fill the arrays they are given, allocate nothing, and leave their inputs alone:

    convolution and dense   forward(x, w, b, out)   grad_weights(x, dy, dw, db)   grad_input(dy, w, dx)
    pooling                 forward(x, out)         grad_input(x, y, dy, dx)

Arrays are C-contiguous, of the spec's dtype, and live on the implementation's device. With ``bias=False`` b and db
are None. Gradients are with respect to the pre-activation. One thread at a time per plan; any number of plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from impls.devices import CPU, Device
from impls.specs import DIRECTIONS, Argument, Spec, arguments, directions_of

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector."""

DIRECT = "direct"
GEMM = "gemm"
FFT = "fft"
EVERY_PRODUCT = (DIRECT, GEMM)
"""Algorithms that add up all products of the numbers given. Others transform them, and need fewer operations."""

FLOAT32 = "float32"
FLOAT64 = "float64"
TF32 = "TF32"
"""float32 numbers whose factors a tensor core cuts to 11 bits; sums in float32."""
BFLOAT16 = "bfloat16"
"""Factors of 8 bits with float32's exponent; sums in float32."""


class Unavailable(RuntimeError):
    """A library or device that an implementation needs is not there; the message is the reason."""


class Call:
    """A bound call: addresses are fixed, contents are free.

    ``call()`` enqueues the work and does not wait; ``call.fetch(*outs)`` copies the results, in the order of the
    contract, into NumPy arrays (None where there is none).
    """

    __slots__ = ("_outputs", "fetch_one", "run")

    def __init__(self, run: Callable[[], Any], outputs: tuple[Any, ...], fetch_one: Callable[[Any, np.ndarray], None]):
        self.run = run
        self._outputs = outputs
        self.fetch_one = fetch_one

    def __call__(self) -> None:
        self.run()

    def fetch(self, *outs: np.ndarray | None) -> None:
        """Copy every result into the array given for it. Raises ValueError for a wrong number of arrays."""
        for source, out in zip(self._outputs, outs, strict=True):
            if out is not None:
                self.fetch_one(source, out)


@dataclass(frozen=True)
class PackedWeights:
    """What ``Plan.pack`` may give in place of w: by direction, weights in memory of the plan."""

    of: Mapping[str, Any]


class Plan:
    """Base of every plan: scratch memory, binding, and the words for what is not offered.

    A subclass gives ``prepare`` (optional), the directions it computes, and ``scratch_bytes`` where it needs scratch.
    """

    device: ClassVar[Device] = CPU
    offers: ClassVar[tuple[str, ...]] = DIRECTIONS
    """The directions this kind of plan computes."""
    converts: ClassVar[bool] = False
    """Whether it takes arrays of any dtype, as the definitions do."""

    def __init__(self, spec: Spec, directions: tuple[str, ...], workspace: Any = None):
        """``workspace``: at least ``scratch_bytes(spec, directions)`` bytes on the device, may be shared."""
        self.spec = spec
        self.directions = directions
        self.workspace_bytes = self.scratch_bytes(spec, directions)
        if workspace is None:
            workspace = self.allocate(self.workspace_bytes)
        elif workspace.nbytes < self.workspace_bytes:
            raise ValueError(f"workspace has {workspace.nbytes} bytes; this plan needs {self.workspace_bytes}")
        self.workspace = workspace
        self.prepare()

    @classmethod
    def scratch_bytes(cls, spec: Spec, directions: tuple[str, ...]) -> int:
        """Bytes of scratch that the calls write and read."""
        return 0

    @classmethod
    def allocate(cls, count: int) -> Any:
        """Scratch memory on the device, aligned to ALIGNMENT, already touched."""
        return cls.device.put(aligned_empty(count))

    def prepare(self) -> None:
        """Compile, choose, allocate: everything slow that the calls should not pay for."""

    def scratch(self, shape: tuple[int, ...], dtype: str = FLOAT32, offset: int = 0) -> np.ndarray:
        """A host workspace's bytes from ``offset`` on, seen as an array of this shape."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        view: np.ndarray = self.workspace[offset : offset + count].view(dtype).reshape(shape)
        return view

    def forward(self, *arrays: Any) -> None:
        """Fill ``out``."""
        raise self._not_offered("forward")

    def grad_weights(self, *arrays: Any) -> None:
        """Fill ``dw`` and ``db`` with the sums over the batch."""
        raise self._not_offered("grad_weights")

    def grad_input(self, *arrays: Any) -> None:
        """Fill ``dx``."""
        raise self._not_offered("grad_input")

    def pack(self, w: Any) -> Any:
        """Transform weights once; the result is taken in place of ``w`` until the next pack."""
        raise NotImplementedError(f"{type(self).__name__} gains nothing from packed weights")

    def bind(self, direction: str, *arrays: Any) -> Call:
        """Fix the addresses of a call.

        Raises NotImplementedError for a direction that is not offered, ValueError for a host array that is not as the
        contract says: compiled loops go by addresses, and would read and write beside another one.
        """
        if direction not in self.directions:
            raise self._not_offered(direction)
        for array, argument in zip(arrays, arguments(self.spec, direction), strict=True):
            if isinstance(array, np.ndarray):
                self._check(direction, argument, array)
        method = getattr(self, direction)
        outputs = tuple(
            array for array, argument in zip(arrays, arguments(self.spec, direction), strict=True) if argument.is_output
        )
        return Call(lambda: method(*arrays), outputs, self.device.get)

    def _check(self, direction: str, argument: Argument, array: np.ndarray) -> None:
        """Raise ValueError for an array of another shape or dtype, or with its values apart."""
        is_of_dtype = self.converts or array.dtype == self.spec.dtype
        if array.shape != argument.shape or not is_of_dtype or not array.flags.c_contiguous:
            wanted = "None" if argument.shape is None else f"a C-contiguous {self.spec.dtype} array {argument.shape}"
            found = f"{array.dtype} {array.shape}" + ("" if array.flags.c_contiguous else ", not C-contiguous")
            raise ValueError(
                f"{direction} of {self.spec} takes {wanted} as {argument.name}, not {found}; "
                "numpy.ascontiguousarray(array, dtype) makes one"
            )

    def _not_offered(self, direction: str) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__module__} was planned for {', '.join(self.directions) or 'nothing'}, not for {direction}"
        )


@dataclass(frozen=True)
class Implementation:
    """The record at the end of every implementation's file.

    ``algorithm`` and ``arithmetic`` fix the error bound it is held to; either may be a function of
    (spec, direction). ``why_not(spec, direction)`` gives the reason why a problem cannot be computed, or None; it is
    asked only about directions that the plan offers. ``requires`` gives the reason why nothing works (a missing
    library), or None. ``competitor`` marks what is not ours: its errors are reported, not judged. ``repeatable`` says
    that the same input gives the same bits. ``alone``: it changes its process for good, and needs one of its own.
    ``op`` and ``name`` are filled in by the registry.
    """

    plan_type: type[Plan]
    algorithm: str | Callable[[Any, str], str]
    arithmetic: str | Callable[[Any, str], str] = FLOAT32
    why_not: Callable[[Any, str], str | None] = lambda spec, direction: None
    requires: Callable[[], str | None] = lambda: None
    competitor: bool = False
    repeatable: bool = True
    alone: bool = False
    note: str = ""
    op: str = ""
    name: str = ""

    @property
    def device(self) -> Device:
        """Where the arrays of its calls live."""
        return self.plan_type.device

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions it offers."""
        return tuple(d for d in directions_of(self.op) if d in self.plan_type.offers)

    def missing(self) -> str | None:
        """The reason why nothing can be computed on this machine, or None."""
        return self.requires() or self.device.missing()

    def supports(self, spec: Spec, direction: str | None = None) -> str | None:
        """None, or the reason why this problem cannot be computed here; without a direction, any one is enough."""
        missing = self.missing()
        if missing:
            return missing
        if direction is not None:
            if direction not in self.directions:
                return f"{self.name} does not compute {direction}"
            return self.why_not(spec, direction)
        reasons = [self.why_not(spec, d) for d in self.directions]
        return None if None in reasons else reasons[0]

    def algorithm_of(self, spec: Spec, direction: str) -> str:
        """The declared algorithm for this problem."""
        return self.algorithm if isinstance(self.algorithm, str) else self.algorithm(spec, direction)

    def arithmetic_of(self, spec: Spec, direction: str) -> str:
        """The declared arithmetic for this problem."""
        return self.arithmetic if isinstance(self.arithmetic, str) else self.arithmetic(spec, direction)

    def plan(self, spec: Spec, directions: tuple[str, ...] = DIRECTIONS, workspace: Any = None) -> Plan:
        """Prepare the supported ones of ``directions``. Raises Unavailable with the reason if there is none."""
        able = tuple(d for d in directions if d in self.directions and self.supports(spec, d) is None)
        if not able:
            asked = directions[0] if directions and directions[0] in directions_of(self.op) else None
            raise Unavailable(self.supports(spec, asked) or f"{self.name} does not compute {', '.join(directions)}")
        return self.plan_type(spec, able, workspace)

    def named(self, op: str, name: str) -> Implementation:
        """The same record under its registered name."""
        return replace(self, op=op, name=name)


def float32_only(spec: Spec, direction: str) -> str | None:
    """The reason why a spec of another dtype is not computed, or None: the ``why_not`` of what knows one dtype."""
    return None if spec.dtype == FLOAT32 else f"computes in float32, not in {spec.dtype}"


def aligned_empty(count: int, alignment: int = ALIGNMENT) -> np.ndarray:
    """``count`` bytes whose address is a multiple of ``alignment``; every page touched."""
    raw = np.zeros(count + alignment, np.uint8)
    raw.fill(0)
    start = -raw.ctypes.data % alignment
    return raw[start : start + count]
