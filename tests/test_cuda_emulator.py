"""Every CUDA kernel computes what the reference computes, and does nothing that a GPU would forgive (cuda_emulator)."""

from __future__ import annotations

import pytest

from tests.cuda_emulator import emulated
from tests.cuda_runs import RUNS, Run, kernels

PLAIN, PACKED, MORE_BLOCKS = "plain", "packed weights", "more blocks"
FEW_FLOPS = 1_000
"""Of the cases that are also run in the other ways: every entry has some."""


def ways(run: Run) -> list[str]:
    """How a run is made: as it is, with weights that were transformed before, with blocks that find nothing to do."""
    if run.case.spec.flops > FEW_FLOPS:
        return [PLAIN]
    return [PLAIN, *[PACKED] * run.packs, MORE_BLOCKS]


@pytest.mark.parametrize(("run", "way"), [(run, way) for run in RUNS for way in ways(run)], ids=str)
def test_kernel_equals_the_reference_in_any_order_of_its_threads(run, way):
    """No race, no index outside an array, no barrier that only some reach; every value written, and exact."""
    with emulated(seed=len(run.what), more_blocks=int(way == MORE_BLOCKS)) as emulator:
        got = run.computed(packed=way == PACKED)
    run.judge(got)
    if way == PLAIN:
        assert emulator.launched == {launch.kernel.name for launch in run.launches()}


def test_every_kernel_and_variant_is_reached_by_these_runs():
    """A new kernel, or a variant that no case above is large or small enough for, needs a case of its own."""
    reached = {launch.kernel.name for run in RUNS for launch in run.launches()}
    with emulated() as emulator:
        for run in RUNS:
            if run.packs:
                _, w, *_ = run.inputs()
                run.record.plan(run.case.spec, (run.direction,)).pack(w)
    assert reached | emulator.launched == set(kernels())
