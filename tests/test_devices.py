"""What a device says of itself and of its errors; on a GPU, that its clock, its graphs and its guards work."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import arena, check, timing
from bench import inputs as designs
from impls import Case, cuda_graph, get, names, parse, parse_case
from impls.cuda_setup import CudaPlan
from impls.devices import CPU, CUDA, is_lost, is_out_of_memory
from impls.specs import directions_of

ROOT = Path(__file__).parents[1]
CASE = parse_case("conv2d:2x9x8x3,k3x3,f4")
SMALL = {
    "conv2d": "5x9x8x3,k3x3,f4,s2x1,relu",
    "maxpool2d": "2x9x8x3,pool2x2",
    "avgpool2d": "2x9x8x3,pool3x3,s2x2,same",
    "dense": "5x300,u7,relu",
}

REQUIRED = bool(os.environ.get("LAYERBENCH_REQUIRE_CUDA"))


class OutOfMemoryError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "lost", "no_memory"),
    [
        (RuntimeError("[700] Call to cuCtxSynchronize results in CUDA_ERROR_ILLEGAL_ADDRESS"), True, False),
        (RuntimeError("CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error encountered"), True, False),
        (RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"), True, False),
        (RuntimeError("cudaErrorLaunchFailure: unspecified launch failure"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True, False),
        (RuntimeError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY"), False, True),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False, True),
        (MemoryError(), False, True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes."), False, True),
        (RuntimeError("[1] Call to cuLaunchKernel results in CUDA_ERROR_INVALID_VALUE"), False, False),
        (ValueError("no such stride"), False, False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors_that_end_a_process_hold_of_its_device_are_told_from_others(error, lost, no_memory):
    assert is_lost(error) is lost
    assert is_out_of_memory(error) is no_memory


def test_the_cpu_has_no_clock_of_its_own():
    assert CPU.timer() is None
    assert CPU.describe() == {}


SIMULATED = f"""
import numpy as np
from bench import arena
from impls import get, parse_case
from impls.devices import CUDA

case = parse_case("{CASE}")
shapes = [arena.shapes_of(case.spec, "forward", outputs=which) for which in (False, True)]
inputs, outputs = (arena.put(arena.allocate(each, "float32"), CUDA) for each in shapes)
assert type(inputs.block).__name__ == "FakeCUDAArray"
for array in inputs.host.arrays:
    array[...] = 1
