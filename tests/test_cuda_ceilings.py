"""What a CUDA device does at most is asked of it as it should be: in Numba's simulator, and of a cuBLAS stand-in."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from bench import cuda_ceilings, profile_machine, timing
from bench.ceilings import GBYTES, GFLOPS, MHZ, Ceiling
from bench.cuda_ceilings import IN_SIMULATOR, Missing
from bench.nvml import Nobody, Reading
from impls import cuda_probes, cupy_setup, devices
from impls.contract import BFLOAT16, FLOAT32, TF32
from impls.cuda_setup import BLOCK
from tests.cuda_golden import missing
from tests.test_cupy import Blas, Pointed

ROOT = Path(__file__).parents[1]

READINGS = Reading(sm_mhz=1980.0, memory_mhz=2619.0)


class Looker:
    """A device that tells its clocks."""

    is_quick = True

    def read(self):
        return READINGS


@pytest.fixture(scope="module")
def simulated():
    """What the program prints in the simulator, by the name of the figure."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-m", "bench.cuda_ceilings"], env=environment, capture_output=True, text=True, timeout=200
    )
    assert child.returncode == 0, child.stderr
    records = [json.loads(line) for line in child.stdout.splitlines()]
    return {record.get("name", record.get("missing")): record for record in records}


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("device copy", GBYTES),
        ("device read", GBYTES),
        ("device write", GBYTES),
        ("read, 0.25 x L2", GBYTES),
        ("read, 4 x L2", GBYTES),
        ("write, 0.5 x L2", GBYTES),
        ("copy, 0.5 x L2", GBYTES),
        ("float32 multiply-add", GFLOPS),
        ("launch", "us"),
        ("launch and wait", "us"),
        ("host to device, pinned", GBYTES),
        ("device to host, pageable", GBYTES),
    ],
)
def test_a_figure_is_measured_wherever_kernels_run(simulated, name, unit):
    assert simulated[name]["unit"] == unit
    assert simulated[name]["value"] > 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("graph launch", "the simulator has no graphs"),
        ("launch in a graph", "the simulator has no graphs"),
        ("float32 GEMM, 8", "CuPy cannot see the arrays of Numba's simulator"),
        ("TF32 GEMM, 8", "CuPy cannot see the arrays of Numba's simulator"),
        ("bfloat16 GEMM, 8", "CuPy cannot see the arrays of Numba's simulator"),
    ],
)
def test_what_is_not_there_is_a_line_with_its_reason(simulated, name, reason):
    assert simulated[name] == {"missing": name, "reason": reason}


def test_without_a_device_one_line_says_so(monkeypatch):
    monkeypatch.setattr(cuda_ceilings.devices, "CUDA", replace(devices.CUDA, missing=lambda: "no driver"))
    assert list(cuda_ceilings.measure(IN_SIMULATOR, Nobody())) == [Missing("all", "no driver")]


def test_a_group_that_fails_takes_no_other_with_it(monkeypatch):
    """Of an error of many lines one is left."""

    def fails(*unused):
        yield Ceiling("first", "us", (1.0,))
        raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED\n  in a kernel")

    def works(*unused):
        yield Ceiling("second", "us", (2.0,))

    monkeypatch.setattr(cuda_ceilings.devices, "CUDA", replace(devices.CUDA, missing=lambda: None))
    for group in ("memory", "cache", "multiply_adds", "products", "moves"):
        monkeypatch.setattr(cuda_ceilings, group, works)
    monkeypatch.setattr(cuda_ceilings, "launches", fails)
    found = list(cuda_ceilings.measure(IN_SIMULATOR, Looker()))
    assert Missing("launches", "RuntimeError: CUDA_ERROR_LAUNCH_FAILED in a kernel") in found
    assert [f.name for f in found if isinstance(f, Ceiling)].count("second") == 5


