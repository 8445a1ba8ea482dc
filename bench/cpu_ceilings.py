"""What the processor does at most, measured in a process of its own, which is asked as ``bench.process`` says.

A process holds one group of figures, and takes one sample of one figure when it is asked: who asks shuffles them, and
stops the others meanwhile. VECTORS: reading, writing and copying each level of memory, and multiply-adds in registers,
threads by numba's prange as in the implementations; BLAS: a large matrix product through NumPy, whose idle threads
spin; SYSTEM: what fresh memory and calls cost.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import caches, machine, process, timing
from bench.ceilings import GBYTES, GFLOPS
from bench.process import Answer, Responder
from impls import get, parse_case
from impls.contract import aligned_empty
from impls.specs import FORWARD, arguments

Array = npt.NDArray[np.float32]

VECTORS, BLAS, SYSTEM = "vectors", "blas", "system"
GROUPS = (VECTORS, BLAS, SYSTEM)

FMA = "float32 multiply-add"
FACTOR = 0.5
SMALL_PART = 8
"""Of fresh memory one part in so many is touched in small pages, which take longer."""
SAMPLE_SECONDS = 2e-3
"""Shorter than a system lets others run: of many short samples on a busy machine, some were not interrupted."""
FREE_PARTS = 16
"""Memory's rate is measured in this part of what is free: two arrays, in each of two processes."""
SMALLEST = "dense:1x1,u1"
"""The problem whose call is nearly nothing but the call."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work one call is: of a loop in a kernel enough to hide that threads are started and joined."""

    passed_bytes: int = 2**28
    """By each thread."""
    steps: int = 2**20
    """Multiply-adds of a chain."""
    order: int = 1536
    """Of the matrices of the product."""
    fresh_bytes: int = 2**26
    """More than the C library keeps for the next one who asks."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A figure: a call, the work of one call in its unit (a rate), or the units of time that divide a second (a time).

    ``prepare`` gives the call that is timed, once, where each needs something new; then ``call`` is not used.
    """

    name: str
    unit: str
    amount: float
    call: Callable[[], object] | None = None
    prepare: Callable[[], Callable[[], object]] | None = None
    level: str = ""
    beyond: int = 0
    touched: int | None = None

    def sample(self, loops: int, clock: timing.Clock) -> tuple[float, float]:
        """The figure, and seconds per call."""
        call = self.prepare() if self.prepare else self.call
        assert call is not None
        calls = 1 if self.prepare else loops
        seconds = timing.sample([call], _finished, calls, warm=self.prepare is None, clock=clock).host
        is_rate = self.unit in (GBYTES, GFLOPS)
        return (self.amount / seconds if is_rate else self.amount * seconds), seconds

    def record(self) -> dict[str, Any]:
        """What a ceiling keeps of it."""
        return {name: getattr(self, name) for name in ("name", "unit", "level", "beyond", "touched")}


class Prober(Responder):
    """What this process holds: the figures of its group, and how many calls make a sample of each."""

    def __init__(self, threads: int, sizes: Sizes | None = None, clock: timing.Clock = timing.CLOCK) -> None:
        self.threads = threads
        self.sizes = sizes or Sizes()
        self.clock = clock
        self.probes: dict[str, Probe] = {}
        self.loops: dict[str, int] = {}

    def do_load(self, group: str) -> Answer:
        """Make the figures of a group; the answer says which, and what is known of each before it is measured."""
        made = {VECTORS: vectors, BLAS: blas, SYSTEM: system}[group](self.threads, self.sizes)
        self.probes = {probe.name: probe for probe in made}
        pools = process.set_threads(None, self.threads)
        return {"figures": [probe.record() for probe in self.probes.values()], "threads": pools}

    def do_sample(self, name: str) -> Answer:
        """One sample of a figure, of as many calls as the fastest one so far asks for; the first is a warm-up."""
        probe = self.probes[name]
        loops = self.loops.get(name, 1)
        value, seconds = probe.sample(loops, self.clock)
        self.loops[name] = max(loops, timing.loops_for(seconds, SAMPLE_SECONDS))
        return {"value": value}


