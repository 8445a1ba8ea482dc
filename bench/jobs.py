"""What a run will do: one job per case and direction, with the implementations that take part."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from bench.pool import foreign_device
from bench.results import Row
from bench.suites import Suite
from impls import DIRECTIONS, OPS, Case, SpecError, Unavailable, get, names, rivals
from impls.registry import AUTO, is_foreign
from impls.specs import directions_of

NONE = "none"


@dataclass(frozen=True)
class Job:
    """One case in one direction, for these implementations."""

    case: Case
    direction: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """What to take from a suite; an empty tuple takes everything."""

    ops: tuple[str, ...] = ()
    implementations: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    competitors: tuple[str, ...] = ()
    """``("none",)`` takes no competitor; nothing named takes those on the devices of ours, with which ours compare."""

    def __post_init__(self) -> None:
        """Raises SpecError for a name that does not exist, listing those that do."""
        ops = self.ops or OPS
        _require_known("operation", self.ops, OPS)
        _require_known("direction", self.directions, DIRECTIONS)
        _require_known("implementation", self.implementations, (*_union(names(op) for op in ops), AUTO))
        _require_known("competitor", self.competitors, (*_union(rivals(op) for op in ops), NONE))

    def names(self, op: str) -> tuple[str, ...]:
        """The implementations and competitors of an operation that take part, ours first.

        Nobody takes part where none of the implementations that were named exists; "auto" only where it was named.
        """
        ours = [n for n in (*names(op), AUTO) if n in (self.implementations or names(op))]
        devices = {_device(op, name) for name in ours}
        theirs = [n for n in rivals(op) if (n in self.competitors if self.competitors else _device(op, n) in devices)]
        return (*ours, *theirs) if ours else ()


def jobs(suite: Suite, selection: Selection) -> tuple[Job, ...]:
    """Every case and direction of a suite that is selected. Raises SpecError if nothing is left."""
    found = tuple(
        Job(case, direction, selection.names(case.op))
        for case in suite.cases
        if case.op in (selection.ops or OPS)
        for direction in directions_of(case.op)
        if direction in (selection.directions or DIRECTIONS)
        if selection.names(case.op)
    )
    if not found:
        raise SpecError(f"nothing of suite {suite.name} is left by --op, --impl, --direction and --competitor")
    return found


def missing(wanted: Sequence[Job], finished: Collection[tuple[str, str, str, str]]) -> tuple[Job, ...]:
    """The jobs that have no row; ``finished`` has (op, spec, direction, implementation) of every row there is.

    Raises SpecError for a job of which only others have rows: samples of different sessions would be taken for those of
    the same rounds, in which alone speed-ups are formed.
    """
    by_problem: dict[tuple[str, str, str], list[str]] = {}
    for op, spec, direction, name in finished:
        by_problem.setdefault((op, spec, direction), []).append(name)
    todo = []
    for job in wanted:
        there = by_problem.get((job.case.op, str(job.case.spec), job.direction), [])
        if there and not set(job.names) <= set(there):
            raise SpecError(
                f"{job.case} {job.direction} was measured with {', '.join(sorted(there))}, and others cannot join "
                f"afterwards: {', '.join(name for name in job.names if name not in there)}; give the same --impl and "
                "--competitor, or start a new run without --resume"
            )
        if not there:
            todo.append(job)
    return tuple(todo)


def in_suite(row: Row, suite: Suite) -> Row:
    """The row with the name of its suite."""
    return replace(row, suite=suite.name)


def _device(op: str, name: str) -> str:
    """The name of an implementation's device; empty where even its record is not to be had.

    Another package is imported in a process of its own, for whatever that may do.
    """
    try:
        return foreign_device(op, name) if is_foreign(op, name) else get(op, name).device.name
    except Unavailable:
        return ""


def _union(groups: Iterable[Collection[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))


def _require_known(kind: str, given: Collection[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise SpecError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
