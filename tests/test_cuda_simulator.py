"""Every CUDA kernel computes what the reference computes, in Numba's simulator: no GPU, no driver, no compiler.

The simulator is chosen while numba is imported, so one child process (this file run as a program) computes all cases
and hands the results back; the tests judge them. All numbers are small integers whose sums float32 holds exactly, so
results must equal the reference bit for bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from impls import registry
from impls.contract import FFT
from impls.devices import CUDA
from impls.specs import FORWARD, Case, PoolSpec, Shape, arguments, parse_case

ROOT = Path(__file__).parents[1]
PREFIX = "numba_cuda_"

CONVOLUTIONS = {
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
}
POOLINGS = {
    "one pixel": "1x1x1x1,pool1",
    "two by two": "2x4x6x3,pool2x2",
    "windows overlap": "1x5x6x2,pool3x2,s1x1",
    "windows leave gaps": "2x7x8x3,pool2x1,s3x4",
    "same": "1x5x4x3,pool3x3,s2x2,same",
    "uneven padding": "1x3x4x2,pool3x3,s2x1,p1:2:0:1",
    "rest cut off": "1x5x5x2,pool2x2",
}
CASES = {
    f"{op}: {what}": parse_case(f"{op}:{text}")
    for op, texts in (("conv2d", CONVOLUTIONS), ("maxpool2d", POOLINGS), ("avgpool2d", POOLINGS))
    for what, text in texts.items()
} | {"maxpool2d: NaN and infinities": parse_case("maxpool2d:1x6x6x4,pool3x3,s2x2,same")}
RUNS = [
    (name, what, direction)
    for what, case in CASES.items()
    for name in registry.names(case.op)
    if name.startswith(PREFIX)
    for direction in registry.get(case.op, name).directions
    if registry.get(case.op, name).why_not(case.spec, direction) is None
]

DIVISIBLE = 36
"""A multiple of every number of pixels under a window above: averages of its multiples are whole numbers."""

WORKSPACE_BYTES = 1 << 16


def input_arrays(what: str, direction: str) -> list[np.ndarray | None]:
    """The inputs of a run: whole numbers of at most 360, or pixels that are mostly NaN and infinities."""
    case = CASES[what]
    random = np.random.default_rng(len(what))
    arrays = [
        None if shape is None else random.integers(-10, 11, shape).astype(np.float32)
        for shape in shapes(case, direction, is_output=False)
    ]
    if case.op == "avgpool2d":
        arrays = [array * np.float32(DIVISIBLE) for array in arrays]
    if "NaN" in what:
        values = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
        arrays[0] = random.choice(values, case.spec.x_shape, p=(0.1, 0.1, 0.7, 0.1))
    if isinstance(case.spec, PoolSpec) and direction != FORWARD:
        arrays[1:2] = expected_outputs(case, FORWARD, arrays[:1])
    return arrays


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


def simulate(path: str) -> None:
    """Compute every run; save its inputs as they are afterwards, then its outputs.

    They are saved as "<name>/<what>/<direction>/<number>".

    Plans for one pixel take their own scratch. The others share a workspace that starts as NaN: none may count on what
    it finds there.
    """
    shared = CUDA.put(np.full(WORKSPACE_BYTES, 255, np.uint8))
    saved = {}
    for name, what, direction in RUNS:
        case = CASES[what]
        ins, outs = input_arrays(what, direction), poisoned(case, direction)
        on_device = [None if array is None else CUDA.put(array) for array in (*ins, *outs)]
        workspace = None if what.endswith("one pixel") else shared
        plan = registry.get(case.op, name).plan(case.spec, (direction,), workspace)
        call = plan.bind(direction, *on_device)
        call()
        CUDA.wait()
        call.fetch(*outs)
        afterwards = [None if array is None else array.copy_to_host() for array in on_device[: len(ins)]]
        for number, array in enumerate([*afterwards, *outs]):
            if array is not None:
                saved[f"{name}/{what}/{direction}/{number}"] = array
    np.savez(path, **saved)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """All arrays of all runs, by "<name>/<what>/<direction>/<number>"."""
    path = tmp_path_factory.mktemp("simulator") / "arrays.npz"
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, __file__, str(path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("name", "what", "direction"), RUNS)
def test_kernel_equals_the_reference_and_leaves_its_inputs_alone(simulated, name, what, direction):
    """Every value is written, every value is exact, every input is as it was."""
    ins = input_arrays(what, direction)
    for number, array in enumerate([*ins, *expected_outputs(CASES[what], direction, ins)]):
        if array is not None:
            got = simulated[f"{name}/{what}/{direction}/{number}"]
            np.testing.assert_array_equal(np.rint(got) if is_rounded(name, what, direction) else got, array)


def is_rounded(name: str, what: str, direction: str) -> bool:
    """Whether an exact result may come with rounding errors, as an FFT's does."""
    case = CASES[what]
    return registry.get(case.op, name).algorithm_of(case.spec, direction) == FFT


if __name__ == "__main__":
    simulate(sys.argv[1])
