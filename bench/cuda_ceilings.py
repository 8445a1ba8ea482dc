"""What a CUDA device can do at most, measured. A program of its own: a line a figure.

``python -m bench.cuda_ceilings`` prints each bench.ceilings.Ceiling, and each Missing, as a line of JSON. It runs apart
because whatever a driver does there, even a crash, must not reach who asks.

Its memory and its L2 cache read, written and copied; multiply-adds, and products in cuBLAS; launches, alone and in
graphs; copies from and to the host; and the clocks that it ran at meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from bench import nvml, timing
from bench.ceilings import COPY, CUDA, GBYTES, GFLOPS, MHZ, READ, WRITE, Ceiling
from impls import devices
from impls.contract import BFLOAT16, FLOAT32, TF32

MEMORY, L2 = "device memory", "L2"
DEVICE_COPY = "device copy"
FMA = "float32 multiply-add"
LAUNCH, LAUNCH_AND_WAIT, GRAPH_LAUNCH, IN_GRAPH = "launch", "launch and wait", "graph launch", "launch in a graph"
TO_DEVICE, FROM_DEVICE = "host to device", "device to host"
PINNED, PAGEABLE = "pinned", "pageable"
BEFORE, LOADED, AFTER = "before", "under load", "after"

L2_PARTS = (0.25, 0.5, 1, 2, 4)
"""What is read over and over, in sizes of the L2 cache: where its rate ends tells how much of it one kernel gets."""
HALF = 0.5
INSIDE = 0.75
"""What takes no more than this part of the cache stays there, beside what else there is."""
MEMORY_CACHES = 16
"""Arrays of so many L2 caches are not found there again, by whatever rule it replaces what it holds."""
FREE_PARTS = 4
"""Each of the two arrays takes at most this part of the free memory."""
MOST_LOOPS = 1000
"""As many launches as a driver takes before one waits."""
GRAPH_KERNELS = 100
LOOKS = 20
"""At the clocks of a device under load, where a look takes a millisecond."""

SIMULATED = {"multiprocessors": 1, "l2_bytes": 2**13}
"""Numba's simulator describes no device: of one so small that it computes the figures in seconds."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work one sample is."""

    samples: int = 7
    sample_seconds: float = 0.02
    memory_bytes: int = 2**29
    """Of each array on the device, or more where its L2 cache is large."""
    passed_bytes: int = 2**30
    """By one launch, in passes over what a cache holds."""
    blocks_per_sm: int = 8
    turns: int = 32
    """Of the multiply-adds' loop."""
    blocks: int = 16_384
    """Of multiply-adds: many waves on the largest device, so that the last one's tail weighs little."""
    order: int = 8192
    """Of the matrices of a product."""
    moved_bytes: int = 2**27
    """Between host and device."""


IN_SIMULATOR = Sizes(1, 0.0, 1, 1, blocks_per_sm=2, turns=1, blocks=1, order=8, moved_bytes=4096)
"""The simulator runs every thread in Python."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What could not be measured, and why."""

    missing: str
    reason: str

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


Figures = Iterator[Ceiling | Missing]


def measure(sizes: Sizes, reader: nvml.Reader) -> Figures:
    """Every figure, in the order of their worth. What fails is missing, and takes no other group with it."""
    if reason := devices.CUDA.missing():
        yield Missing("all", reason)
        return
    groups: tuple[tuple[str, Callable[[], Figures]], ...] = (
        (f"clocks, {BEFORE}", lambda: clocks(BEFORE, [reader.read()])),
        (MEMORY, lambda: memory(sizes)),
        (FMA, lambda: multiply_adds(sizes, reader)),
        ("launches", lambda: launches(sizes)),
        (L2, lambda: cache(sizes)),
        ("GEMM", lambda: products(sizes)),
        ("copies from and to the host", lambda: moves(sizes)),
        (f"clocks, {AFTER}", lambda: clocks(AFTER, [reader.read()])),
    )
    for name, figures in groups:
        try:
            yield from figures()
        except Exception as error:  # whatever a driver, a compiler or a library raises: the other figures stand
            yield Missing(name, " ".join(f"{type(error).__name__}: {error}".split()))


# --- memory ---


