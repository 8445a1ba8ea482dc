"""What the CUDA kernels are run on without a GPU, and what their results must be.

All numbers are small integers whose sums float32 holds exactly, so results must equal the reference bit for bit; those
of an FFT must after rounding. Every entry of the registry whose name starts with PREFIX is found, and every kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np

from bench.awkward import SHAPES
from impls import registry
from impls.contract import FFT, GEMM, Implementation, Plan
from impls.cuda_setup import KERNELS, Kernel, Launch
from impls.specs import FORWARD, GRAD_WEIGHTS, OPS, Case, PoolSpec, Shape, arguments, parse_case

PREFIX = "numba_cuda_"

ENTRIES = tuple((op, name) for op in OPS for name in registry.names(op) if name.startswith(PREFIX))

SMALL = {
    "conv2d": {
        "one pixel": "1x1x1x1,k1,f1",
        "odd sizes past a block": "2x3x5x3,k3x2,f5,relu",
        "kernel wider than the image": "1x2x3x2,k5x7,f3",
        "not square, unequal strides": "2x5x4x2,k3x2,s2x3,valid,f3",
        "stride passes over pixels": "1x7x6x2,k1,s3x2,f3",
        "dilated": "1x6x7x2,k2x3,d2x3,f2,relu",
        "stride and dilation": "1x7x8x1,k3x2,s2x3,d2x1,f3",
        "groups": "2x3x2x4,k2,f6,g2,nobias",
        "depthwise": "1x4x3x3,k3,f6,g3",
        "uneven padding wider than the kernel": "1x2x3x1,k2,p3:1:0:2,f2,nobias",
        "more rows than slices": "1x300x1x1,k1,f1",
        "wide": "1x2x200x1,k2x3,f1",
        "high": "1x150x2x1,k3x2,f1",
        "filters for half a large tile": "2x8x8x1,k1,f32",
        "filters for a large tile": "2x8x8x1,k1,f33",
        "channels for half a large tile": "2x8x8x32,k1,f1",
        "channels for a large tile": "2x8x8x33,k1,f1",
        "results for full threads": "1x8x8x1,k2,f8",
        "weights for a large tile": "1x1x1x11,k3,f33",
        "more samples than a small product's rows": "33x1x1x1,k1,f17",
        "many weights of few filters": "1x2x2x9,k3,f32",
    },
    "maxpool2d": {"NaN and infinities": "1x6x6x4,pool3x3,s2x2,same"},
}
"""Beside the awkward shapes that every implementation is tried on."""

MOST_FLOPS = 12_000
"""Of a case here: about a second where each value is a step of Python."""
MANY_FLOPS = 5_000
"""Beyond so many a case is run only by those whose kernels no smaller case reaches."""

CASES = {
    f"{op}: {what}": case
    for texts in (SMALL, SHAPES)
    for op, named in texts.items()
    for what, text in named.items()
    if (case := parse_case(f"{op}:{text}")).spec.flops <= MOST_FLOPS
}
PAST_EDGES = "conv2d: past a tile's edge along every axis"
CASES[PAST_EDGES] = parse_case("conv2d:1x5x7x11,k3x1,f33")
"""Dear, and only tiles of a matrix product have such edges."""

LOWERED = {
    "few threads": {"ENOUGH_THREADS": 1},
    "few slices": {"MANY_SLICES": 4},
    "little scratch": {"SCRATCH_BYTES": 20_000},
}
"""Constants of our modules by which large problems are computed otherwise: lowered, small ones are too."""

MOST_LOWERED_FLOPS = 4_000
"""Of a case that is computed once more with constants lowered."""


@dataclass(frozen=True)
class Run:
    """One entry, direction and case, with the constants as they are, or some of them LOWERED."""

    op: str
    name: str
    what: str
    direction: str
    lowered: str = ""

    def __str__(self) -> str:
        return "-".join((self.name, self.what, self.direction, *filter(None, [self.lowered])))

    @property
    def case(self) -> Case:
        """What is computed."""
        return CASES[self.what]

    @property
    def record(self) -> Implementation:
        """The entry."""
        return registry.get(self.op, self.name)

    @property
    def packs(self) -> bool:
        """Whether weights can be transformed once for this run."""
        return self.direction != GRAD_WEIGHTS and self.record.plan_type.pack is not Plan.pack

    def launches(self) -> tuple[Launch, ...]:
        """What it says that it launches; nothing where it refuses."""
        with lowered(self.lowered):
            is_refused = self.record.why_not(self.case.spec, self.direction) is not None
            return () if is_refused else self.record.plan_type.launches(self.case.spec, self.direction)

    def inputs(self) -> list[np.ndarray | None]:
        """Its inputs, the same at every call."""
        return input_arrays(self.case, self.direction, special="NaN" in self.what)

    def computed(self, *, workspace: Any = None, packed: bool = False) -> list[np.ndarray | None]:
        """Its inputs and outputs as they are afterwards."""
        with lowered(self.lowered):
            return computed(self.record, self.case, self.direction, self.inputs(), workspace=workspace, packed=packed)

    def judge(self, got: list[np.ndarray | None]) -> None:
        """Raise AssertionError unless ``got`` is right."""
        judge(self.record, self.case, self.direction, self.inputs(), got)


@contextmanager
def lowered(which: str) -> Iterator[None]:
    """Lower these constants in every module of ours that has one, and let it forget what it chose before; "": none."""
    with ExitStack() as stack:
        for name, module in [*sys.modules.items()] if which else []:
            for constant in vars(module).keys() & LOWERED[which] if name.startswith("impls.") else ():
                stack.callback(_forget, module)
                stack.enter_context(patch.object(module, constant, LOWERED[which][constant]))
                _forget(module)
        yield


def _forget(module: ModuleType) -> None:
    """Empty the caches of a module's functions."""
    for value in vars(module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


def _runs() -> list[Run]:
    """Everything that the entries offer to compute; with constants lowered, where that launches something else."""
    found = []
    for what, case in CASES.items():
        for op, name in ENTRIES:
            record = registry.get(op, name)
            for direction in record.directions if op == case.op else ():
                if record.why_not(case.spec, direction) is None:
                    run = Run(op, name, what, direction)
                    is_cheap = case.spec.flops <= MOST_LOWERED_FLOPS
                    low = [replace(run, lowered=which) for which in LOWERED if is_cheap]
                    found += [run, *(one for one in low if one.launches() not in ((), run.launches()))]
    return list(_worth_their_time(found))


def _worth_their_time(runs: list[Run]) -> Iterator[Run]:
    """Those of few operations, and of the others those that launch a kernel that none before launches."""
    reached: set[str] = set()
    for run in sorted(runs, key=lambda run: run.case.spec.flops):
        kernels = {launch.kernel.name for launch in run.launches()}
        has_edges = run.what == PAST_EDGES and run.record.algorithm == GEMM
        if run.case.spec.flops <= MANY_FLOPS or has_edges or not kernels <= reached:
            yield run
        reached |= kernels


RUNS = _runs()


INSTRUMENTS = ("impls.cuda_probes", "impls.numba_cuda_timer")
"""Whose kernels belong to no entry: they measure."""


def kernels() -> dict[str, Kernel]:
    """Every kernel of the registry's entries, by name."""
    for op, name in ENTRIES:
        registry.get(op, name)
    return _named(lambda module: module.startswith("impls.") and module not in INSTRUMENTS)


def instruments() -> dict[str, Kernel]:
    """Every kernel that only measures, by name."""
    for module in INSTRUMENTS:
        import_module(module)
    return _named(lambda module: module in INSTRUMENTS)


def _named(is_wanted: Callable[[str], bool]) -> dict[str, Kernel]:
    found = [kernel for kernel in KERNELS if is_wanted(kernel.function.__module__)]
    named = {kernel.name: kernel for kernel in found}
    assert len(named) == len(found), "two kernels have one name"
    return named


def input_arrays(case: Case, direction: str, *, special: bool = False) -> list[np.ndarray | None]:
    """The inputs of a call: whole numbers of at most 10, or (``special``) pixels that are mostly NaN and infinities.

    Average pooling is given multiples of all its windows' sizes, so that averages are whole numbers too.
    """
    random = np.random.default_rng(case.spec.flops)
    scale = divisible(case.spec) if case.op == "avgpool2d" else 1
    arrays = [
        None if shape is None else (scale * random.integers(-10, 11, shape)).astype(np.float32)
        for shape in shapes(case, direction, is_output=False)
    ]
    if special:
        values = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
        arrays[0] = random.choice(values, case.spec.x_shape, p=(0.1, 0.1, 0.7, 0.1))
    if isinstance(case.spec, PoolSpec) and direction != FORWARD:
        arrays[1:2] = expected_outputs(case, FORWARD, arrays[:1])
    return arrays


def divisible(spec: PoolSpec) -> int:
    """The least number that every possible count of pixels under a window divides."""
    rows, columns = (range(1, min(p, side) + 1) for p, side in zip(spec.pool, (spec.height, spec.width), strict=True))
    return int(np.lcm.reduce([i * j for i in rows for j in columns]))


def expected_outputs(case: Case, direction: str, arrays: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """What the reference computes, as float32."""
    outs = poisoned(case, direction)
    getattr(registry.reference(case.op).plan(case.spec, (direction,)), direction)(*arrays, *outs)
    return outs


def poisoned(case: Case, direction: str) -> list[np.ndarray | None]:
    """Output arrays full of NaN, which a thread that writes nothing leaves behind."""
    found = shapes(case, direction, is_output=True)
    return [None if shape is None else np.full(shape, np.nan, np.float32) for shape in found]


def shapes(case: Case, direction: str, *, is_output: bool) -> list[Shape | None]:
    """Shapes of a direction's inputs, or of its outputs."""
    return [a.shape for a in arguments(case.spec, direction) if a.is_output is is_output]


def computed(
    record: Implementation,
    case: Case,
    direction: str,
    ins: list[np.ndarray | None],
    *,
    workspace: Any = None,
    packed: bool = False,
) -> list[np.ndarray | None]:
    """Inputs and outputs as they are after a call on the record's device; ``packed``: with transformed weights."""
    device, outs = record.device, poisoned(case, direction)
    on_device = [None if array is None else device.put(array) for array in (*ins, *outs)]
    plan = record.plan(case.spec, (direction,), workspace)
    given = list(on_device)
    if packed:
        given[1] = plan.pack(given[1])
    call = plan.bind(direction, *given)
    call()
    device.wait()
    call.fetch(*outs)
    afterwards = poisoned_like(ins)
    for source, array in zip(on_device, afterwards, strict=False):
        if array is not None:
            device.get(source, array)
    return [*afterwards, *outs]


def poisoned_like(arrays: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """Arrays of the same shapes, full of NaN."""
    return [None if array is None else np.full_like(array, np.nan) for array in arrays]


def judge(
    record: Implementation, case: Case, direction: str, ins: list[np.ndarray | None], got: list[np.ndarray | None]
) -> None:
    """Every value written, every value exact, every input as it was. Raises AssertionError."""
    is_rounded = record.algorithm_of(case.spec, direction) == FFT
    for array, found in zip([*ins, *expected_outputs(case, direction, ins)], got, strict=True):
        if array is not None and found is not None:
            np.testing.assert_array_equal(np.rint(found) if is_rounded else found, array)