def test_a_profile_has_what_was_measured_and_why_the_rest_was_not(monkeypatch):
    lines = [Ceiling("device read", GBYTES, (3.0,), "cuda").record(), Missing("graph launch", "an old driver").record()]
    monkeypatch.setattr(profile_machine, "records", lambda *unused, **settings: iter(lines))
    found, why = profile_machine.cuda_ceilings({})
    assert [c.name for c in found] == ["device read"]
    assert why == {"cuda, graph launch": "an old driver"}


# --- clocks ---


def test_clocks_are_seen_before_under_load_and_after(monkeypatch):
    """Under load every look counts: the fastest is the best, the median what it keeps."""
    looks = [replace(READINGS, sm_mhz=1500.0), None, replace(READINGS, sm_mhz=0.0), READINGS]
    sm, memory = cuda_ceilings.clocks("under load", looks)
    assert (sm.name, sm.unit, sm.samples, sm.value) == ("SM clock, under load", MHZ, (1500.0, 1980.0), 1980.0)
    assert memory.samples == (2619.0,) * 3


def test_clocks_that_nobody_tells_are_missing():
    found = list(cuda_ceilings.clocks("after", [Nobody().read()]))
    assert [f.missing for f in found] == ["SM clock, after", "memory clock, after"]


def test_the_device_is_kept_busy_for_as_long_as_it_is_looked_at(monkeypatch):
    """The look ends when the load has begun for the third time: without one it would never."""
    calls, is_loaded = [], Event()

    class Waits(Looker):
        is_quick = False

        def read(self):
            return READINGS if is_loaded.wait(20) else None

    def call():
        calls.append(1)
        if len(calls) == 3:
            is_loaded.set()

    monkeypatch.setattr(cuda_ceilings.devices, "CUDA", replace(devices.CUDA, wait=lambda: None))
    assert cuda_ceilings._looks_during(call, Waits()) == [READINGS]


# --- products ---


class Typed(Blas):
    """A cuBLAS that multiplies bfloat16 too, and keeps which types and arithmetic it was asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def gemmStridedBatchedEx(self, handle, ta, tb, m, n, k, alpha, a, atype, lda, sa, b, btype, *rest):
        self.asked.append((atype, btype, rest[-2]))
        if atype == 0:
            super().gemmStridedBatchedEx(handle, ta, tb, m, n, k, alpha, a, atype, lda, sa, b, btype, *rest)


@pytest.fixture
def blas(monkeypatch):
    """NumPy and a cuBLAS in place of CuPy, on a device of the first generation with tensor cores for them."""
    found = Typed()
    modules = {
        "cupy": SimpleNamespace(
            asarray=lambda array: array.view(Pointed), empty=lambda *of: np.zeros(*of).view(Pointed)
        ),
        "cupy_backends.cuda.libs": SimpleNamespace(cublas=found),
        "cupy.cuda.device": SimpleNamespace(get_cublas_handle=lambda: 1),
        "cupy.cuda.runtime": SimpleNamespace(CUDA_R_32F=0),
    }
    monkeypatch.setattr(cupy_setup, "load", modules.__getitem__)
    monkeypatch.setattr(cupy_setup, "missing", lambda: None)
    monkeypatch.setattr(cupy_setup, "missing_tf32", lambda: None)
    monkeypatch.setattr(cuda_ceilings.devices, "CUDA", replace(devices.CUDA, wait=lambda: None))
    return found


def test_a_product_is_timed_in_each_arithmetic_with_its_own_types(blas):
    found = list(cuda_ceilings.products(IN_SIMULATOR))
    assert [(f.name, f.arithmetic) for f in found] == [
        (f"{arithmetic} GEMM, 8", arithmetic) for arithmetic in (FLOAT32, TF32, BFLOAT16)
    ]
    assert list(dict.fromkeys(blas.asked)) == [(0, 0, 68), (0, 0, 77), (14, 14, 68)]
    assert [f.touched for f in found] == [3 * 256, 3 * 256, 2 * 128 + 256]


def test_a_product_is_as_many_operations_as_its_definition_has(blas, monkeypatch):
    monkeypatch.setattr(timing, "sample", lambda *unused: timing.Loop(1e-6))
    first, *_ = cuda_ceilings.products(IN_SIMULATOR)
    assert first.value == pytest.approx(2e-9 * 8**3 / 1e-6)


def test_a_device_without_tensor_cores_multiplies_in_float32_alone(blas, monkeypatch):
    monkeypatch.setattr(cupy_setup, "missing_tf32", lambda: "TF32 needs compute capability 8.0; the device has 7.5")
    first, *others = cuda_ceilings.products(IN_SIMULATOR)
    assert first.arithmetic == FLOAT32
    assert {other.reason for other in others} == {"TF32 needs compute capability 8.0; the device has 7.5"}


# --- the kernels ---


@pytest.fixture
def run(tmp_path):
    """Run a kernel on arrays, by their names, in the simulator; the arrays as they are afterwards."""

    def run(kernel, blocks, arrays, *arguments):
        path = tmp_path / "arrays.npz"
        np.savez(path, **arrays)
        environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
        code = (
            "import sys, numpy as np; from impls import cuda_probes; from impls.cuda_setup import Launch; "
            "arrays = dict(np.load(sys.argv[1])); "
            f"values = [arrays[a] if isinstance(a, str) else a for a in {arguments!r}]; "
            f"Launch(cuda_probes.{kernel}, ({blocks}, 1, 1))(*values); np.savez(sys.argv[1], **arrays)"
        )
        child = subprocess.run(
            [sys.executable, "-c", code, path], env=environment, capture_output=True, text=True, timeout=200
        )
        assert child.returncode == 0, child.stderr
        with np.load(path) as found:
            return dict(found)

    return run


def rows(count):
    """So many spans of numbers above 0, all different."""
    return np.arange(1, count * cuda_probes.SPAN + 1, dtype=np.float32)


def test_every_value_is_copied(run):
    """Three blocks, two spans each, two passes: the second goes through other blocks' pieces."""
    values = rows(6)
    found = run("copy", 3, {"a": values, "b": np.zeros_like(values)}, "a", "b", 1, 2)
    assert np.array_equal(found["b"], values)
    assert np.array_equal(found["a"], values)