inputs.send()
plan = get("conv2d", "numba_cuda_direct").plan(case.spec, ("forward",))
call = plan.bind("forward", *inputs.arrays, *outputs.arrays)
outputs.poison()
call()
outputs.fetch()
assert call.run.launched == "launches: the simulator has no graphs"
assert outputs.host.arrays[0][0, 4, 4, 0] == 28
assert outputs.host.guards_intact()
outputs.block[outputs.block.size - 1] = 0
outputs.fetch()
assert not outputs.host.guards_intact()
assert CUDA.timer() is None and CUDA.free_bytes() is None and CUDA.describe() == {{}}
"""


def test_the_simulator_keeps_guards_around_its_arrays_and_has_neither_graphs_nor_a_clock():
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", SIMULATED], env=environment, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr


@pytest.fixture
def on_a_gpu():
    """Skip where there is none; where one is required, that is a failure."""
    missing = CUDA.missing()
    if missing:
        (pytest.fail if REQUIRED else pytest.skip)(missing)
    if CUDA.timer() is None:
        pytest.skip("the simulator has no clock")


@pytest.mark.usefixtures("on_a_gpu")
def test_cuda_a_held_device_is_busy_for_about_as_long_as_it_was_told():
    timer = CUDA.timer()
    CUDA.wait()
    first = timer.mark()
    timer.hold(0.005)
    last = timer.mark()
    assert not timer.passed(last)
    assert 0.001 < timer.seconds(first, last) < 0.05


GRAPHS = [
    pytest.param(op, name, direction, id=f"{op}-{name}-{direction}")
    for op, spec in SMALL.items()
    for name in names(op)
    if name.startswith("numba_cuda_")
    for direction in directions_of(op)
]


@pytest.mark.parametrize(("op", "name", "direction"), GRAPHS)
@pytest.mark.usefixtures("on_a_gpu")
def test_cuda_every_call_is_a_graph_that_is_right_from_other_contents_too(op, name, direction):
    """Of one launch and of several; inputs are refilled at their addresses, outputs start as NaN."""
    case = Case(op, parse(op, SMALL[op]))
    plan = get(op, name).plan(case.spec, (direction,))
    inputs, outputs = (
        arena.put(arena.allocate(arena.shapes_of(case.spec, direction, outputs=which), "float32"), CUDA)
        for which in (False, True)
    )
    call = plan.bind(direction, *inputs.arrays, *outputs.arrays)
    assert isinstance(call.run, cuda_graph.Graph), call.run.launched
    record = get(op, name)
    declared = record.algorithm_of(case.spec, direction), record.arithmetic_of(case.spec, direction)
    for seed in (1, 2):
        given = designs.make(case, direction, designs.DENSE, seed)
        for target, source in zip(inputs.host.arrays, given, strict=True):
            if target is not None:
                target[...] = source
        inputs.send()
        outputs.poison()
        call()
        CUDA.wait()
        outputs.fetch()
        assert outputs.host.guards_intact()
        truth = check.expected(case, direction, given)
        found = check.verdict(case, direction, designs.DENSE, given, outputs.host.arrays, truth, *declared)
        assert found.is_right, found.where


@pytest.mark.parametrize(("op", "name", "direction"), GRAPHS)
def test_cuda_no_plan_binds_in_a_way_of_its_own(op, name, direction):
    """One that binds anew after its base did would lose its graph, and nobody would be told."""
    assert get(op, name).plan_type.bind is CudaPlan.bind


@pytest.mark.usefixtures("on_a_gpu")
def test_cuda_a_graph_computes_what_its_launches_compute_and_its_time_is_measured():
    """From other contents at the same addresses, too."""
    spec = CASE.spec
    inputs, outputs = (
        arena.put(arena.allocate(arena.shapes_of(spec, "forward", outputs=which), "float32"), CUDA)
        for which in (False, True)
    )
    plan = get("conv2d", "numba_cuda_direct").plan(spec, ("forward",))
    call = plan.bind("forward", *inputs.arrays, *outputs.arrays)
    assert isinstance(call.run, cuda_graph.Graph), call.run.launched
    for value in (1, 2):
        for array in inputs.host.arrays:
            array[...] = value
        inputs.send()
        outputs.poison()
        call()
        CUDA.wait()
        outputs.fetch()
        assert outputs.host.guards_intact()
        assert outputs.host.arrays[0][0, 4, 4, 0] == 27 * value * value + value
    for flush in (False, True):
        found = timing.queued([call], CUDA.wait, 20, CUDA.timer(), flush=flush)
        assert found.hidden
        assert 1e-7 < found.seconds < 1e-2


@pytest.mark.usefixtures("on_a_gpu")
def test_cuda_the_two_clocks_agree():
    timer = CUDA.timer()
    loops = [timing.sample([lambda: timer.hold(0.002)], CUDA.wait, 5, timer=timer) for _ in range(5)]
    assert timing.disagreement([loop.host for loop in loops], [loop.device for loop in loops], 5) is None


@pytest.mark.usefixtures("on_a_gpu")
def test_cuda_describes_itself():
    found = CUDA.describe()
    assert found["l2_bytes"] > 0
    assert found["multiprocessors"] > 0
    assert CUDA.free_bytes() <= found["memory_bytes"]
    assert np.all([found["name"], found["compute_capability"], found["driver_cuda"]])


def test_the_kernels_that_help_to_measure_compile_to_integers_without_a_gpu():
    """The loop that holds a device is still a loop, and nothing is computed in float64."""
    from numba import config

    from impls.cuda_setup import cuda

    if config.ENABLE_CUDASIM or getattr(cuda, "implementation", None) != "NVIDIA":
        pytest.skip("numba-cuda is not installed, or simulates")
    pytest.importorskip("cuda.bindings.nvvm")
    from impls import numba_cuda_timer

    for kernel in (numba_cuda_timer._spin, numba_cuda_timer._overwrite):
        ptx, _ = cuda.compile_ptx(kernel.function, kernel.signature, cc=(9, 0), device=False)
        assert ".entry" in ptx
        assert ".f64" not in ptx
        assert ("bra" in ptx and ".s64" in ptx) or kernel is numba_cuda_timer._overwrite
    spin, _ = cuda.compile_ptx(numba_cuda_timer._spin.function, numba_cuda_timer._spin.signature, cc=(9, 0))
    assert str(numba_cuda_timer.INCREMENT) in spin
