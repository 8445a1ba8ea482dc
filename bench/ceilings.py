"""What a machine can do at most, as it was measured; how near to it a row comes, and whether it lies beyond.

A call that does F operations takes at least F / P seconds, P the highest rate of multiply-adds that was measured. One
that has to move B bytes takes at least (B - C) / R seconds for every level of memory, R the highest rate at which that
level was read, written or copied, and C what the levels before it hold: no more than C can come from there. The longest
of these times is the row's bound, and bound / median its fraction of the ceiling.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from bench import statistics
from bench.precision import SUMS
from bench.results import TIMED, Interval, Row
from impls import Case, parse_case
from impls.contract import EVERY_PRODUCT, FLOAT32, FLOAT64

CPU = "cpu"
CUDA = "cuda"

GBYTES = "GB/s"
GFLOPS = "GFLOP/s"
MHZ = "MHz"
RATES = (GBYTES, GFLOPS, MHZ)
"""Of these units more is better; all others are of time."""

READ, WRITE, COPY = "read", "write", "copy"
"""Ways to go through a memory."""

WITH_PRODUCTS = ("conv2d", "dense")
"""Operations of products; how many operations pooling takes depends on how windows share them."""
IN_FULL = (FLOAT32, FLOAT64)
"""Arithmetics whose multiply-adds are no faster than those that were measured."""

IMPOSSIBLE = "IMPOSSIBLE"
MARGIN = 0.05
"""A row is impossible where all of its interval is shorter than its bound by this share: as wide as an interval may be
to each side without being noisy, so that neither the row's nor the ceiling's noise makes one so."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A figure of the machine: every sample, one from each round, in its unit."""

    name: str
    unit: str
    samples: tuple[float, ...]
    device: str = CPU
    threads: int | None = None
    """How many worked; None on a device."""
    level: str = ""
    """The level of memory whose rate this is; empty for what is no limit of memory."""
    beyond: int = 0
    """Bytes that the levels before this one hold."""
    touched: int | None = None
    """Bytes that were gone through, all threads together."""
    way: str = ""
    """How a device went through a level: READ, WRITE or COPY, which does both and counts both."""
    arithmetic: str = FLOAT32
    """Of a rate of operations."""

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.unit in RATES

    @property
    def value(self) -> float:
        """The best sample: what the machine has been seen to do."""
        return max(self.samples) if self.is_rate else min(self.samples)

    @property
    def interval(self) -> Interval:
        """The median of the samples: what it does as a rule."""
        return statistics.median_interval(self.samples)

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What makes it the same figure in another measurement of the same machine."""
        return self.device, self.name, self.threads

    def record(self) -> dict[str, Any]:
        """As plain values, the best one among them."""
        return {**asdict(self), "samples": list(self.samples), "value": self.value}


def ceiling_of(record: Mapping[str, Any]) -> Ceiling:
    """The ceiling of a record; what an older one lacks has its default."""
    values = {field.name: record[field.name] for field in fields(Ceiling) if field.name in record}
    return Ceiling(**values | {"samples": tuple(values["samples"])})


def merged(first: Iterable[Ceiling], second: Iterable[Ceiling]) -> tuple[Ceiling, ...]:
    """Both measurements of the same machine: the samples of a figure that is in both are joined."""
    found: dict[tuple[str, str, int | None], Ceiling] = {}
    for each in (*first, *second):
        known = found.get(each.key)
        found[each.key] = replace(each, samples=known.samples + each.samples) if known else each
    return tuple(found.values())


# --- what binds a row ---


@dataclass(frozen=True, slots=True)
class Bound:
    """The least seconds of a call, and the ceiling that says so."""

    seconds: float
    ceiling: Ceiling

    def __str__(self) -> str:
        """``read, L2: 190 GB/s``."""
        return f"{self.ceiling.name}: {self.ceiling.value:.4g} {self.ceiling.unit}"


def in_force(ceilings: Iterable[Ceiling], device: str, threads: int) -> tuple[Ceiling, ...]:
    """Those that hold for this device, or for so many threads of the processor."""
    return tuple(c for c in ceilings if c.device == device and c.threads == (threads if device == CPU else None))


def fastest_by_level(ceilings: Iterable[Ceiling]) -> dict[str, Ceiling]:
    """The rate of each level of memory, whichever way it was gone through: one that reads alone may be the fastest."""
    best: dict[str, Ceiling] = {}
    for each in ceilings:
        if each.level:
            best[each.level] = max(best.get(each.level, each), each, key=lambda c: c.value)
    return best


def fastest_compute(ceilings: Iterable[Ceiling], arithmetic: str = FLOAT32) -> Ceiling | None:
    """The highest rate of operations in this arithmetic, or in float32 where its own was not measured; or None."""
    rates = [c for c in ceilings if c.unit == GFLOPS]
    own = [c for c in rates if c.arithmetic == arithmetic] or [c for c in rates if c.arithmetic == FLOAT32]
    return max(own, key=lambda c: c.value, default=None)


def in_words(ceilings: Sequence[Ceiling]) -> str:
    """``255 GFLOP/s (float32 multiply-add, 512 bits); L1 514, L2 251, DRAM 42.4 GB/s``; empty without any."""
    compute, memory = fastest_compute(ceilings), fastest_by_level(ceilings)
    rates = ", ".join(f"{level} {c.value:.3g}" for level, c in memory.items())
    parts = (f"{compute.value:.3g} {GFLOPS} ({compute.name})" if compute else "", f"{rates} {GBYTES}" if rates else "")
    return "; ".join(filter(None, parts))


def bound_by_bytes(case: Case, direction: str, ceilings: Iterable[Ceiling], *, cold: bool = False) -> Bound | None:
    """By moving every array once; ``cold``: no level holds a part of them. None without a rate of memory."""
    count = case.least_traffic(direction)
    return longer(
        *(
            Bound(max(count - (0 if cold else c.beyond), 0) / c.value / 1e9, c)
            for c in fastest_by_level(ceilings).values()
        )
    )


def bound_one_way(case: Case, direction: str, ceilings: Iterable[Ceiling]) -> Bound | None:
    """By moving the inputs at the rate of reading alone, or the outputs at that of writing alone. None without either.

    Weaker than ``bound_by_bytes``, and never wrong where a memory reads and writes at the same time. A level counts
    that has caches before it: through them all bytes of a call go, but at which rate at most no kernel of ours proves.
    """
    counts = {READ: case.least_reads(direction), WRITE: case.least_writes(direction)}
    limits = (c for c in ceilings if c.way in counts and c.beyond)
    return longer(*(Bound(max(counts[c.way] - c.beyond, 0) / c.value / 1e9, c) for c in limits))


def bound_by_flops(case: Case, ceilings: Iterable[Ceiling], arithmetic: str = FLOAT32) -> Bound | None:
    """By doing every operation. None without a rate of operations."""
    best = fastest_compute(ceilings, arithmetic)
    return Bound(case.spec.flops / best.value / 1e9, best) if best else None


def longer(*bounds: Bound | None) -> Bound | None:
    """The bound that binds; None where there is none."""
    return max((b for b in bounds if b is not None), key=lambda b: b.seconds, default=None)


def binding(case: Case, direction: str, limits: Iterable[Ceiling], arithmetic: str = FLOAT32) -> Bound | None:
    """What binds a problem among these ceilings, by bytes or by operations; None where nothing was measured."""
    limits = tuple(limits)
    return longer(bound_by_bytes(case, direction, limits), bound_by_flops(case, limits, arithmetic))


def judged(row: Row, ceilings: Sequence[Ceiling], threads: int) -> Row:
    """A timed row with its fraction of the ceiling that binds it; IMPOSSIBLE beyond one that it must obey.

    ``ceilings``: of the same run; ``threads``: what the run gave the row. Without ceilings of its device it stays as it
    is. An algorithm with fewer operations is not held to a rate of operations, nor is a device that computes on tensor
    cores, of which a product's rate proves no limit, nor a competitor, whose library chooses what runs: their fraction
    is an effective one, and may exceed 1. A device is held to its memory one way: it reads and writes at the same time,
    at no rate that copies tell. What is impossible has no speed-ups: they would go into means.
    """
    limits = in_force(ceilings, row.device, threads)
    if row.status not in TIMED or row.median_s is None or row.high_s is None:
        return row
    case = parse_case(f"{row.op}:{row.spec}")
    bound = binding(case, row.direction, limits, row.arithmetic)
    if bound is None:
        return row
    by_bytes = bound_by_bytes if row.device == CPU else bound_one_way
    shortest = (1 + MARGIN) * row.high_s
    row = replace(row, fraction=bound.seconds / row.median_s, binding=str(bound))
    must_obey = longer(
        bound_by_flops(case, limits) if _computes_all(row) else None,
        by_bytes(case, row.direction, limits),
    )
    if must_obey is None or must_obey.seconds <= shortest:
        return row
    reason = f"{row.median_s:.3g} s a call, at least {must_obey.seconds:.3g} s by what was measured of {must_obey}"
    return replace(row, status=IMPOSSIBLE, reason=reason, speedups={})


def _computes_all(row: Row) -> bool:
    """Whether it is known to do every operation of the definition, in an arithmetic whose rate was measured."""
    is_declared = row.op in WITH_PRODUCTS and row.algorithm in EVERY_PRODUCT and row.arithmetic in IN_FULL
    return is_declared and not row.competitor and row.ran_algorithm in ("", SUMS)


class Limits:
    """The ceilings of a run. A row that lies beyond them has them measured again before it is called impossible.

    The speed of a shared machine changes: what was measured before a run need not hold in its middle.
    """

    def __init__(self, ceilings: Sequence[Ceiling], threads: int, again: Callable[[], Sequence[Ceiling]]) -> None:
        """``again`` measures them again, at once."""
        self.ceilings = tuple(ceilings)
        self._threads = threads
        self._again = again

    def judge(self, rows: Iterable[Row]) -> list[Row]:
        """The rows of a case, each with its fraction."""
        rows = list(rows)
        found = [judged(row, self.ceilings, self._threads) for row in rows]
        if not any(row.status == IMPOSSIBLE for row in found):
            return found
        self.ceilings = merged(self.ceilings, self._again())
        found = [judged(row, self.ceilings, self._threads) for row in rows]
        impossible = {row.implementation for row in found if row.status == IMPOSSIBLE}
        return [_without_rivals(row, impossible) for row in found]


def _without_rivals(row: Row, names: Collection[str]) -> Row:
    """The row without its speed-ups over these: what was not computed is no measure of others."""
    return replace(row, speedups={name: ratio for name, ratio in row.speedups.items() if name not in names})


# --- a profile in a file ---


IN_RUN = "ceilings"
"""Where a run's machine holds what its rows are held against, as records."""
FORMAT = "layerbench profile 1"


