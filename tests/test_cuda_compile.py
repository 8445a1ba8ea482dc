"""What can be known of the CUDA kernels without a GPU and without a driver, besides what they compute.

The simulator runs Python, and accepts what the compiler refuses: every kernel is compiled here for the processors it
is meant for. That needs numba-cuda with the compiler and the linker from its wheels.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from numba import config

from impls import registry
from impls.conv2d.numba_cuda_direct import partial_shape
from impls.cuda_setup import BLOCK, Kernel, cuda
from impls.specs import parse

ROOT = Path(__file__).parents[1]
OPS = ("conv2d", "maxpool2d", "avgpool2d")
NAME = "numba_cuda_direct"
KERNELS = {
    value.name: value
    for op in OPS
    for value in vars(import_module(f"impls.{op}.{NAME}")).values()
    if isinstance(value, Kernel)
}
CAPABILITIES = ((8, 0), (9, 0))
"""A100 and H100."""

REGISTERS = 65_536
"""On one multiprocessor of either: what all its resident threads have together."""


@pytest.fixture(scope="module")
def compiler():
    """numba-cuda and the libraries that it compiles and links with, or a skip that says what is missing."""
    if config.ENABLE_CUDASIM:
        pytest.skip("the simulator compiles nothing")
    if getattr(cuda, "implementation", None) != "NVIDIA":
        pytest.skip("numba-cuda is not installed, and numba's own CUDA target asks a driver before it compiles")
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    for library in ("nvvm", "nvrtc", "nvJitLink"):
        try:
            load_nvidia_dynamic_lib(library)
        except DynamicLibNotFoundError:
            pytest.skip(f"the library {library} is not installed")


def linked(ptx: str, capability: tuple[int, int]) -> str:
    """The linker's report of registers, stack, spills and shared memory."""
    from cuda.bindings import nvjitlink

    code = ptx.encode()
    options = [f"-arch=sm_{capability[0]}{capability[1]}", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "kernel")
        nvjitlink.complete(handle)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
    finally:
        nvjitlink.destroy(handle)
    return log.decode()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{0[0]}{0[1]}".format)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_compiles_to_float32_without_stack_or_spills(name, capability):
    """No float64 instruction in a float32 kernel, nothing spilled, and a block's registers fit."""
    kernel = KERNELS[name]
    ptx, _ = cuda.compile_ptx(kernel.function, kernel.signature, cc=capability, device=False)
    assert ".entry" in ptx
    assert ".f64" not in ptx
    log = linked(ptx, capability)
    for what in ("bytes stack frame", "bytes spill stores", "bytes spill loads", "bytes smem"):
        assert re.findall(rf"(\d+) {what}", log) == ["0"]
    registers = re.search(r"Used (\d+) registers", log)
    assert int(registers[1]) * BLOCK <= REGISTERS


WITHOUT_DRIVER = "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''"
WITHOUT_TARGET = "import sys; sys.modules['numba.cuda'] = None"


@pytest.mark.parametrize(
    ("hide", "reason"),
    [(WITHOUT_DRIVER, "no CUDA device or driver is visible"), (WITHOUT_TARGET, "CUDA target cannot be imported")],
    ids=["no device", "no CUDA target in numba"],
)
def test_what_is_missing_is_a_reason_and_no_exception(hide, reason):
    """The records can be imported and asked, and every one gives the reason."""
    ask = f"from impls import registry; print(*(registry.get(op, {NAME!r}).missing() for op in {OPS}), sep='\\n')"
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{hide}; {ask}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    answers = child.stdout.splitlines()
    assert len(answers) == len(OPS)
    assert all(reason in answer for answer in answers)


@pytest.mark.parametrize("case", ["conv2d:1x4x4x1,k3,f1,float64", "maxpool2d:1x4x4x1,pool2,float64"])
def test_another_dtype_is_refused_with_the_reason(case):
    """float32 kernels do not pretend to compute in float64."""
    op, _, text = case.partition(":")
    record = registry.get(op, NAME)
    for direction in record.directions:
        assert "float64" in record.why_not(parse(op, text), direction)
        assert record.why_not(parse(op, text.removesuffix(",float64")), direction) is None


@pytest.mark.parametrize(
    "text",
    [
        "1x1x1x1,k1,f1",
        "32x28x28x1,k5,f8",
        "32x64x64x64,k19,f64",
        "1000x32x32x128,k3,f128",
        "28x64x64x512,k3,f512",
    ],
)
def test_scratch_of_the_weight_gradient_is_bounded(text):
    """At most four megabytes, or one slice where the weights alone are more; never more slices than rows."""
    spec = parse("conv2d", text)
    slices, items = partial_shape(spec)
    assert items == math.prod(spec.w_shape) + spec.filters
    assert 1 <= slices <= spec.batch * spec.y_shape[1]
    assert slices * items <= max(items, 1 << 20)
