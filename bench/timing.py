"""The only place that reads a clock. The clock is an argument, so that its test is exact."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

Clock = Callable[[], float]

CLOCK: Clock = time.perf_counter
"""Seconds; monotonic, sub-microsecond."""

SAMPLE_SECONDS = 0.01
"""One sample lasts at least this long: some 10^5 times the clock's resolution."""

MAX_LOOPS = 100_000


def once(call: Callable[[], object], wait: Callable[[], None], clock: Clock = CLOCK) -> float:
    """Seconds from launch to idle of one call."""
    start = clock()
    call()
    wait()
    return clock() - start


def sample(
    calls: Sequence[Callable[[], object]], wait: Callable[[], None], loops: int, warm: bool = True, clock: Clock = CLOCK
) -> float:
    """Seconds per call: ``loops`` calls, the bound calls in rotation, launch to idle; ``warm``: one untimed first."""
    if warm:
        calls[-1]()
        wait()
    rotation = [calls[i % len(calls)] for i in range(min(loops, len(calls)))]
    rounds, rest = divmod(loops, len(rotation))
    start = clock()
    for _ in range(rounds):
        for call in rotation:
            call()
    for call in rotation[:rest]:
        call()
    wait()
    return (clock() - start) / loops


def loops_for(seconds: float, target: float = SAMPLE_SECONDS) -> int:
    """How many calls of ``seconds`` each make one sample of at least ``target`` seconds."""
    return max(1, min(MAX_LOOPS, math.ceil(target / max(seconds, 1e-9))))