def vectors(threads: int, sizes: Sizes) -> Iterator[Probe]:
    """Multiply-adds for each width of vector, and each level of memory read, written and copied."""
    from impls import vector_kernels as kernels
    from impls.processor import vector_bits

    results = np.zeros(threads, np.float32)
    widths = vector_bits()
    values = {bits: (np.float32(FACTOR),) * (bits // 32) for bits in widths}
    for bits in widths:
        flops = 2.0 * kernels.CHAINS * sizes.steps * (bits // 32) * threads
        call = _bound(kernels.multiply_add, values[bits], sizes.steps, results)
        yield Probe(f"{FMA}, {bits} bits", GFLOPS, flops * 1e-9, call)
    lanes = values[widths[-1]]
    whole = len(lanes) * kernels.UNROLLED
    for part in caches.working_sets(caches.read(), threads, machine.free_memory() // FREE_PARTS):
        count = part.bytes_per_thread // 4 // whole * whole
        source, target = _touched(threads, count), _touched(threads, count)
        half = count // 2 // whole * whole
        ways = [
            ("read", kernels.read, source, target, 1),
            ("write", kernels.write, source, target, 1),
            ("copy", kernels.copy, source[:, :half], target[:, :half], 2),
        ]
        if part.level == caches.DRAM:
            ways.append(("copy past the caches", kernels.copy_past_caches, source[:, :half], target[:, :half], 2))
        for name, kernel, from_, to, moved in ways:
            once = 4 * from_.shape[1] * moved
            passes = max(sizes.passed_bytes // once, 1)
            yield Probe(
                f"{name}, {part.level}",
                GBYTES,
                1e-9 * once * passes * threads,
                _bound(kernel, lanes, from_, to, passes, results),
                level=part.level,
                beyond=part.beyond,
                touched=once * threads,
            )


def blas(threads: int, sizes: Sizes) -> Iterator[Probe]:
    """A product of two square matrices by whatever BLAS NumPy has."""
    n = sizes.order
    a, b = np.random.default_rng(0).random((2, n, n), np.float32)
    out = np.empty((n, n), np.float32)
    yield Probe(f"float32 GEMM, {n}", GFLOPS, 2e-9 * n**3, lambda: np.matmul(a, b, out=out), touched=3 * out.nbytes)


def system(threads: int, sizes: Sizes) -> Iterator[Probe]:
    """The first touch of fresh memory; calls that do nothing, or nearly so."""
    from impls import vector_kernels as kernels

    size, page = sizes.fresh_bytes, mmap.PAGESIZE
    paged = size // SMALL_PART

    def small_pages() -> Callable[[], object]:
        fresh = mmap.mmap(-1, paged)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            fresh.madvise(mmap.MADV_NOHUGEPAGE)
        return lambda: np.frombuffer(fresh, np.uint8)[::page].fill(1)

    def as_numpy_does() -> Callable[[], object]:
        fresh = np.empty(size, np.uint8)
        return lambda: fresh[::page].fill(1)

    yield Probe("page fault", "ns", 1e9 * page / paged, prepare=small_pages, touched=paged)
    yield Probe("first touch of an array, per MB", "us", 1e6 * 1e6 / size, prepare=as_numpy_does, touched=size)
    yield Probe("call of an empty compiled function", "ns", 1e9, kernels.nothing)
    lanes, results = (np.float32(FACTOR),) * 4, np.zeros(threads, np.float32)
    yield Probe("empty parallel loop", "us", 1e6, _bound(kernels.multiply_add, lanes, 1, results))
    yield Probe(f"smallest bound call, {SMALLEST}", "us", 1e6, _smallest())


def _smallest() -> Callable[[], object]:
    """An implementation's bound call on the smallest problem."""
    case = parse_case(SMALLEST)
    arrays = [None if a.shape is None else np.ones(a.shape, np.float32) for a in arguments(case.spec, FORWARD)]
    return get(case.op, "numba_jit").plan(case.spec, (FORWARD,)).bind(FORWARD, *arrays)


def _bound(kernel: Callable[..., object], *arguments: Any) -> Callable[[], object]:
    return lambda: kernel(*arguments)


def _touched(threads: int, count: int) -> Array:
    """(threads, count) values on whole cache lines, in memory that has been written: a page that was only read is the
    one page of zeros."""
    rows = aligned_empty(4 * threads * count).view(np.float32).reshape(threads, count)
    rows.fill(1)
    return rows


def _finished() -> None:
    """Nothing is left to be waited for: every call returns when it is done."""


if __name__ == "__main__":
    process.serve(Prober(threads=int(sys.argv[1])))
