"""The only place that reads a clock, the host's or a device's. The clock is an argument, so that its test is exact.

``sample`` is what every implementation is timed by: calls in a loop, from the first launch to idle. On a device with a
clock of its own the same loop is timed by both, and ``disagreement`` says whether one of them cannot be right. Two more
figures come from ``queued``, the device's time alone: launches queue up behind a kernel that holds the device, so that
no launch latency is between them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple, ParamSpec, TypeVar

from impls.devices import Timer

Clock = Callable[[], float]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

CLOCK: Clock = time.perf_counter
"""Seconds; monotonic, sub-microsecond."""

SAMPLE_SECONDS = 0.01
"""One sample lasts at least this long: some 10^5 times the clock's resolution."""

MAX_LOOPS = 100_000

MAX_QUEUED = 32
"""Calls behind one hold: a driver takes about a thousand launches before a launch waits, and a call makes several."""
HOLD_SECONDS = 1e-3
"""How long the device is held at first."""
MAX_HOLD_SECONDS = 0.02
"""What has not been enqueued by then is timed with its launch latency, and marked."""
HOLD_ATTEMPTS = 3

LATER_SHARE, LATER_SECONDS = 0.02, 5e-5
"""A device's time exceeds the host's by this share and these seconds a loop at the most: the loop's first and last mark
lie within the host's two readings, so that only the resolution and the drift of two clocks are left."""
SOONER_SHARE = 0.5
"""A device's time is at least this share of the host's, less LATER_SECONDS. The first mark is recorded before anything
is enqueued and the last one after everything: what is between the clocks is two launches and one wake-up, in a sample
of SAMPLE_SECONDS. Half is far from what a busy host does to a median over rounds."""


class Loop(NamedTuple):
    """Seconds per call of one loop: by the host's clock, and by the device's where it has one."""

    host: float
    device: float | None = None

    @property
    def longer(self) -> float:
        """What a call takes at the least, whoever is wrong."""
        return self.host if self.device is None else max(self.host, self.device)


class Queued(NamedTuple):
    """Seconds per call on the device; whether no launch latency is in them; seconds for which the device was held."""

    seconds: float
    hidden: bool
    held: float


def sample(
    calls: Sequence[Callable[[], object]],
    wait: Callable[[], None],
    loops: int,
    warm: bool = True,
    clock: Clock = CLOCK,
    timer: Timer | None = None,
) -> Loop:
    """``loops`` calls, the bound calls in rotation, launch to idle; ``warm``: one untimed first.

    The device's marks are recorded within the host's readings of its clock, and read after them.
    """
    if warm:
        calls[-1]()
        wait()
    rotation = [calls[i % len(calls)] for i in range(min(loops, len(calls)))]
    rounds, rest = divmod(loops, len(rotation))
    start = clock()
    first = timer.mark() if timer else None
    for _ in range(rounds):
        for call in rotation:
            call()
    for call in rotation[:rest]:
        call()
    last = timer.mark() if timer else None
    wait()
    seconds = (clock() - start) / loops
    return Loop(seconds, timer.seconds(first, last) / loops if timer else None)


def prepared(
    steps: Sequence[tuple[Callable[[], object], Callable[[], object]]],
    wait: Callable[[], None],
    loops: int,
    clock: Clock = CLOCK,
) -> Loop:
    """``loops`` calls, each timed alone after a preparation that is not; ``steps``: (preparation, call) in rotation."""
    seconds = 0.0
    for i in range(loops):
        prepare, call = steps[i % len(steps)]
        prepare()
        start = clock()
        call()
        wait()
        seconds += clock() - start
    return Loop(seconds / loops)


def queued(
    calls: Sequence[Callable[[], object]],
    wait: Callable[[], None],
    loops: int,
    timer: Timer,
    hold_seconds: float = HOLD_SECONDS,
    flush: bool = False,
    clock: Clock = CLOCK,
) -> Queued:
    """The device's time of at most MAX_QUEUED calls that were all enqueued while it was held; ``flush``: cold caches.

    A first mark that the device has not come to when the last call is enqueued proves that no launch was waited for.
    Where it has, the device is held for longer, HOLD_ATTEMPTS times in all. With ``flush`` every call comes after a
    write to the whole cache, and is timed alone.
    """
    for _ in range(HOLD_ATTEMPTS):
        seconds, hidden, enqueued = _queued(calls, wait, min(loops, MAX_QUEUED), timer, hold_seconds, flush, clock)
        if hidden or hold_seconds == MAX_HOLD_SECONDS:
            break
        hold_seconds = min(MAX_HOLD_SECONDS, 2 * (hold_seconds + enqueued))
    return Queued(seconds, hidden, hold_seconds)


def _queued(
    calls: Sequence[Callable[[], object]],
    wait: Callable[[], None],
    loops: int,
    timer: Timer,
    hold_seconds: float,
    flush: bool,
    clock: Clock,
) -> tuple[float, bool, float]:
    """One attempt: seconds per call, whether the device was held for long enough, seconds that enqueuing took."""
    rotation = [calls[i % len(calls)] for i in range(loops)]
    spans = []
    start = clock()
    timer.hold(hold_seconds)
    for part in [[call] for call in rotation] if flush else [rotation]:
        if flush:
            timer.flush()
        first = timer.mark()
        for call in part:
            call()
        spans.append((first, timer.mark()))
    hidden = not timer.passed(spans[0][0])
    enqueued = clock() - start
    wait()
    return sum(timer.seconds(*span) for span in spans) / loops, hidden, enqueued


def disagreement(host: Sequence[float], device: Sequence[float], loops: int) -> str | None:
    """What is wrong where the two clocks' seconds per call of the same loops cannot both be right, or None.

    Judged by the medians over the rounds: a host that is interrupted once proves nothing.
    """
    if not host or len(host) != len(device):
        return None
    by_host, by_device = median(host), median(device)
    times = f"{by_host:.3g} s a call by the host's clock, {by_device:.3g} s by the device's"
    if by_device > (1 + LATER_SHARE) * by_host + LATER_SECONDS / loops:
        return f"{times}: its work was not waited for"
    if by_device < SOONER_SHARE * by_host - LATER_SECONDS / loops:
        return f"{times}: its work is not in the order of the stream that is timed"
    return None


def loops_for(seconds: float, target: float = SAMPLE_SECONDS) -> int:
    """How many calls of ``seconds`` each make one sample of at least ``target`` seconds."""
    return max(1, min(MAX_LOOPS, math.ceil(target / max(seconds, 1e-9))))


def lapped(call: Callable[Parameters, Result], laps: list[float], clock: Clock = CLOCK) -> Callable[Parameters, Result]:
    """The same call, which from now on appends the seconds it took to ``laps``."""

    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        start = clock()
        result = call(*arguments, **options)
        laps.append(clock() - start)
        return result

    return run
