"""The processor's data caches as the operating system tells them, and how large a part of them a thread may fill."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import machine

SYSFS = Path("/sys/devices/system/cpu")
DRAM = "DRAM"

DRAM_CACHES = 4
"""Arrays of this many times all caches lie in memory, whatever is left of them in the caches."""
LEAST_DRAM_BYTES = 2**26

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Cache:
    """A level's cache: its size, and how many of the usable cores share one."""

    level: int
    bytes: int
    sharers: int

    def held_by(self, threads: int) -> int:
        """Bytes that all caches of this level hold, which so many threads on as many cores use."""
        return self.bytes * -(-threads // self.sharers)


@dataclass(frozen=True, slots=True)
class WorkingSet:
    """What each thread goes through over and over so that it comes from one level.

    ``beyond``: bytes that the levels nearer to the cores hold for all threads; a call of B bytes fetches at least
    B - beyond of them from this level or from farther out.
    """

    level: str
    bytes_per_thread: int
    beyond: int


ASSUMED = (Cache(1, 2**15, 1), Cache(2, 2**19, 1), Cache(3, 2**25, 2**10))
"""Where the system tells nothing: small ones near the cores, and a last one that is larger than most."""
UNTOLD = 2**62
"""Bytes that caches of which nobody tells the size hold at the most: from beyond them nothing has to come."""


def read(cores: Sequence[int] | None = None, root: Path = SYSFS) -> tuple[Cache, ...]:
    """The data caches of the first usable core, nearest first; ASSUMED where the system does not tell.

    ``cores``: those that are used. Linux tells in sysfs; a virtual machine may be told less than there is.
    """
    usable = set(cores if cores is not None else machine.cores())
    found: dict[int, Cache] = {}
    for folder in sorted((root / f"cpu{min(usable)}" / "cache").glob("index*")):
        try:
            kind, level, size, shared = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
        except OSError:
            continue
        number = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and number:
            sharers = len(usable & set(_listed(shared))) or 1
            found[int(level)] = Cache(int(level), int(number[1]) * _UNITS[number[2]], sharers)
    return tuple(found[level] for level in sorted(found)) or ASSUMED


def working_sets(caches: Sequence[Cache], threads: int, most: int) -> tuple[WorkingSet, ...]:
    """What so many threads go through for each level, and for memory.

    Half of a thread's part of a cache, so that the stack and the system fit in beside it; at least one and a half times
    its part of the level before it, else much of it would come from there. ``most``: bytes that are given for memory.
    Of ASSUMED caches no size may be held against anybody.
    """
    sets: list[WorkingSet] = []
    is_told = tuple(caches) != ASSUMED
    nearer, part_before = 0, 0
    for cache in caches:
        part = cache.bytes // min(threads, cache.sharers)
        size = max(part // 2, part_before * 3 // 2)
        sets.append(WorkingSet(f"L{cache.level}", _whole_lines(size), nearer if is_told or not sets else UNTOLD))
        nearer, part_before = nearer + cache.held_by(threads), part
    whole = min(max(DRAM_CACHES * nearer, LEAST_DRAM_BYTES), most)
    return (*sets, WorkingSet(DRAM, _whole_lines(whole // threads), nearer if is_told else UNTOLD))


def _whole_lines(count: int) -> int:
    """The next smaller number of bytes that is a whole number of pages of 4 KiB, at least one."""
    return max(count // 4096, 1) * 4096


def _listed(text: str) -> list[int]:
    """``0-2,5`` is 0, 1, 2, 5."""
    parts = (part.partition("-") for part in text.split(",") if part)
    return [core for first, _, last in parts for core in range(int(first), int(last or first) + 1)]