def memory(sizes: Sizes) -> Figures:
    """Arrays that lie in memory: copied by the driver, read alone and written alone."""
    from numba import cuda

    cached = _about()["l2_bytes"]
    free = devices.CUDA.free_bytes()
    wanted = max(sizes.memory_bytes, MEMORY_CACHES * cached)
    size = _Passes(sizes, min(wanted, free // FREE_PARTS) if free else wanted)
    source, target = size.array(), cuda.device_array((size.count,), np.float32)
    yield size.rate(DEVICE_COPY, COPY, lambda: target.copy_to_device(source), MEMORY, cached)
    yield size.rate(f"device {READ}", READ, size.reading(source), MEMORY, cached)
    yield size.rate(f"device {WRITE}", WRITE, size.writing(target), MEMORY, cached)


def cache(sizes: Sizes) -> Figures:
    """Arrays of several sizes read over and over; one of half the L2 cache written, two that fill as much copied."""
    from numba import cuda

    size_of_cache = _about()["l2_bytes"]
    for part in L2_PARTS:
        size = _Passes(sizes, int(part * size_of_cache), sizes.passed_bytes)
        level = L2 if size.bytes <= INSIDE * size_of_cache else ""
        yield size.rate(f"{READ}, {part:g} x L2", READ, size.reading(size.array()), level)
    half = _Passes(sizes, int(HALF * size_of_cache), sizes.passed_bytes)
    level = L2 if half.bytes <= INSIDE * size_of_cache else ""
    yield half.rate(f"{WRITE}, {HALF:g} x L2", WRITE, half.writing(half.array()), level)
    each = _Passes(sizes, int(HALF * size_of_cache) // 2, sizes.passed_bytes // 2)
    level = L2 if 2 * each.bytes <= INSIDE * size_of_cache else ""
    target = cuda.device_array((each.count,), np.float32)
    yield each.rate(f"{COPY}, {HALF:g} x L2", COPY, each.copying(each.array(), target), level)


class _Passes:
    """Passes over about so many bytes by as many blocks as the device holds: what the kernels need to know of them."""

    def __init__(self, sizes: Sizes, wanted_bytes: int, passed_bytes: int = 0) -> None:
        """``passed_bytes``: by one launch, at least once through."""
        from impls.cuda_probes import SPAN

        multiprocessors = _about()["multiprocessors"]
        self._sizes = sizes
        self._blocks = sizes.blocks_per_sm * multiprocessors
        self._shift = np.int32((self._blocks // 2 + multiprocessors // 2 + 1) % self._blocks)  # see impls.cuda_probes
        whole = SPAN * self._blocks
        self.count = max(wanted_bytes // (4 * whole), 1) * whole
        self.bytes = 4 * self.count
        self._passes = np.int32(max(passed_bytes // self.bytes, 1))

    def array(self) -> Any:
        """On the device: no value is 0, nor like its neighbours."""
        from numba import cuda

        return cuda.to_device(np.resize(1 - np.random.default_rng(0).random(2**20, np.float32), self.count))

    def reading(self, values: Any) -> Callable[[], None]:
        """A launch that reads them."""
        from impls import cuda_probes

        return self._launch(cuda_probes.read, values, self._passes, self._shift)

    def writing(self, values: Any) -> Callable[[], None]:
        """A launch that writes them."""
        from impls import cuda_probes

        return self._launch(cuda_probes.write, values, np.float32(0.7), self._passes, self._shift)

    def copying(self, source: Any, target: Any) -> Callable[[], None]:
        """A launch that copies them."""
        from impls import cuda_probes

        return self._launch(cuda_probes.copy, source, target, self._passes, self._shift)

    def _launch(self, kernel: Any, *arguments: Any) -> Callable[[], None]:
        return _launching(kernel, self._blocks, *arguments)

    def rate(self, name: str, way: str, call: Callable[[], object], level: str, beyond: int = 0) -> Ceiling:
        """What calls of one way go through in a second; a copy's bytes are those that it reads and those it writes."""
        touched = self.bytes * (2 if way == COPY else 1)
        amount = 1e-9 * touched * int(self._passes)
        samples = tuple(amount / seconds for seconds in _seconds(call, self._sizes))
        return Ceiling(name, GBYTES, samples, CUDA, level=level, beyond=beyond, touched=touched, way=way)


# --- operations ---


def multiply_adds(sizes: Sizes, reader: nvml.Reader) -> Figures:
    """Multiply-adds in registers, and the clocks that the device keeps while it does nothing else."""
    from numba import cuda

    from impls import cuda_probes

    values = cuda.to_device(np.linspace(0, 1, cuda_probes.CHAINS, dtype=np.float32))
    call = _launching(cuda_probes.multiply_add, sizes.blocks, values, np.int32(sizes.turns))
    chains = cuda_probes.CHAINS * sizes.blocks * cuda_probes.multiply_add.threads
    gflop = 2e-9 * cuda_probes.STEPS * sizes.turns * chains
    yield Ceiling(FMA, GFLOPS, tuple(gflop / seconds for seconds in _seconds(call, sizes)), CUDA)
    yield from clocks(LOADED, _looks_during(call, reader))


def products(sizes: Sizes) -> Figures:
    """Products of two square matrices in cuBLAS, through CuPy."""
    from impls import cupy_setup

    host = np.random.default_rng(0).random((2, 1, sizes.order, sizes.order), np.float32)
    for arithmetic in (FLOAT32, TF32, BFLOAT16):
        name = f"{arithmetic} GEMM, {sizes.order}"
        if reason := cupy_setup.missing() if arithmetic == FLOAT32 else cupy_setup.missing_tf32():
            yield Missing(name, reason)
            continue
        xp = cupy_setup.load("cupy")
        a, b = map(xp.asarray, (host.view(np.uint32) >> 16).astype(np.uint16) if arithmetic == BFLOAT16 else host)
        out = xp.empty((1, sizes.order, sizes.order), np.float32)
        with cupy_setup.plain_math():
            seconds = _seconds(partial(cupy_setup.gemm, a, b, out, False, arithmetic), sizes)
        samples = tuple(2e-9 * sizes.order**3 / s for s in seconds)
        touched = a.nbytes + b.nbytes + out.nbytes
        yield Ceiling(name, GFLOPS, samples, CUDA, touched=touched, arithmetic=arithmetic)


# --- launches, the host, clocks ---


def launches(sizes: Sizes) -> Figures:
    """Kernels that do nothing: enqueued one after the other, waited for each, and replayed as CUDA graphs."""
    from impls import cuda_probes, cuda_setup

    nothing = _launching(cuda_probes.nothing, 1)

    def nothing_and_wait() -> None:
        nothing()
        devices.CUDA.wait()

    def many() -> None:
        for _ in range(GRAPH_KERNELS):
            nothing()

    yield _time(LAUNCH, nothing, sizes)
    yield _time(LAUNCH_AND_WAIT, nothing_and_wait, sizes)
    for name, run, count in ((GRAPH_LAUNCH, nothing, 1), (IN_GRAPH, many, GRAPH_KERNELS)):
        graph: Any = cuda_setup.captured(run, count)
        is_graph = graph.launched == "graph"
        yield _time(name, graph, sizes, count) if is_graph else Missing(name, graph.launched.partition(": ")[2])


def moves(sizes: Sizes) -> Figures:
    """Copies of an array to the device and back, from memory of the host that is pinned, and that is not."""
    from numba import cuda

    count = sizes.moved_bytes // 4
    for kind, allocate in ((PINNED, cuda.pinned_array), (PAGEABLE, np.empty)):
        host = allocate(count, np.float32)
        host[:] = 1
        device = cuda.to_device(host)
        ways = ((TO_DEVICE, device.copy_to_device), (FROM_DEVICE, device.copy_to_host))
        for name, copied in ways:
            seconds = _seconds(partial(copied, host), sizes)
            samples = tuple(1e-9 * host.nbytes / s for s in seconds)
            yield Ceiling(f"{name}, {kind}", GBYTES, samples, CUDA, touched=host.nbytes)


def clocks(when: str, looks: list[nvml.Reading | None]) -> Figures:
    """The clocks of the multiprocessors and of the memory as they were seen."""
    for name, field in (("SM clock", "sm_mhz"), ("memory clock", "memory_mhz")):
        seen = tuple(float(value) for look in looks if look and (value := getattr(look, field)))
        full = f"{name}, {when}"
        yield Ceiling(full, MHZ, seen, CUDA) if seen else Missing(full, "neither NVML nor nvidia-smi tells it")


def _looks_during(call: Callable[[], object], reader: nvml.Reader) -> list[nvml.Reading | None]:
    """Looks at the device by another thread, while this one keeps it busy for as long as they take."""
    with ThreadPoolExecutor(1) as pool:
        looks = pool.submit(lambda: [reader.read() for _ in range(LOOKS if reader.is_quick else 1)])
        while not looks.done():
            call()
            devices.CUDA.wait()
        return looks.result()


# --- what all have in common ---


def _about() -> dict[str, Any]:
    return devices.CUDA.describe() or SIMULATED


def _launching(kernel: Any, blocks: int, *arguments: Any) -> Callable[[], None]:
    """A launch of a kernel that has been compiled."""
    from impls.cuda_setup import Launch

    kernel.compile()
    launch = Launch(kernel, (blocks, 1, 1))
    return lambda: launch(*arguments)


def _time(name: str, call: Callable[[], object], sizes: Sizes, parts: int = 1) -> Ceiling:
    """Microseconds of a call, or of each of its parts."""
    return Ceiling(name, "us", tuple(1e6 * seconds / parts for seconds in _seconds(call, sizes)), CUDA)


def _seconds(call: Callable[[], object], sizes: Sizes) -> list[float]:
    """Samples of seconds a call, launch to idle: of as many calls as the first one, after a warm-up, asks for."""
    first = timing.sample([call], devices.CUDA.wait, 1).host
    loops = min(timing.loops_for(first, sizes.sample_seconds), MOST_LOOPS)
    return [timing.sample([call], devices.CUDA.wait, loops).host for _ in range(sizes.samples)]


def main() -> None:
    """Print every figure as soon as it is known."""
    from numba import config

    sizes = IN_SIMULATOR if config.ENABLE_CUDASIM else Sizes()
    for figure in measure(sizes, nvml.reader(None)):
        print(json.dumps(figure.record()), flush=True)


if __name__ == "__main__":
    main()
