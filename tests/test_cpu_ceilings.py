"""What is measured of the processor is what runs: so many instructions of that width, every byte, one reading each."""

import itertools
import re
import sys

import llvmlite.binding as llvm
import numba
import numpy as np
import pytest

from bench import cpu_ceilings, machine, timing
from bench.ceilings import GBYTES, GFLOPS
from bench.cpu_ceilings import BLAS, GROUPS, SYSTEM, VECTORS, Probe, Prober, Sizes
from impls import vector_kernels
from impls.contract import aligned_empty
from impls.numba_setup import FASTMATH
from impls.processor import vector_bits

TINY = Sizes(passed_bytes=1, steps=3, order=4, fresh_bytes=2**16)
REGISTERS = {128: "xmm", 256: "ymm", 512: "zmm"}
HAS_FMA = bool(llvm.get_host_cpu_features().get("fma"))


def lanes(bits):
    """What makes a kernel compute with vectors of so many bits."""
    return (np.float32(0.5),) * (bits // 32)


@pytest.fixture
def little_memory(monkeypatch):
    """Arrays for memory's rate stay small."""
    monkeypatch.setattr(machine, "free_memory", lambda: 2**22)


def asked(group, clock=timing.CLOCK):
    """A process of one thread with the figures of a group, in this process."""
    prober = Prober(1, TINY, clock)
    return prober, prober.answer({"do": "load", "group": group})["figures"]


@pytest.mark.skipif(not HAS_FMA, reason="this processor's multiply-adds have other names, or there are none")
@pytest.mark.parametrize("bits", vector_bits())
def test_every_chain_is_a_multiply_add_of_the_whole_register(bits):
    """Compiled anew: of what comes from the cache there is no assembly."""
    kernel = numba.njit(parallel=True, fastmath=FASTMATH)(vector_kernels.multiply_add.py_func)
    kernel(lanes(bits), 5, np.zeros(1, np.float32))
    (assembly,) = kernel.inspect_asm().values()
    found = re.findall(r"vfmadd\d+ps.*%([xyz]mm)", assembly)
    assert found.count(REGISTERS[bits]) >= vector_kernels.CHAINS
    assert set(found) == {REGISTERS[bits]}


@pytest.mark.parametrize("bits", vector_bits())
@pytest.mark.parametrize("steps", [1, 7])
def test_every_chain_does_every_step(bits, steps):
    """x begins at f / (i + 2) and goes to f x + 1 - f: 1 - x becomes smaller by f each time."""
    results = np.zeros(2, np.float32)
    vector_kernels.multiply_add(lanes(bits), steps, results)
    expected = sum(1 - 0.5**steps * (1 - 0.5 / (i + 2)) for i in range(vector_kernels.CHAINS))
    assert results == pytest.approx([expected] * 2, rel=1e-6)


@pytest.mark.parametrize("bits", vector_bits())
@pytest.mark.parametrize("name", ["copy", "copy_past_caches", "write"])
def test_every_byte_is_written_or_copied(name, bits):
    size = 4 * vector_kernels.UNROLLED * bits // 32
    source, target = (aligned_empty(8 * size).view(np.float32).reshape(2, size) for _ in range(2))
    source[:], target[:] = np.random.default_rng(0).random(source.shape, np.float32), np.nan
    getattr(vector_kernels, name)(lanes(bits), source, target, 2, np.zeros(2, np.float32))
    assert np.array_equal(target, np.full_like(source, 0.5) if name == "write" else source)


@pytest.mark.skipif(not HAS_FMA, reason="another processor's stores past the caches have another name")
def test_stores_past_the_caches_are_such_stores():
    kernel = numba.njit(parallel=True, fastmath=FASTMATH)(vector_kernels.copy_past_caches.py_func)
    rows = aligned_empty(2**13).view(np.float32).reshape(2, 2**10)
    kernel(lanes(256), rows, rows, 1, np.zeros(2, np.float32))
    (assembly,) = kernel.inspect_asm().values()
    assert assembly.count("vmovntps") >= vector_kernels.UNROLLED


def test_every_byte_is_read():
    """Reading is an exclusive or of all: one bit that changes anywhere in the first lanes changes the result."""
    bits = vector_bits()[-1]
    source = np.zeros((1, 2 * vector_kernels.UNROLLED * bits // 32), np.float32)
    for position in range(0, source.size, bits // 32):
        source[:] = 0
        source[0, position] = 3
        results = np.zeros(1, np.float32)
        vector_kernels.read(lanes(bits), source, source, 1, results)
        assert results[0] == 3


def test_a_rate_is_work_over_seconds_and_a_time_is_seconds_in_its_unit():
    seconds = itertools.count(step=0.5)
    rate = Probe("r", GFLOPS, 8.0, lambda: None)
    assert rate.sample(1, lambda: next(seconds)) == (16.0, 0.5)
    assert Probe("t", "ns", 1e9, lambda: None).sample(5, lambda: next(seconds)) == (pytest.approx(1e8), 0.1)


def test_what_needs_something_new_is_prepared_outside_the_clock_and_called_once():
    events = []

    def prepare():
        events.append("prepare")
        return lambda: events.append("call")

    def clock():
        events.append("clock")
        return len(events)

    Probe("fault", "ns", 1.0, prepare=prepare).sample(7, clock)
    assert events == ["prepare", "clock", "call", "clock"]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.usefixtures("little_memory")
def test_every_figure_of_a_group_can_be_sampled(group):
    prober, figures = asked(group)
    assert len({figure["name"] for figure in figures}) == len(figures)
    for figure in figures:
        for _ in range(2):
            assert prober.answer({"do": "sample", "name": figure["name"]})["value"] > 0


def test_a_sample_is_as_many_calls_as_the_fastest_so_far_asks_for():
    """The first was interrupted for a second, the third too."""
    readings = iter([0.0, 1.0, 0.0, 1e-4, 0.0, 1.0])
    prober, _ = asked(BLAS, lambda: next(readings))
    name = f"float32 GEMM, {TINY.order}"
    found = []
    for _ in range(3):
        value = prober.answer({"do": "sample", "name": name})["value"]
        found.append((value, prober.loops[name]))
    gflop, most = 2 * TINY.order**3 * 1e-9, timing.loops_for(1e-4, cpu_ceilings.SAMPLE_SECONDS)
    assert found == [
        (pytest.approx(gflop), 1),
        (pytest.approx(gflop / 1e-4), most),
        (pytest.approx(gflop * most), most),
    ]


@pytest.mark.usefixtures("little_memory")
def test_the_figures_of_memory_name_their_level_and_what_lies_before_it():
    _, figures = asked(VECTORS)
    memory = [figure for figure in figures if figure["unit"] == GBYTES]
    assert {figure["name"] for figure in memory} >= {"read, L1", "write, L1", "copy, L1", "copy, DRAM"}
    assert all(figure["level"] in figure["name"] for figure in memory)
    assert [f["beyond"] for f in memory] == sorted(f["beyond"] for f in memory)
    assert not any(figure["level"] for figure in figures if figure["unit"] == GFLOPS)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not count faults so")
def test_touching_fresh_pages_faults_on_each():
    import mmap
    import resource

    probe = next(iter(cpu_ceilings.system(1, Sizes(fresh_bytes=2**22))))
    touch = probe.prepare()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    touch()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before >= probe.touched // mmap.PAGESIZE > 100
    assert probe.name == "page fault"
    assert SYSTEM in GROUPS
