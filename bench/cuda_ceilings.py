"""What a CUDA device can do at most, measured: copies, multiply-adds, launches. A program of its own: a line a ceiling.

``python -m bench.cuda_ceilings`` prints each bench.ceilings.Ceiling as a line of JSON. It runs apart because whatever
a driver does there, even a crash, must not reach who asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench import timing
from bench.ceilings import CUDA, GBYTES, GFLOPS, Ceiling
from impls import devices

MEMORY = "device memory"
COPY = "device copy"
FMA = "float32 multiply-add"
LAUNCH = "launch"
TO_DEVICE, FROM_DEVICE = "host to device", "device to host"
PINNED, PAGEABLE = "pinned", "pageable"

SAMPLES = 7
THREADS = 256
CHAINS = 16
"""Independent multiply-adds in a thread: more than the latency of one in cycles, over the schedulers' issue rate."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work one sample is."""

    copied_bytes: int = 2**29
    """On the device: far more than its caches hold."""
    moved_bytes: int = 2**27
    """Between host and device."""
    blocks: int = 16_384
    """Of THREADS threads: many waves on the largest device, so that the last one's tail weighs little."""
    steps: int = 512
    """Multiply-adds of a chain."""
    loops: int = 10
    launches: int = 1000


IN_SIMULATOR = Sizes(copied_bytes=4096, moved_bytes=4096, blocks=1, steps=1, loops=1, launches=1)
"""The simulator runs every thread in Python."""


def measure(sizes: Sizes) -> Iterator[Ceiling]:
    """Every ceiling, in the order of their worth. Raises what the driver raises."""
    from numba import cuda

    yield _copy(sizes)
    values = cuda.to_device(np.array([*np.linspace(0, 1, CHAINS), 0.9, 0.1, 1.0], np.float32))
    multiply_add, nothing = cuda.jit(_multiply_add), cuda.jit(_nothing)
    flops = 2.0 * CHAINS * sizes.steps * sizes.blocks * THREADS
    yield _rate(
        FMA, GFLOPS, flops * 1e-9, lambda: multiply_add[sizes.blocks, THREADS](values, sizes.steps), sizes.loops
    )
    launches = _rate(LAUNCH, "1/us", 1e-6, lambda: nothing[1, 32](values), sizes.launches)
    yield Ceiling(LAUNCH, "us", tuple(1 / rate for rate in launches.samples), CUDA)

    count = sizes.moved_bytes // 4
    yield from _moves(PINNED, cuda.pinned_array(count, np.float32))
    yield from _moves(PAGEABLE, np.empty(count, np.float32))


def _copy(sizes: Sizes) -> Ceiling:
    """Bytes read and written while one array is copied to another on the device."""
    from numba import cuda

    source = cuda.to_device(np.zeros(sizes.copied_bytes // 4, np.float32))
    target = cuda.device_array(source.shape, np.float32)
    rate = _rate(COPY, GBYTES, 2e-9 * sizes.copied_bytes, lambda: target.copy_to_device(source), sizes.loops)
    cached = devices.CUDA.describe().get("l2_bytes", 0)  # the simulator has no cache
    return replace(rate, level=MEMORY, beyond=cached, touched=2 * sizes.copied_bytes)


def _moves(kind: str, host: Any) -> Iterator[Ceiling]:
    """Copies of this host array to the device and back."""
    from numba import cuda

    host[:] = 1
    device = cuda.to_device(host)
    amount = 1e-9 * host.nbytes
    yield _rate(f"{TO_DEVICE}, {kind}", GBYTES, amount, lambda: device.copy_to_device(host), 1)
    yield _rate(f"{FROM_DEVICE}, {kind}", GBYTES, amount, lambda: device.copy_to_host(host), 1)


def _rate(name: str, unit: str, amount: float, call: Callable[[], object], loops: int) -> Ceiling:
    """``amount`` of work per call over the seconds of a call, launch to idle."""
    from numba import cuda

    seconds = [timing.sample([call], cuda.synchronize, loops).host for _ in range(SAMPLES)]
    samples = tuple(amount / s for s in seconds)
    return Ceiling(name, unit, samples, CUDA)


def _multiply_add(values: Any, steps: int) -> None:
    """CHAINS chains of x = x * factor + addend, all of which stay between 0 and 1.

    The last comparison never holds, and keeps the chains from being left out.
    """
    factor, addend = values[16], values[17]
    a, b, c, d = values[0], values[1], values[2], values[3]
    e, f, g, h = values[4], values[5], values[6], values[7]
    i, j, k, m = values[8], values[9], values[10], values[11]
    n, o, p, q = values[12], values[13], values[14], values[15]
    for _ in range(steps):
        a, b, c, d = a * factor + addend, b * factor + addend, c * factor + addend, d * factor + addend
        e, f, g, h = e * factor + addend, f * factor + addend, g * factor + addend, h * factor + addend
        i, j, k, m = i * factor + addend, j * factor + addend, k * factor + addend, m * factor + addend
        n, o, p, q = n * factor + addend, o * factor + addend, p * factor + addend, q * factor + addend
    total = a + b + c + d + e + f + g + h + i + j + k + m + n + o + p + q
    if total < -values[18]:
        values[0] = total


def _nothing(values: Any) -> None:
    """What a launch costs by itself."""


def main() -> None:
    """Print every ceiling as soon as it is known."""
    from numba import config

    for ceiling in measure(IN_SIMULATOR if config.ENABLE_CUDASIM else Sizes()):
        print(json.dumps(ceiling.record()), flush=True)


if __name__ == "__main__":
    main()
