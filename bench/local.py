"""Compute and judge in this process: for tests and pytest-benchmark. The harness proper does it in workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import arena, check, inputs
from impls import Case, Plan
from impls.contract import Implementation

Array = npt.NDArray[Any]


class SideEffectError(AssertionError):
    """A call wrote to its inputs or outside its outputs."""


def compute(plan: Plan, direction: str, arrays: Sequence[Array | None]) -> tuple[Array | None, ...]:
    """The outputs of one call; they start as NaN, between guard bands. Raises SideEffectError."""
    dtype = plan.spec.dtype
    given = arena.allocate(arena.shapes_of(plan.spec, direction, outputs=False), dtype)
    for target, source in zip(given.arrays, arrays, strict=True):
        if target is not None and source is not None:
            np.copyto(target, source)
    before = given.block.copy()
    outputs = arena.allocate(arena.shapes_of(plan.spec, direction, outputs=True), dtype)
    there = arena.put(given, plan.device), arena.put(outputs, plan.device)
    call = plan.bind(direction, *there[0].arrays, *there[1].arrays)
    there[1].poison()
    call()
    plan.device.wait()
    for each in there:
        each.fetch()
    if not np.array_equal(before, given.block):
        raise SideEffectError("an input, or memory around it, was changed")
    if not outputs.guards_intact():
        raise SideEffectError("memory around an output was written")
    call.fetch(*outputs.arrays)
    return outputs.arrays


def judge(implementation: Implementation, case: Case, direction: str, seed: int = 0) -> check.Judgement:
    """The worst judgement over all designs of inputs. Raises Unavailable or SideEffectError."""
    plan = implementation.plan(case.spec, (direction,))
    algorithm = implementation.algorithm_of(case.spec, direction)
    arithmetic = implementation.arithmetic_of(case.spec, direction)
    worst = check.Judgement(0.0)
    for design in inputs.judged(case):
        arrays = inputs.make(case, direction, design, seed)
        truth = check.expected(case, direction, arrays)
        outputs = compute(plan, direction, arrays)
        found = check.verdict(case, direction, design, arrays, outputs, truth, algorithm, arithmetic)
        worst = max(worst, found, key=lambda judgement: judgement.bounds)
    return worst
