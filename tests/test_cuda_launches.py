"""What the CUDA entries launch for the published suites and for awkward problems: computed, and held to the limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import suites
from bench.awkward import SHAPES
from impls import cuda_setup, registry
from impls.cuda_setup import MAX_BLOCKS, Kernel, Launch
from impls.specs import Case, parse_case, traffic
from tests.cuda_golden import PROCESSORS, read
from tests.cuda_runs import ENTRIES

GOLDEN = read()
PUBLISHED = tuple(case for name in ("paper-large-kernels", "networks") for case in suites.load(name).cases)
AWKWARD = tuple(parse_case(f"{op}:{text}") for op, texts in SHAPES.items() for text in texts.values())
HUGE = tuple(
    map(
        parse_case,
        (
            "conv2d:100000x2000x2000x64,k3,f64",
            "conv2d:65536x3x70000x1,k1,f65536",
            "conv2d:1x1x1x70000,k1,f70000,g70000",
            "maxpool2d:100000x2000x2000x64,pool2",
            "avgpool2d:100000x2000x2000x64,pool2",
            "dense:5000000x8,u5000000",
            "dense:1x8,u100000000",
            "dense:100000000x8,u1",
        ),
    )
)

MOST_SCRATCH = 1 << 30
"""Bytes, for the published problems: what a card of 8 GB can give beside their arrays."""

DIRECTIONS = [(op, name, direction) for op, name in ENTRIES for direction in registry.get(op, name).directions]


def launches(case: Case, name: str, direction: str) -> tuple:
    """What an entry launches."""
    return registry.get(case.op, name).plan_type.launches(case.spec, direction)


def of(op: str, cases: tuple[Case, ...]) -> list[Case]:
    """The cases of an operation."""
    return [case for case in cases if case.op == op]


@pytest.mark.parametrize(("op", "name", "direction"), DIRECTIONS)
def test_published_problems_are_launched_without_exception(op, name, direction):
    """Nothing of the published grids and networks is refused, and scratch memory is bounded."""
    record = registry.get(op, name)
    for case in of(op, PUBLISHED):
        assert record.why_not(case.spec, direction) is None, case
        assert record.plan_type.scratch_bytes(case.spec, (direction,)) <= MOST_SCRATCH, case


@pytest.mark.parametrize(("op", "name", "direction"), DIRECTIONS)
def test_every_launch_is_within_the_limits_of_every_architecture(op, name, direction):
    """Blocks that every multiprocessor holds, and a grid that every device takes; or a reason."""
    record = registry.get(op, name)
    for case in of(op, PUBLISHED + AWKWARD + HUGE):
        reason = record.why_not(case.spec, direction)
        if reason is not None:
            assert len(reason.split()) > 3, f"{case}: {reason!r} is no sentence"
            continue
        assert launches(case, name, direction), case
        for launch in launches(case, name, direction):
            assert len(launch.blocks) == 3
            assert all(isinstance(blocks, int) for blocks in launch.blocks)
            assert all(1 <= blocks <= most for blocks, most in zip(launch.blocks, MAX_BLOCKS, strict=True)), case
            assert all(GOLDEN[launch.kernel.name, arch].blocks_per_sm >= 1 for arch in PROCESSORS), case


@pytest.mark.parametrize(("op", "name", "direction"), DIRECTIONS)
def test_what_the_device_has_no_memory_for_is_refused_with_the_bytes(monkeypatch, op, name, direction):
    """Arrays and scratch are counted before anything is allocated."""
    case = of(op, PUBLISHED + AWKWARD)[0]
    scratch = registry.get(op, name).plan_type.scratch_bytes(case.spec, (direction,))
    needed = traffic(case.spec, direction) + scratch
    for free in (needed - 1, needed):
        monkeypatch.setattr(cuda_setup, "CUDA", replace(cuda_setup.CUDA, free_bytes=lambda free=free: free))
        reason = registry.get(op, name).why_not(case.spec, direction)
        words = (
            f"needs {needed - scratch} bytes of arrays and {scratch} of scratch; {free} bytes are free on the device"
        )
        assert reason == (None if free == needed else words)


@pytest.mark.parametrize(("op", "name", "direction"), DIRECTIONS)
def test_another_dtype_is_refused_with_the_reason(op, name, direction):
    """float32 kernels do not pretend to compute in float64."""
    case = of(op, AWKWARD)[0]
    reason = registry.get(op, name).why_not(replace(case.spec, dtype="float64"), direction)
    assert reason == "its kernels compute in float32, not in float64"


@pytest.mark.parametrize(
    ("blocks", "threads", "shared_bytes", "words"),
    [
        ((2**31 - 1, 65_535, 65_535), 1024, 48 << 10, None),
        ((2**31, 1, 1), 128, 0, "2147483648 blocks along x"),
        ((1, 65_536, 1), 128, 0, "65536 blocks along y"),
        ((1, 1, 65_536), 128, 0, "65536 blocks along z"),
        ((1, 1, 1), 1025, 0, "1025 threads"),
        ((1, 1, 1), 128, (48 << 10) + 4, "49156 bytes of shared memory; a block has 49152"),
    ],
)
def test_a_launch_knows_its_limits(blocks, threads, shared_bytes, words):
    """The reason has the number that is too large."""
    reason = Launch(Kernel(_nothing, "void()", threads, shared_bytes, ""), blocks).why_not()
    assert reason is None if words is None else words in reason


def _nothing():
    """A kernel that does nothing."""
