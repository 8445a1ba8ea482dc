"""A CUDA device's own clock: events, a kernel that spins for a while, and a write that is larger than the L2 cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from impls.cuda_setup import VECTOR, ZERO, Launch, cuda, kernel, one_thread_each

MULTIPLIER = 6_364_136_223_846_793_005
INCREMENT = 1_442_695_040_888_963_407
"""A linear congruential generator (Knuth, The Art of Computer Programming, volume 2, 3.3.4): each of its steps waits
for the one before. A compiler makes one of a few steps, and never one of all."""

TRIAL_TURNS = 1 << 20
"""A millisecond or more: some cycles a turn."""

FLUSH_FACTOR = 4
"""Times the size of the L2 cache: what is written, so that nothing older stays under any replacement policy."""


@kernel("int64", "int64[::1]", threads=1)
def _spin(turns, state):
    """One thread that is busy for a number of turns, and no longer."""
    value = state[0]
    for _ in range(turns):
        value = value * MULTIPLIER + INCREMENT
    state[0] = value


@kernel(VECTOR, threads=256)
def _overwrite(values):
    """One thread per value."""
    index = cuda.grid(1)
    if index < values.size:
        values[index] = ZERO


class CudaTimer:
    """impls.devices.Timer on the default stream of the current device."""

    def __init__(self) -> None:
        """Compile, and measure how many turns a second the spinning kernel takes."""
        for each in (_spin, _overwrite):
            each.compile()
        self._state = cuda.to_device(np.ones(1, np.int64))
        self._spare: Any = None
        self._spin(1)
        first = self.mark()
        self._spin(TRIAL_TURNS)
        self._turns_per_second = TRIAL_TURNS / max(self.seconds(first, self.mark()), 1e-6)

    def mark(self) -> Any:
        """An event behind everything enqueued so far."""
        event = cuda.event(timing=True)
        event.record()
        return event

    def passed(self, mark: Any) -> bool:
        """Whether the device has come to it."""
        return bool(mark.query())

    def seconds(self, first: Any, last: Any) -> float:
        """From one mark to a later one; resolution about half a microsecond. Waits for the later one."""
        last.synchronize()
        return float(cuda.event_elapsed_time(first, last)) / 1e3

    def hold(self, seconds: float) -> None:
        """Keep the device busy for about this long: less where its clock rose since the turns were measured."""
        self._spin(max(1, int(seconds * self._turns_per_second)))

    def flush(self) -> None:
        """Overwrite FLUSH_FACTOR times the L2 cache."""
        if self._spare is None:
            count = FLUSH_FACTOR * int(cuda.get_current_device().L2_CACHE_SIZE) // 4
            self._spare = cuda.device_array((max(1, count),), np.float32)
        one_thread_each(_overwrite, self._spare.size)(self._spare)

    def _spin(self, turns: int) -> None:
        Launch(_spin, (1, 1, 1))(turns, self._state)
