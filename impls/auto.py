"""What "auto" means: a table of measured times, and the implementation that was fastest for the nearest problem.

The nearest problem is the same one where it was measured, else the three together whose shapes differ least: by the
Euclidean distance of the logarithms of all sizes, so that twice the batch is as far as twice the filters.

``layerbench auto`` writes this machine's table into the user's cache directory, under the processor's name and a hash
of all sources of ``impls``: times of other code or of another machine are not taken for its own. Until then, and for
operations that it does not hold, the table that comes with the program counts; it was measured too (its first line
says where).
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import llvmlite.binding as llvm

from impls import registry
from impls.contract import Implementation, PackedWeights, Plan, Unavailable
from impls.devices import CPU
from impls.numba_setup import cache_home, sources_hash
from impls.specs import Case, PoolSpec, Spec, parse

AUTO = registry.AUTO

ONE_POOL = "numba_jit"
"""How the names begin of all that compute in numba's threads; a network takes nothing else.

Where BLAS and numba take turns within a step, each waits for the other's threads, which spin for a while after their
work: a small network's steps took 20 times as long with dense layers by NumPy. Over the problems of the published
networks the fastest of numba's own is the fastest of all but for the smallest dense layers (input gradient: 6 % slower
in the geometric mean), so there is nothing to be gained.
"""

NEIGHBOURS = 3
"""Problems that are asked where the very one was not measured. One alone passes its noise on: over the published grid
of convolutions, each left out in turn, one neighbour costs 2 % of the time, three cost 0.4 %, twelve 1 % again."""

DEFAULT = Path(__file__).with_name("auto_default.csv")
"""The table that comes with the program."""

_COLUMNS = ("op", "direction", "spec", "implementation", "seconds")


@dataclass(frozen=True, slots=True)
class Entry:
    """One problem in one direction, and the seconds per call of every implementation that was timed for it."""

    case: Case
    direction: str
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """Entries, and what they were measured on, in words."""

    entries: tuple[Entry, ...]
    origin: str = ""
    _places: dict[tuple[str, str], list[tuple[tuple[float, ...], Entry]]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        for entry in self.entries:
            place = _logarithms(entry.case.spec), entry
            self._places.setdefault((entry.case.op, entry.direction), []).append(place)

    def choose(
        self, case: Case, direction: str, able: Callable[[str], bool] = lambda name: True, *, left_out: bool = False
    ) -> str | None:
        """The one that is ``able`` and was fastest for a problem, or over its nearest neighbours; None without any.

        Where a neighbour was not timed with an implementation, that one is not taken. ``left_out``: as if this very
        problem had not been measured.
        """
        near: list[Mapping[str, float]] = []
        for entry in self._nearest(case, direction):
            same = entry.case == case
            seconds = {name: value for name, value in entry.seconds.items() if able(name)}
            if not seconds or (same and left_out):
                continue
            near.append(seconds)
            if same or len(near) == NEIGHBOURS:
                break
        return _fastest(near)

    def _nearest(self, case: Case, direction: str) -> list[Entry]:
        """The entries of an operation and direction, nearest first; the one of this very problem before all."""
        here = _logarithms(case.spec)
        found = self._places.get((case.op, direction), [])
        near = sorted(found, key=lambda place: (place[1].case != case, math.dist(here, place[0])))
        return [entry for _, entry in near]


def _fastest(near: list[Mapping[str, float]]) -> str | None:
    """The name with the least geometric mean of times, among those that all have in common."""
    common = set.intersection(*map(set, near)) if near else set()
    return min(sorted(common), key=lambda name: math.prod(seconds[name] for seconds in near), default=None)


def choose(case: Case, direction: str, pool: str = "") -> str:
    """The name of the implementation to compute a problem with, in the computer's memory.

    ``pool``: how the name must begin. An operation that no table holds is computed by the first that can, numba's own
    before others. Raises Unavailable where nothing at all can compute the problem.
    """
    able = cache(lambda name: name.startswith(pool) and _reason(case, direction, name) is None)
    for table in tables():
        chosen = table.choose(case, direction, able)
        if chosen is not None:
            return chosen
    for name in sorted(registry.names(case.op), key=lambda name: not name.startswith(ONE_POOL)):
        if able(name):
            return name
    raise Unavailable(f"nothing that is known computes {case} {direction}" + (f" by {pool}" if pool else ""))


@cache
def tables() -> tuple[Table, ...]:
    """This machine's table, if it was measured, and the one that comes with the program."""
    return tuple(read(path) for path in (measured_path(), DEFAULT) if path.is_file())


