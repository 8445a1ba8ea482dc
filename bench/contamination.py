"""What else the machine did while something was measured: load, steal time, throttling, frequency, other processes.

A look reads a few files under /proc and /sys, which takes less than a millisecond; where they are missing, as outside
Linux, there is nothing to see and nothing is judged. The time between two looks is dirty if one of the thresholds below
is passed. Load is a mean over a minute and counts our own work: it is kept, not judged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench import timing

FOREIGN_CORES = 0.1
"""Cores' worth of work by others. On a core of ours a tenth delays by as much, and elsewhere it takes of the cache and
of memory bandwidth; an idle system's services stay far below."""
STEAL_CORES = 0.02
"""Cores' worth of time that the host of this virtual machine gave to others while we wanted it: lost one to one, so
that no more than a clean round's own scatter is let pass."""
FREQUENCY_DROP = 0.2
"""The fastest core's clock has fallen by more than this share. Less is what turbo steps do as loads change."""
WINDOW_S = 0.5
"""Work is judged over as long at the least, unless it shows earlier: in shorter times most of it hides in the ticks."""
TICK = 0.01
"""Seconds in which /proc counts, where the system does not say."""
FOREIGN = "cores taken by other processes"
STOLEN = "cores stolen by the host"
THROTTLED = "periods throttled by the control group"
SLOWED = "of the frequency lost"
"""What is said of each kind of dirt, after how much of it there was."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the machine; None for what it does not tell. Seconds are sums over all cores since it started."""

    seconds: float
    """When, by the clock that measures."""
    tick: float = TICK
    """Seconds of one count of work."""
    load: float | None = None
    """Mean number of runnable processes in the last minute."""
    busy_s: float | None = None
    """Work of all processes and of the system itself."""
    steal_s: float | None = None
    throttled: int | None = None
    """Periods in which our control group was held back, since it was made."""
    mhz: float | None = None
    """Of the fastest core."""
    own_s: Mapping[int, float] = field(default_factory=dict)
    """Work of each of our processes."""

    def as_record(self) -> dict[str, Any]:
        """Plain values, less the moment, which means nothing to others."""
        return {name: value for name, value in asdict(self).items() if name not in ("seconds", "tick", "own_s")}


class Reader(Protocol):
    """Something that can look at the machine."""

    def read(self, own: Set[int]) -> Reading | None:
        """What it says now; ``own``: our processes; None where it says nothing."""


class Nobody:
    """Where there is nobody to ask."""

    def read(self, own: Set[int]) -> Reading | None:
        """Nothing."""
        return None


class System:
    """Looks at the files in which Linux says what it does."""

    def __init__(self, root: Path = Path("/"), clock: timing.Clock = timing.CLOCK, tick: float | None = None) -> None:
        """``root``: where proc and sys are; ``tick``: seconds of one count, the system's by default."""
        self._proc, self._sys = root / "proc", root / "sys"
        self._clock = clock
        self._tick = tick or _tick()
        self._group = self._control_group()

    def read(self, own: Set[int]) -> Reading | None:
        """One look; None without /proc/stat."""
        counts = re.match(r"cpu((?: +\d+)+)", _text(self._proc / "stat"))
        if not counts:
            return None
        user, nice, system, _, _, irq, softirq, steal = ([int(n) for n in counts[1].split()] + [0] * 8)[:8]
        load = _text(self._proc / "loadavg").split()
        throttled = re.search(r"^nr_throttled (\d+)", _text(self._group) if self._group else "", re.MULTILINE)
        return Reading(
            self._clock(),
            self._tick,
            load=float(load[0]) if load else None,
            busy_s=(user + nice + system + irq + softirq) * self._tick,
            steal_s=steal * self._tick,
            throttled=int(throttled[1]) if throttled else None,
            mhz=self._mhz(),
            own_s={pid: self._work(pid) for pid in own},
        )

    def _work(self, pid: int) -> float:
        """CPU seconds of a process; none of one that ended. Fields 14 and 15 of proc(5)'s stat."""
        fields = _text(self._proc / str(pid) / "stat").rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) * self._tick

    def _mhz(self) -> float | None:
        """By the frequency driver, else as /proc/cpuinfo has it."""
        paths = self._sys.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
        found = [int(text) / 1000 for path in paths if (text := _text(path).strip()).isdecimal()]
        if not found:
            lines = re.findall(r"^cpu MHz\s*: ([\d.]+)", _text(self._proc / "cpuinfo"), re.MULTILINE)
            found = [float(line) for line in lines]
        return max(found, default=None)

    def _control_group(self) -> Path | None:
        """The cpu.stat of our control group, of version 2 or 1; in a container its path may be the root's."""
        for line in _text(self._proc / "self" / "cgroup").splitlines():
            _, controllers, path = (*line.split(":", 2), "", "")[:3]
            if controllers and "cpu" not in controllers.split(","):
                continue
            mounts = ("", "unified") if not controllers else (controllers, "cpu")
            for folder in (f"fs/cgroup/{mount}/{inner}" for mount in mounts for inner in (path.strip("/"), "")):
                found = self._sys / folder / "cpu.stat"
                if "nr_throttled" in _text(found):
                    return found
        return None