def test_every_value_is_written(run):
    found = run("write", 2, {"a": rows(4)}, "a", 0.5, 2, 1)
    assert np.array_equal(found["a"], np.full(4 * cuda_probes.SPAN, 0.5, np.float32))


def test_every_value_is_read_once_a_pass_and_by_another_block_in_the_next(run):
    """A sum below 0 is written down: in two passes both blocks add up both spans, one of which has a number below 0."""
    values = np.ones(2 * cuda_probes.SPAN, np.float32)
    values[BLOCK + 5] = -1000
    assert run("read", 2, {"a": values}, "a", 2, 1)["a"][0] == 2 * cuda_probes.LOADS - 1 - 1000


def test_reading_leaves_what_it_read_as_it_was(run):
    assert np.array_equal(run("read", 2, {"a": rows(2)}, "a", 1, 1)["a"], rows(2))


@pytest.mark.skipif(bool(missing()), reason=str(missing()))
def test_the_loop_of_multiply_adds_is_nearly_nothing_else():
    """As it is compiled: CHAINS * STEPS of them in a turn, and few instructions beside them."""
    from numba import cuda

    kernel = cuda_probes.multiply_add
    ptx = cuda.compile_ptx(kernel.function, kernel.signature, cc=(7, 5), device=False)[0]
    turn = re.search(r"^(\$L\w+):((?:(?!^\$L).)*fma\.rn\.f32.*?bra\s+\1;)", ptx, re.DOTALL | re.MULTILINE)[2]
    lines = [line for line in turn.splitlines() if line.strip().endswith(";")]
    products = [line for line in lines if "fma.rn.f32" in line]
    assert len(products) % (cuda_probes.CHAINS * cuda_probes.STEPS) == 0
    assert len(products) > 0.97 * len(lines)