def measured_path() -> Path:
    """Where this machine's table for these sources is kept."""
    name = f"{llvm.get_host_cpu_name()}-{os.cpu_count()}cores-{sources_hash()}.csv"
    return cache_home() / "layerbench" / "auto" / name


def read(path: Path) -> Table:
    """A table from its file: a line that says what was measured on, then one line per time."""
    with path.open(encoding="utf-8", newline="") as file:
        origin = file.readline().removeprefix("#").strip()
        return Table(
            entries(
                (r["op"], r["direction"], r["spec"], r["implementation"], float(r["seconds"]))
                for r in csv.DictReader(file)
            ),
            origin,
        )


def write(table: Table, path: Path) -> None:
    """A table into its file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# {table.origin}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for entry in table.entries:
            for name, seconds in sorted(entry.seconds.items()):
                writer.writerow((entry.case.op, entry.direction, entry.case.spec, name, f"{seconds:.4g}"))


def entries(times: Iterable[tuple[str, str, str, str, float]]) -> tuple[Entry, ...]:
    """Entries from (op, direction, spec, implementation, seconds); a later time of the same replaces an earlier one."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for op, direction, spec, name, seconds in times:
        found.setdefault((op, direction, spec), {})[name] = seconds
    return tuple(
        Entry(Case(op, parse(op, spec)), direction, MappingProxyType(seconds))
        for (op, direction, spec), seconds in sorted(found.items())
    )


def implementation(op: str) -> Implementation:
    """The registry's entry "auto": a plan hands every direction to the one that is chosen for it."""
    plan_type = type(f"Auto_{op}", (AutoPlan,), {"op": op, "__doc__": AutoPlan.__doc__})

    def declared(what: str) -> Callable[[Any, str], str]:
        return lambda spec, direction: str(getattr(_chosen(op, spec, direction), what)(spec, direction))

    return Implementation(
        plan_type,
        algorithm=declared("algorithm_of"),
        arithmetic=declared("arithmetic_of"),
        why_not=lambda spec, direction: _why_not(op, spec, direction),
        note="the fastest measured for the nearest problem",
    )


class AutoPlan(Plan):
    """Plans of the chosen implementations, one for each direction, in one workspace."""

    op = ""

    @classmethod
    def scratch_bytes(cls, spec, directions):
        chosen = ((_chosen(cls.op, spec, direction), direction) for direction in directions)
        return max((record.plan_type.scratch_bytes(spec, (direction,)) for record, direction in chosen), default=0)

    def prepare(self):
        self._plans = {
            direction: _chosen(self.op, self.spec, direction).plan(self.spec, (direction,), self.workspace)
            for direction in self.directions
        }
        for direction, plan in self._plans.items():
            setattr(self, direction, getattr(plan, direction))

    def pack(self, w):
        """Packed weights to bind, of the plans that gain from them; the others take w itself.

        Raises NotImplementedError where none does.
        """
        packed = {}
        for direction, plan in self._plans.items():
            with suppress(NotImplementedError):
                packed[direction] = plan.pack(w)
        return PackedWeights({d: packed.get(d, w) for d in self.directions}) if packed else super().pack(w)

    def bind(self, direction, *arrays):
        """Fix the addresses, of packed weights those for this direction."""
        return super().bind(direction, *(a.of.get(direction) if isinstance(a, PackedWeights) else a for a in arrays))


def _chosen(op: str, spec: Spec, direction: str) -> Implementation:
    return registry.get(op, choose(Case(op, spec), direction))


def _why_not(op: str, spec: Spec, direction: str) -> str | None:
    try:
        choose(Case(op, spec), direction)
    except Unavailable as error:
        return str(error)
    return None


def _reason(case: Case, direction: str, name: str) -> str | None:
    """Why this implementation cannot compute a problem in the computer's memory, or None."""
    try:
        record = registry.get(case.op, name)
    except (KeyError, Unavailable) as error:
        return str(error)
    if record.device is not CPU or record.competitor:
        return f"{name} is not one of ours for {CPU}"
    return record.supports(case.spec, direction)


def _logarithms(spec: Spec) -> tuple[float, ...]:
    """The logarithms of all sizes: input, weights (the window, where there are none) and output."""
    middle = spec.pool if isinstance(spec, PoolSpec) else spec.w_shape
    return tuple(math.log(size) for size in (*spec.x_shape, *middle, *spec.y_shape))
