"""Planted faults: what is right of two small CUDA convolutions passes the checks, and each wrong line is caught.

The checks are the very ones that every CUDA entry goes through: the emulator and the comparison with the reference
(test_cuda_emulator), and the compiler's report (test_cuda_compile).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from impls.cuda_setup import KERNELS
from impls.specs import FORWARD, parse_case
from tests.cuda_emulator import Fault, emulated
from tests.cuda_golden import PROCESSORS, compiled, complaints, missing
from tests.cuda_runs import computed, input_arrays, judge

SOURCE = Path(__file__).parent / "faulty" / "cuda_kernels.py"
CASES = {
    "TILES": tuple(map(parse_case, ("conv2d:2x3x34x2,k3x5,f2", "conv2d:1x4x31x1,k2x2,f1,valid"))),
    "SPECTRA": tuple(map(parse_case, ("conv2d:2x3x9x1,k1x4,f1", "conv2d:1x2x5x1,k1x5,f1"))),
}
WAIT = "        strip[place] = value\n    cuda.syncthreads()"
WAIT_AGAIN = "                cuda.syncthreads()\n"
TOTAL = "    total = b[f]\n"
INSIDE = "if 0 <= column < x.shape[2]"
STORES = "    if j < y.shape[2]:\n"
"""Passages of the right kernels."""

MISMATCH, RACE, OUTSIDE = "(?i)mismatch", "race: ", "is outside"
"""Words of a message."""

MORE_SHARED = ("shared_bytes=4 * STRIP", "shared_bytes=4 * TILE", "declares")


@pytest.fixture
def load(tmp_path):
    """A function that gives the module with one passage replaced; the kernels it makes are forgotten afterwards."""
    known = len(KERNELS)

    def load_changed(old: str = "", new: str = ""):
        text = SOURCE.read_text(encoding="utf-8")
        if old and text.count(old) != 1:
            raise ValueError(f"{old!r} must stand once in {SOURCE.name}")
        path = tmp_path / "changed_cuda_kernels.py"
        path.write_text(text.replace(old, new) if old else text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load_changed
    del KERNELS[known:]


def run_all(record, cases, seed=0):
    """Run and judge the cases as those of a registered entry."""
    for case in cases:
        ins = input_arrays(case, FORWARD)
        with emulated(seed):
            got = computed(record, case, FORWARD, ins)
        judge(record, case, FORWARD, ins, got)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_what_is_right_passes(load, name, seed):
    """Or the checks would prove nothing by refusing the others."""
    run_all(getattr(load(), name), CASES[name], seed)


FAULTS = {
    "no barrier after loading": ("TILES", WAIT, WAIT.replace("cuda.syncthreads()", "pass"), RACE),
    "no barrier before the next load": ("TILES", WAIT_AGAIN, "", RACE),
    "a barrier for those that store alone": (
        "TILES",
        WAIT_AGAIN,
        "                if j < y.shape[2]:\n                    cuda.syncthreads()\n",
        RACE,
    ),
    "one barrier for some, another for others": (
        "TILES",
        WAIT_AGAIN,
        "                if j % 2:\n                    cuda.syncthreads()\n"
        "                else:\n                    cuda.syncthreads()\n",
        "divergent barrier",
    ),
    "threads leave before the barrier": (
        "TILES",
        TOTAL,
        "    if j >= y.shape[2]:\n        return\n" + TOTAL,
        "divergent barrier",
    ),
    "halo one pixel short": ("TILES", "TILE + w.shape[1] - 1, c)", "TILE + w.shape[1] - 2, c)", MISMATCH),
    "halo one pixel to the right": ("TILES", "first - before[1],", "first - before[1] + 1,", MISMATCH),
    "a negative index at the left edge": ("TILES", INSIDE, "if column < x.shape[2]", OUTSIDE),
    "an index beyond the right edge": ("TILES", INSIDE, "if 0 <= column", OUTSIDE),
    "border not written": ("TILES", STORES, "    if j < y.shape[2] - 1:\n", MISMATCH),
    "writes beyond the border": ("TILES", STORES, "    if True:\n", OUTSIDE),
    "too few blocks": ("TILES", "(-(-columns // TILE), n", "(columns // TILE, n", MISMATCH),
    "more shared memory than declared": ("TILES", *MORE_SHARED),
    "another type than declared": (
        "TILES",
        "(x, w, b, out, (top, left))",
        "(x, w, b, out, (top, left, 0))",
        "declared type",
    ),
    "wraps round": ("SPECTRA", "return spec.width + spec.kernel[1] - 1", "return spec.width", MISMATCH),
    "scratch read that nobody wrote": ("SPECTRA", "index >= real.size:", "index >= real.size - 1:", MISMATCH),
    "two threads write one value": ("SPECTRA", "index // length, index % length", "index // length, 0", RACE),
    "scratch that overlaps": ("SPECTRA", "[0, rows, rows, 1]) * 4", "[0, rows, rows, 0]) * 4", MISMATCH),
}
"""name: (what is changed, the right passage, the wrong one, words of the message)."""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_line_is_caught(load, fault, seed):
    """Whatever the order of the threads."""
    name, old, new, words = FAULTS[fault]
    with pytest.raises(AssertionError, match=words):
        run_all(getattr(load(old, new), name), CASES[name], seed)


COMPILED_FAULTS = {
    "float64 creeps in": (TOTAL, "    total = b[f] * 1.5\n", "float64"),
    "more shared memory than declared": MORE_SHARED,
    "a local array that registers cannot hold": (
        TOTAL,
        "    kept = cuda.local.array(64, np.float32)\n    kept[n] = b[f]\n    total = kept[i]\n",
        "bytes of stack",
    ),
}
"""name: (the right passage, the wrong one, words of the complaint)."""


@pytest.fixture
def compiler():
    """A skip where nothing can be compiled."""
    reason = missing()
    if reason:
        pytest.skip(reason)


@pytest.mark.usefixtures("compiler")
def test_what_is_right_compiles_without_a_complaint(load):
    """Its barrier stands in a function that is inlined."""
    module = load()
    for kernel in (module._tiles, module._spectrum, module._product):
        assert [complaints(kernel, row) for row in compiled(kernel)] == [[]] * len(PROCESSORS)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("fault", COMPILED_FAULTS)
def test_what_the_emulator_cannot_see_the_compiler_reports(load, fault):
    """float64, shared memory and registers."""
    old, new, words = COMPILED_FAULTS[fault]
    kernel = load(old, new)._tiles
    for row in compiled(kernel):
        assert any(words in complaint for complaint in complaints(kernel, row))


@pytest.mark.usefixtures("compiler")
def test_more_shared_memory_than_a_block_has_is_no_program(load):
    """The linker refuses it, and a launch that declares so much says why."""
    module = load("WIDEST = 8", "WIDEST = 13_000")
    with pytest.raises(Exception, match="ERROR_"):
        compiled(module._tiles)
    assert "bytes of shared memory" in module.TILES.why_not(CASES["TILES"][0].spec, FORWARD)


def test_the_emulator_says_where(load):
    """Kernel, block and thread stand before the fault."""
    name, old, new, _ = FAULTS["an index beyond the right edge"]
    with pytest.raises(Fault, match=r"_tiles, block \(\d+, \d+, \d+\), thread \d+: x\[\d+, \d+, \d+, \d+\] is outside"):
        run_all(getattr(load(old, new), name), CASES[name])
