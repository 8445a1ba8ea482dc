"""Every CUDA kernel computes what the reference computes, and does nothing that a GPU would forgive (cuda_emulator)."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from impls.conv2d._cuda_fft import FROM_SPECTRUM, SIDES, TO_SPECTRUM, frequencies, over_planes
from tests.cuda_emulator import emulated
from tests.cuda_runs import RUNS, Run, kernels

PROCESSES = 2

PLAIN, PACKED, MORE_BLOCKS = "plain", "packed weights", "more blocks"
FEW_FLOPS = 400
"""Of the cases that are also run in the other ways: every entry has some."""


def ways(run: Run) -> list[str]:
    """How a run is made: as it is, with weights that were transformed before, with blocks that find nothing to do."""
    if run.case.spec.flops > FEW_FLOPS:
        return [PLAIN]
    return [PLAIN, *[PACKED] * run.packs, MORE_BLOCKS]


TRIED = [(run, way) for run in RUNS for way in ways(run)]
IDS = [f"{run}-{way}" for run, way in TRIED]


def tried(number: int) -> None:
    """Compute and judge one of TRIED. Raises AssertionError."""
    run, way = TRIED[number]
    with emulated(seed=len(run.what), more_blocks=int(way == MORE_BLOCKS)) as emulator:
        got = run.computed(packed=way == PACKED)
    run.judge(got)
    if way == PLAIN:
        assert emulator.launched == {launch.kernel.name for launch in run.launches()}


@pytest.fixture(scope="module")
def outcomes(request):
    """{number: future} of everything that this run of pytest asks for, computed by two processes at a time."""
    asked = [getattr(item, "callspec", None) for item in request.session.items]
    numbers = [one.params["number"] for one in asked if one is not None and one.id in IDS]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        yield {number: pool.submit(tried, number) for number in numbers}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("number", range(len(TRIED)), ids=IDS)
def test_kernel_equals_the_reference_in_any_order_of_its_threads(outcomes, number):
    """No race, no index outside an array, no barrier that only some reach; every value written, and exact."""
    outcomes[number].result()


@pytest.mark.parametrize("side", SIDES)
def test_transforms_of_every_side_restore_their_tiles(side):
    """As the plans launch them, which a case would do at the price of a product for each frequency."""
    source = np.random.default_rng(side).integers(-10, 11, (1, side - 1, side - 2, 1)).astype(np.float32)
    spectrum = np.full((1, frequencies(side), 2, 1), np.nan, np.float32)
    restored, no_bias = np.full_like(source, np.nan), np.zeros(1, np.float32)
    one, none, whole = (1, 1), (0, 0), (side, side)
    with emulated(seed=side):
        over_planes(TO_SPECTRUM, side, 1)(source, spectrum, 0, one, whole, none, one, whole)
        over_planes(FROM_SPECTRUM, side, 1)(spectrum, no_bias, restored, 0, one, whole, none, one, False, False)
    np.testing.assert_allclose(restored, source, atol=1e-5)


def test_every_kernel_and_variant_is_reached_by_these_runs():
    """A new kernel, or a variant that no case is large or small enough for, needs a case of its own."""
    reached = {launch.kernel.name for run in RUNS for launch in run.launches()}
    transforms = {kernel.name for kernel in (*TO_SPECTRUM.values(), *FROM_SPECTRUM.values())}
    assert reached | transforms == set(kernels())
