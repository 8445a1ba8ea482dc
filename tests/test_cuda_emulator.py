"""Every CUDA kernel computes what the reference computes, and does nothing that a GPU would forgive (cuda_emulator)."""

from __future__ import annotations

import pytest

from impls import registry
from impls.specs import GRAD_WEIGHTS
from tests.cuda_emulator import emulated
from tests.cuda_runs import CASES, ENTRIES, RUNS, computed, input_arrays, judge, kernels, packs

PLAIN, PACKED, MORE_BLOCKS = "plain", "packed weights", "more blocks"
FEW_FLOPS = 3_000
"""Of the cases that are also run with more blocks than they need."""


def ways(name: str, what: str, direction: str) -> list[str]:
    """How a run is made: as it is, with weights that were transformed before, with blocks that find nothing to do."""
    case = CASES[what]
    packed = direction != GRAD_WEIGHTS and packs(registry.get(case.op, name))
    return [PLAIN, *[PACKED] * packed, *[MORE_BLOCKS] * (case.spec.flops <= FEW_FLOPS)]


@pytest.mark.parametrize(("name", "what", "direction", "way"), [(*run, way) for run in RUNS for way in ways(*run)])
def test_kernel_equals_the_reference_in_any_order_of_its_threads(name, what, direction, way):
    """No race, no index outside an array, no barrier that only some reach; every value written, and exact."""
    case = CASES[what]
    record = registry.get(case.op, name)
    ins = input_arrays(case, direction, special="NaN" in what)
    with emulated(seed=len(what), more_blocks=int(way == MORE_BLOCKS)) as emulator:
        got = computed(record, case, direction, ins, packed=way == PACKED)
    judge(record, case, direction, ins, got)
    if way == PLAIN:
        assert emulator.launched == declared(name, what, direction)


def test_every_kernel_and_variant_is_reached_by_these_runs():
    """A new kernel, or a variant that no case above is large or small enough for, needs a case of its own."""
    reached = set().union(*(declared(*run) for run in RUNS))
    for op, name in ENTRIES:
        if packs(registry.get(op, name)):
            reached |= launched_by_packing(op, name)
    assert reached == set(kernels())


def declared(name: str, what: str, direction: str) -> set[str]:
    """The names of the kernels that a run says it launches."""
    case = CASES[what]
    launches = registry.get(case.op, name).plan_type.launches(case.spec, direction)
    return {launch.kernel.name for launch in launches}


def launched_by_packing(op: str, name: str) -> set[str]:
    """The names of the kernels that packing the weights of any case launches."""
    record = registry.get(op, name)
    with emulated() as emulator:
        for _, what, direction in (run for run in RUNS if run[0] == name and CASES[run[1]].op == op):
            if direction != GRAD_WEIGHTS:
                _, w, *_ = input_arrays(CASES[what], direction)
                record.plan(CASES[what].spec, (direction,)).pack(w)
    return emulator.launched