def reader() -> Reader:
    """What can look at this machine."""
    found = System()
    return found if found.read(frozenset()) else Nobody()


def dirt(before: Reading | None, after: Reading | None, mhz: float | None = None) -> dict[str, float]:
    """What makes the time between two looks a bad time to measure, and how much; nothing where there are no looks.

    Work is counted in ticks, for every process by itself: an error of a tick for each of ours that worked and of two
    for the whole is let pass. Where one of ours ended or began, nobody can tell whose work was foreign. ``mhz``: what
    the clock is held against, the one before by default.
    """
    if before is None or after is None or after.seconds <= before.seconds:
        return {}
    elapsed, tick = after.seconds - before.seconds, after.tick
    found = {}
    stolen = _grown(before.steal_s, after.steal_s)
    if stolen > STEAL_CORES * elapsed + tick:
        found[STOLEN] = stolen / elapsed
    held_back = _grown(before.throttled, after.throttled)
    if held_back > 0:
        found[THROTTLED] = held_back
    if before.own_s.keys() == after.own_s.keys():
        own = [after.own_s[pid] - before.own_s[pid] for pid in after.own_s]
        foreign = _grown(before.busy_s, after.busy_s) - sum(own)
        if foreign > FOREIGN_CORES * elapsed + (2 + sum(work > 0 for work in own)) * tick:
            found[FOREIGN] = foreign / elapsed
    mhz = mhz or before.mhz
    if mhz and after.mhz and after.mhz < (1 - FREQUENCY_DROP) * mhz:
        found[SLOWED] = 1 - after.mhz / mhz
    return found


class Watch:
    """Looks at the machine before, between and after rounds, outside everything that is timed.

    What a look sees is judged since its window began. A window ends after WINDOW_S, or when it was found to be dirty.
    """

    def __init__(self, reader: Reader, own: Callable[[], Set[int]]) -> None:
        """``own``: gives the numbers of our processes, which may be replaced."""
        self._reader = reader
        self._own = own
        self._first = self._last = self._begin = reader.read(own())
        self._rounds = 0
        """Since the window began."""
        self._mhz = self._first.mhz if self._first else None
        """The highest clock so far."""
        self._dirt: dict[str, tuple[int, float]] = {}

    @property
    def is_seeing(self) -> bool:
        """Whether there is anything to read."""
        return self._last is not None

    def look(self) -> int:
        """After a round: how many were dirty of those that have just ended, the last one among them; 0: none."""
        begin, now = self._begin, self._reader.read(self._own())
        self._last = now
        self._rounds += 1
        if begin is None or now is None:
            return 0
        self._mhz = max(filter(None, (self._mhz, now.mhz)), default=None)
        found = dirt(begin, now, self._mhz)
        for kind, amount in found.items():
            rounds, most = self._dirt.get(kind, (0, 0.0))
            self._dirt[kind] = (rounds + self._rounds, max(most, amount))
        dirty = self._rounds if found else 0
        if found or now.seconds - begin.seconds >= WINDOW_S or now.own_s.keys() != begin.own_s.keys():
            self._begin, self._rounds = now, 0
        return dirty

    def record(self) -> dict[str, Any]:
        """What is kept with a row: the first and the last look, and each kind of dirt: in how many rounds, the most."""
        if self._first is None or self._last is None:
            return {}
        dirt = {kind: {"rounds": rounds, "most": most} for kind, (rounds, most) in self._dirt.items()}
        return {"before": self._first.as_record(), "after": self._last.as_record(), "dirt": dirt}


def _grown(before: float | None, after: float | None) -> float:
    return after - before if before is not None and after is not None else 0.0


def _tick() -> float:
    """Seconds of one count in /proc."""
    try:
        return 1 / os.sysconf("SC_CLK_TCK")
    except (AttributeError, ValueError, OSError):
        return TICK


def _text(path: Path) -> str:
    """A file of the system's; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
