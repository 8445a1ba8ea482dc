"""Named grids of cases. The published grids stand here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.awkward import SHAPES
from impls import Case, ConvSpec, SpecError, parse_case
from impls.nn.structure import PUBLISHED, problems
from impls.specs import directions_of, traffic

DEFAULT_BUDGET_S = 8.0
"""Seconds for one case and direction, shared by all implementations."""


@dataclass(frozen=True)
class Suite:
    """Cases under a name, with the timing budget that makes them usable: seconds per case and direction."""

    name: str
    cases: tuple[Case, ...]
    budget_s: float = DEFAULT_BUDGET_S


QUICK = (
    "conv2d:28x64x64x1,k5x5,f8,relu",
    "conv2d:28x16x16x8,k3x3,f16,relu",
    "conv2d:32x28x28x1,k7x7,f64,relu",
    "conv2d:32x14x14x32,k3x3,f64,relu",
    "conv2d:32x32x32x3,k3x3,f32,relu",
    "conv2d:32x32x32x32,k3x3,f32,relu",
    "conv2d:32x8x8x64,k3x3,f128,relu",
    "maxpool2d:28x64x64x8,pool4x4",
    "maxpool2d:32x32x32x32,pool2x2",
    "avgpool2d:32x32x32x32,pool2x2",
    "dense:28x4096,u64,relu",
    "dense:32x2048,u128,relu",
)
"""Layers of the published networks for Olivetti, MNIST and CIFAR-10; batches of 28 as published, or cut to 32."""


def _grid(kernels: Iterable[int]) -> tuple[Case, ...]:
    """Batch 32, square "same" convolutions, small problems first, so that the dear ones can be predicted."""
    cases = (
        Case("conv2d", ConvSpec(32, side, side, channels, filters, (kernel, kernel)))
        for kernel in kernels
        for channels in (16, 32, 64)
        for filters in (16, 32, 64)
        for side in (2, 4, 8, 16, 32, 64)
    )
    return tuple(sorted(cases, key=lambda case: (case.spec.flops, str(case))))


def _networks() -> tuple[Case, ...]:
    """Every distinct layer problem of the published experiments at its batch size, small ones first."""
    cases = {case for p in PUBLISHED for case in problems(p.structure, p.image_shape, p.batch)}
    return tuple(sorted(cases, key=lambda case: (case.op, case.spec.flops, str(case))))


SCALING = "scaling"
BASE = ConvSpec(32, 32, 32, 32, 32, (3, 3))
"""Around which one parameter at a time is varied."""
SWEEPS: Mapping[str, Mapping[int, ConvSpec]] = {
    "batch": {n: replace(BASE, batch=n) for n in (1, 2, 4, 8, 16, 32, 64, 128)},
    "image side": {n: replace(BASE, height=n, width=n) for n in (4, 8, 16, 32, 64, 128)},
    "channels and filters": {n: replace(BASE, channels=n, filters=n) for n in (4, 8, 16, 32, 64, 128)},
    "kernel side": {n: replace(BASE, kernel=(n, n)) for n in (1, 3, 5, 7, 9, 11)},
}
"""The convolutions of the suite ``scaling``, by parameter and its value."""


def _scaling() -> tuple[Case, ...]:
    """Every distinct convolution of the sweeps, small ones first."""
    cases = {Case("conv2d", spec) for sweep in SWEEPS.values() for spec in sweep.values()}
    return tuple(sorted(cases, key=lambda case: (case.spec.flops, str(case))))


def _awkward() -> tuple[Case, ...]:
    """The shapes in which kernels go wrong."""
    return tuple(parse_case(f"{op}:{text}") for op, texts in SHAPES.items() for text in texts.values())


SUITES: Mapping[str, Callable[[], Suite]] = {
    "quick": lambda: Suite("quick", tuple(map(parse_case, QUICK)), budget_s=0.7),
    "paper": lambda: Suite("paper", _grid((3, 5, 7))),
    "paper-large-kernels": lambda: Suite("paper-large-kernels", _grid(range(3, 20, 2))),
    "networks": lambda: Suite("networks", _networks()),
    "awkward": lambda: Suite("awkward", _awkward()),
    SCALING: lambda: Suite(SCALING, _scaling(), budget_s=1.0),
}


def load(name: str) -> Suite:
    """A named suite, or the cases in a text file: one a line, # begins a comment.

    Raises SpecError for a name that is neither, and for a line that cannot be read, naming file and line.
    """
    if name in SUITES:
        return SUITES[name]()
    path = Path(name)
    if not path.is_file():
        raise SpecError(f"no suite {name!r}: give one of {', '.join(SUITES)}, or a file with one case a line")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read as a text file of cases: {error}") from error
    cases = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                cases.append(parse_case(text))
            except SpecError as error:
                raise SpecError(f"{path}, line {number}: {error}") from error
    if not cases:
        raise SpecError(f"{path} holds no case; write one a line, for example {QUICK[0]}")
    return Suite(path.stem, tuple(dict.fromkeys(cases)))


def with_batch(suite: Suite, batch: int) -> Suite:
    """The same cases at another batch size."""
    cases = (Case(case.op, replace(case.spec, batch=batch)) for case in suite.cases)
    return replace(suite, cases=tuple(dict.fromkeys(cases)))


def within(suite: Suite, most_bytes: float) -> Suite:
    """The same cases, each with its batch cut until the arrays of its largest direction take at most these bytes."""
    return replace(suite, cases=tuple(dict.fromkeys(_cut(case, most_bytes) for case in suite.cases)))


def _cut(case: Case, most_bytes: float) -> Case:
    def size(batch: int) -> int:
        spec = replace(case.spec, batch=batch)
        return max(traffic(spec, direction) for direction in directions_of(case.op))

    per_sample = size(2) - size(1)
    room = most_bytes - (size(1) - per_sample)
    if room >= case.spec.batch * per_sample:
        return case
    return Case(case.op, replace(case.spec, batch=max(1, int(room // per_sample))))
