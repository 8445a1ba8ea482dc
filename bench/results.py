"""The measured row, and the store that keeps it: SQLite by default, any SQLAlchemy address on request.

A measurement is finished when its row is committed; every row is one transaction. What a run has in common (machine,
versions, threads, commit, seed) is stored once, in its run.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import sqlalchemy as sa

STATUSES = (
    "UNAVAILABLE",
    "UNSUPPORTED",
    "CRASHED",
    "TIMEOUT",
    "OUT_OF_MEMORY",
    "ERROR",
    "SIDE_EFFECT",
    "WRONG",
    "OVER_BUDGET",
    "NOISY",
    "OK",
)
"""The first that applies is a row's status. OK and NOISY rows carry times; NOISY means a wide interval."""

TIMED = ("OK", "NOISY")


class Failure(RuntimeError):
    """No result: one of STATUSES, and the reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with its 95 % bootstrap interval, in the unit of what it summarises."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One implementation, one case, one direction. Times are seconds per call; None where not measured."""

    op: str
    direction: str
    spec: str
    implementation: str
    device: str
    competitor: bool
    algorithm: str
    arithmetic: str
    status: str
    reason: str = ""
    suite: str = ""
    state: str = "hot"
    """State of the caches while timing: ``hot`` is several input sets in rotation, nothing flushed."""
    setup_s: float | None = None
    """Making the plan and binding its first call: compilation or loading from the cache, tile choice, scratch."""
    first_call_s: float | None = None
    samples_s: tuple[float, ...] = ()
    """One sample per round: the mean of ``loops`` calls."""
    loops: int | None = None
    threads: Mapping[str, int] = field(default_factory=dict)
    """Size of every thread pool in the worker, read back after it was set."""
    median_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    min_s: float | None = None
    stop: str = ""
    """Why timing ended: precision (the interval is narrow enough), budget, or rounds (the cap on rounds)."""
    gflops: float | None = None
    """Useful floating-point operations per second, in 10^9: taps on padding do not count."""
    gbytes_per_s: float | None = None
    """The least traffic of the call over its median time, in 10^9 bytes per second."""
    workspace_bytes: int | None = None
    peak_bytes: int | None = None
    """Largest resident memory of the worker process so far."""
    error_bounds: float | None = None
    """Largest error on designed inputs, in units of its derived bound: above 1 is wrong."""
    dense_error: float | None = None
    """Largest error on dense random inputs in units of sqrt(terms) * roundoff * rms scale: reported, not judged."""
    repeatable: bool | None = None
    """Whether timed outputs were the same bits every time."""
    speedups: Mapping[str, Interval] = field(default_factory=dict)
    """Per competitor: its time over ours, formed round by round; above 1 ours is faster."""


@dataclass(frozen=True, slots=True)
class Run:
    """What all rows of one run have in common. ``machine`` is bench.machine.describe()."""

    command: str
    suite: str
    seed: int
    threads: int
    started: str
    """ISO 8601, UTC."""
    machine: Mapping[str, Any]
    id: int | None = None


_METADATA = sa.MetaData()

_RUNS = sa.Table(
    "runs",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("command", sa.Text, nullable=False),
    sa.Column("suite", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("threads", sa.Integer, nullable=False),
    sa.Column("started", sa.Text, nullable=False),
    sa.Column("machine", sa.JSON, nullable=False),
)

_JSON_FIELDS = ("samples_s", "speedups", "threads")
_KINDS: Mapping[str, type[sa.types.TypeEngine[Any]]] = {
    "str": sa.Text,
    "bool": sa.Boolean,
    "bool | None": sa.Boolean,
    "float | None": sa.Float,
    "int | None": sa.BigInteger,
}

_ROWS = sa.Table(
    "measurements",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.ForeignKey("runs.id"), nullable=False, index=True),
    *(
        sa.Column(f.name, sa.JSON if f.name in _JSON_FIELDS else _KINDS[str(f.type)], nullable="None" in str(f.type))
        for f in fields(Row)
    ),
)


class StoreError(RuntimeError):
    """The store cannot be opened, read or written; the message names it and the remedy."""