class ProfileError(RuntimeError):
    """A file is no profile; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """All ceilings of a machine. ``machine`` is bench.machine.describe(); ``missing``: what is not there, and why."""

    machine: Mapping[str, Any]
    threads: int
    started: str
    """ISO 8601, UTC."""
    ceilings: tuple[Ceiling, ...]
    missing: Mapping[str, str]


def is_profile(document: Any) -> bool:
    """Whether a document of JSON is a profile."""
    return isinstance(document, dict) and document.get("format") == FORMAT


def write_profile(path: Path, profile: MachineProfile) -> None:
    """One document of JSON, samples included."""
    values = {**asdict(profile), "ceilings": [ceiling.record() for ceiling in profile.ceilings]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": FORMAT, **values}, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_profile(path: Path) -> MachineProfile:
    """The profile in a file. Raises ProfileError where there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not is_profile(document):
            raise ValueError(f'its "format" is not {FORMAT!r}')
        values = {field.name: document[field.name] for field in fields(MachineProfile)}
        ceilings = tuple(map(ceiling_of, values["ceilings"]))
        if not all(c.samples and all(map(math.isfinite, c.samples)) for c in ceilings):
            raise ValueError("a figure has no samples")
        return MachineProfile(**values | {"ceilings": ceilings})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProfileError(f"{path} is no profile ({error}); make one with: layerbench profile --json FILE") from error
