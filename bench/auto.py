"""The table that "auto" chooses by: built from what was measured, and judged by what its choices cost.

The regret of a choice is the time of what was chosen over the time of the fastest. A table has none for the problems
that it holds, so it is judged by leaving each problem out: what would it have chosen, had it never seen this one?

A time is the least of a measurement's rounds: what other programs do to a round only ever adds to it, and a table that
was made on a busy machine must not remember that.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bench.results import TIMED, Row, Run
from bench.statistics import geometric_mean
from bench.store import Store, StoreError
from impls.auto import ONE_POOL, Entry, Table, entries
from impls.devices import CPU
from impls.specs import FORWARD

Rule: TypeAlias = Callable[[Entry], str | None]
"""Names an implementation for the problem of an entry, None where it has none to name."""

Measured: TypeAlias = tuple[str, str, str, str, float]
"""(op, direction, spec, implementation, seconds per call)."""


@dataclass(frozen=True, slots=True)
class Regret:
    """What a rule costs over the problems of one operation and direction; ``worst`` is the dearest of them."""

    rule: str
    op: str
    direction: str
    problems: int
    mean: float
    """Geometric mean of the times of what was chosen over those of the fastest."""
    worst: float
    worst_case: str


def from_store(store: Store, machine: str, commit: str) -> Table:
    """The table of everything of ours that was timed on a machine with one commit, later runs before earlier ones.

    Raises StoreError if there is nothing.
    """
    runs = [run for run in store.runs() if (run.machine.get("id"), run.machine.get("commit")) == (machine, commit)]
    times = [time for run in runs for _, row in store.rows(run.id) for time in _of_row(row)]
    if not times:
        raise StoreError(
            f"{store.address} holds no times of machine {machine} with commit {commit or '(none)'}; make some with: "
            "layerbench run --suite networks --competitor none"
        )
    return Table(entries(times), _origin(runs[-1]))


def from_results(paths: Iterable[Path]) -> Table:
    """The table of kept measurements: files measurements.csv or measurements.csv.gz as ``report --output`` writes.

    Raises StoreError for a file that cannot be read as one.
    """
    times: list[Measured] = []
    for path in paths:
        try:
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
            times += [time for record in csv.DictReader(io.StringIO(text)) for time in _of_record(record)]
        except (OSError, UnicodeDecodeError, KeyError, ValueError) as error:
            raise StoreError(f"{path} cannot be read as measurements: {error}") from error
    return Table(entries(times), "measured: " + ", ".join(dict.fromkeys(path.parent.as_posix() for path in paths)))


def regrets(table: Table) -> tuple[Regret, ...]:
    """What each rule costs on a table's problems, the cheapest first within an operation and direction.

    The rules: the table itself with the problem left out, among all and within a network's thread pool; the fastest of
    that pool; the published rules; and always the same implementation, for each that can compute every problem.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in table.entries:
        groups.setdefault((entry.case.op, entry.direction), []).append(entry)
    found: list[Regret] = []
    for group in groups.values():
        always = set.intersection(*(set(entry.seconds) for entry in group))
        rules: dict[str, Rule] = {
            "table, problem left out": _left_out(table, ""),
            f"table, problem left out, {ONE_POOL} only": _left_out(table, ONE_POOL),
            f"the fastest, {ONE_POOL} only": _best(ONE_POOL),
            "the published rules": published_choice,
            **{f"always {name}": _always(name) for name in sorted(always)},
        }
        judged = (regret(name, rule, group) for name, rule in rules.items())
        found += sorted((one for one in judged if one is not None), key=lambda one: one.mean)
    return tuple(found)


def regret(name: str, rule: Rule, group: Iterable[Entry]) -> Regret | None:
    """What a rule costs where it names an implementation that was timed; None where it never does."""
    ratios = [
        (entry.seconds[chosen] / min(entry.seconds.values()), entry)
        for entry in group
        if (chosen := rule(entry)) is not None and chosen in entry.seconds
    ]
    if not ratios:
        return None
    worst, dearest = max(ratios, key=lambda ratio: ratio[0])
    mean = geometric_mean([ratio for ratio, _ in ratios]).median
    return Regret(name, dearest.case.op, dearest.direction, len(ratios), mean, worst, str(dearest.case.spec))


def published_choice(entry: Entry) -> str | None:
    """What the program published with the paper (P. Klęsk, Appl. Sci. 2024, 14(21), 9972) takes without a GPU.

    Two of its names are this project's too; pooling is numba's there, dense layers are NumPy's products.
    """
    if entry.case.op == "conv2d":
        return "cv2" if entry.direction == FORWARD else "numba_jit_gemm"
    return {"maxpool2d": "numba_jit", "dense": "numpy"}.get(entry.case.op)


def _left_out(table: Table, pool: str) -> Rule:
    """The table's choice among what was timed for a problem, from the other problems alone."""
    return lambda entry: table.choose(entry.case, entry.direction, _in_pool(entry, pool), left_out=True)


def _best(pool: str) -> Rule:
    """The fastest whose name begins so."""
    return lambda entry: min(filter(_in_pool(entry, pool), entry.seconds), key=entry.seconds.__getitem__, default=None)


def _always(name: str) -> Rule:
    return lambda entry: name


def _in_pool(entry: Entry, pool: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(pool) and name in entry.seconds


def _of_row(row: Row) -> Iterator[Measured]:
    """A row as a time, where it is one of ours in the computer's memory."""
    if row.status in TIMED and not row.competitor and row.device == str(CPU) and row.min_s is not None:
        yield row.op, row.direction, row.spec, row.implementation, row.min_s


def _of_record(record: Mapping[str, str]) -> Iterator[Measured]:
    """As ``_of_row``, for a line of a CSV file."""
    ours = record["competitor"] == "False" and record["device"] == str(CPU)
    if record["status"] in TIMED and ours and record["min_s"]:
        problem = record["op"], record["direction"], record["spec"]
        yield *problem, record["implementation"], float(record["min_s"])


def _origin(run: Run) -> str:
    """What a run was measured on, in one line."""
    machine: Mapping[str, Any] = run.machine
    parts = (machine.get("id"), machine.get("cpu"), f"{run.threads} threads", f"commit {machine.get('commit')}")
    return "measured: " + ", ".join(str(part) for part in parts if part)