class Store:
    """Runs and their rows. ``address``: a path of an SQLite file, or any SQLAlchemy URL."""

    def __init__(self, address: str | Path, must_exist: bool = False) -> None:
        """Open, and create what is missing unless it must exist. Raises StoreError."""
        self.address = str(address)
        if must_exist and "://" not in self.address and not Path(self.address).is_file():
            raise StoreError(f"there is no store {self.address}; make one with: layerbench run, or choose with --db")
        try:
            self._engine = sa.create_engine(_url(self.address))
            _METADATA.create_all(self._engine)
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            raise self._problem("opened", error) from error

    def start(self, run: Run) -> Run:
        """Store a run and return it with its id."""
        values = {name: value for name, value in asdict(run).items() if name != "id"}
        result = self._write(_RUNS.insert().values(**values))
        return Run(**values, id=int(result))

    def add(self, run: Run, row: Row) -> None:
        """Append one row in a transaction of its own."""
        values = asdict(row) | {"run_id": run.id, "samples_s": list(row.samples_s)}
        self._write(_ROWS.insert().values(**values))

    def runs(self) -> tuple[Run, ...]:
        """Every run, oldest first."""
        return tuple(Run(**record) for record in self._read(sa.select(_RUNS).order_by(_RUNS.c.id)))

    def run(self, run_id: int | None = None) -> Run:
        """One run, the latest without a number. Raises StoreError if there is none."""
        found = [run for run in self.runs() if run_id in (None, run.id)]
        if not found:
            which = "no run" if run_id is None else f"no run {run_id}"
            raise StoreError(f"{self.address} holds {which}; make one with: layerbench run")
        return found[-1]

    def rows(self, run_id: int | None = None) -> tuple[tuple[int, Row], ...]:
        """(run id, row) of one run, or of all, in the order in which they were finished."""
        query = sa.select(_ROWS).order_by(_ROWS.c.id)
        if run_id is not None:
            query = query.where(_ROWS.c.run_id == run_id)
        return tuple((record["run_id"], _row(record)) for record in self._read(query))

    def close(self) -> None:
        """Give back the file."""
        self._engine.dispose()

    def _write(self, statement: sa.Insert) -> int:
        try:
            with self._engine.begin() as connection:
                key = connection.execute(statement).inserted_primary_key
        except sa.exc.SQLAlchemyError as error:
            raise self._problem("written", error) from error
        return int(key[0]) if key else 0

    def _read(self, statement: sa.Select[Any]) -> list[dict[str, Any]]:
        try:
            with self._engine.connect() as connection:
                return [dict(record) for record in connection.execute(statement).mappings()]
        except sa.exc.SQLAlchemyError as error:
            raise self._problem("read", error) from error

    def _problem(self, verb: str, error: Exception) -> StoreError:
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        return StoreError(f"the store {self.address} cannot be {verb}: {cause}; choose another with --db")


def _url(address: str) -> str:
    return address if "://" in address else f"sqlite:///{address}"


def _row(record: Mapping[str, Any]) -> Row:
    values = {f.name: record[f.name] for f in fields(Row)}
    values["samples_s"] = tuple(values["samples_s"])
    values["speedups"] = {name: Interval(**interval) for name, interval in values["speedups"].items()}
    return Row(**values)


def as_record(run: Run, row: Row) -> dict[str, Any]:
    """A row with its run's number, as plain values."""
    return {"run_id": run.id, **asdict(row), "samples_s": list(row.samples_s)}


def write_json(path: Path, run: Run, rows: Iterable[Row]) -> None:
    """One document: {"run": ..., "rows": [...]}, every field of every row. An infinite error is null: JSON has none."""
    document = {"run": asdict(run), "rows": [_finite(as_record(run, row)) for row in rows]}
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, run: Run, rows: Iterable[Row]) -> None:
    """One line per row; samples are joined by blanks, a competitor's ratio takes three columns."""
    records = [_flat(run, row) for row in rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }


def _flat(run: Run, row: Row) -> dict[str, Any]:
    record = as_record(run, row)
    record["samples_s"] = " ".join(f"{sample:.9g}" for sample in row.samples_s)
    record["threads"] = " ".join(f"{pool}={count}" for pool, count in row.threads.items())
    del record["speedups"]
    for name, interval in row.speedups.items():
        record |= {f"over_{name}_{part}": value for part, value in asdict(interval).items()}
    return record
