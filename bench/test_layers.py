"""``pytest --benchmark-only``: every implementation of the quick suite, one group per case and direction.

Each is checked before it is timed, several input sets rotate, and the last outputs are checked too. pytest-benchmark
runs one benchmark after the other in this process: compare times within a group with care, and take ratios from
``layerbench run``, which interleaves.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from bench import check, inputs, local
from bench.jobs import Selection, jobs
from bench.suites import load
from impls import Unavailable, get

SETS = 3


def pytest_generate_tests(metafunc: Any) -> None:
    """One benchmark per case, direction and implementation that can run."""
    options = metafunc.config.getoption
    chosen = tuple(options("--impl"))
    selection = Selection(implementations=chosen, competitors=("none",) if chosen else ())
    found = [(job.case, job.direction, name) for job in jobs(load(options("--suite")), selection) for name in job.names]
    ids = [f"{case}-{direction}-{name}" for case, direction, name in found]
    metafunc.parametrize(("case", "direction", "name"), found, ids=ids)


def test_layer(benchmark: Any, case: Any, direction: str, name: str) -> None:
    """Time one bound call after another over several input sets."""
    try:
        implementation = get(case.op, name)
    except Unavailable as error:
        pytest.skip(str(error))
    reason = implementation.supports(case.spec, direction)
    if implementation.alone:
        reason = f"{name} changes its process for good: layerbench run gives it one of its own"
    if reason:
        pytest.skip(reason)
    judgement = local.judge(implementation, case, direction)
    assert judgement.is_right or implementation.competitor, judgement.where

    plan = implementation.plan(case.spec, (direction,))
    put, wait = plan.device.put, plan.device.wait
    arrays = inputs.sets(case, direction, SETS, seed=0)
    truths = [check.expected(case, direction, given) for given in arrays]
    results = [
        tuple(None if v is None else np.full(v.shape, np.nan, case.spec.dtype) for v in truth.values)
        for truth in truths
    ]
    outputs = [tuple(None if a is None else put(a.copy()) for a in result) for result in results]
    calls = [
        plan.bind(direction, *(None if a is None else put(a) for a in given), *output)
        for given, output in zip(arrays, outputs, strict=True)
    ]
    for call in calls:
        call()
    wait()
    for output, poison in zip(outputs, results, strict=True):
        for target, source in zip(output, poison, strict=True):
            if target is not None and source is not None:
                plan.device.set(target, source)
    rotation = itertools.cycle(calls)

    def one_call() -> None:
        next(rotation)()
        wait()

    benchmark.group = f"{case} {direction}"
    benchmark(one_call)

    for given, truth, call, output in zip(arrays, truths, calls, results, strict=True):
        call.fetch(*output)
        found = check.verdict(
            case,
            direction,
            inputs.DENSE,
            given,
            output,
            truth,
            implementation.algorithm_of(case.spec, direction),
            implementation.arithmetic_of(case.spec, direction),
        )
        assert found.is_right or implementation.competitor, found.where
    benchmark.extra_info |= {
        "case": str(case),
        "direction": direction,
        "implementation": name,
        "error_bounds": judgement.bounds,
        "gflops": case.spec.flops / benchmark.stats["median"] / 1e9 if benchmark.stats else None,
    }
