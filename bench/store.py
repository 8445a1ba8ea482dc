"""The store of rows: SQLite by default, any SQLAlchemy address on request.

A measurement is finished when its row is committed. All rows of a case and direction are one transaction: their
speed-ups were formed in the same rounds, and they are there together or not at all. A row is there once. What a run has
in common (machine, versions, threads, commit, seed, options) is stored once, in its run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.results import TRAINING, Interval, Row, Run, Training, thread_counts

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
    sa.Column("options", sa.JSON),
)

_LENGTHS = {"op": 32, "spec": 255, "direction": 32, "implementation": 128, "state": 32}
"""Characters of what a row of a run is known by: MySQL and SQL Server take no text of any length into an index."""

_KINDS: Mapping[str, type[sa.types.TypeEngine[Any]]] = {
    "str": sa.Text,
    "int": sa.BigInteger,
    "bool": sa.Boolean,
    "bool | None": sa.Boolean,
    "float | None": sa.Float,
    "int | None": sa.BigInteger,
}


def _kind(field: Field[Any], lengths: Mapping[str, int]) -> type[sa.types.TypeEngine[Any]] | sa.types.TypeEngine[Any]:
    """The type of a field's column."""
    return sa.String(lengths[field.name]) if field.name in lengths else _KINDS.get(str(field.type), sa.JSON)


def _table(
    name: str, record: type[Any], *constraints: sa.UniqueConstraint, lengths: Mapping[str, int] | None = None
) -> sa.Table:
    """A table with a column for each field of a record; what is not one value is JSON.

    ``lengths``: the most characters of texts that are in a constraint.
    """
    return sa.Table(
        name,
        _METADATA,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.ForeignKey("runs.id"), nullable=False, index=True),
        *(sa.Column(f.name, _kind(f, lengths or {}), nullable="None" in str(f.type)) for f in fields(record)),
        *constraints,
    )


ONCE = tuple(_LENGTHS)
"""What a row of a run is known by. Stores that were made before this was enforced are not changed."""

_ROWS = _table("measurements", Row, sa.UniqueConstraint("run_id", *ONCE), lengths=_LENGTHS)
_TRAININGS = _table("trainings", Training)


CHOOSE = "choose another with --db"
_GO_ON = "go on with the same command and --resume: all that was finished is kept"
REMEDIES = {
    "is full": f"make room on its disk, then {_GO_ON}",
    "disk i/o": f"see whether its disk is full or failing, then {_GO_ON}",
    "is locked": f"another program holds it: wait for its end, then {_GO_ON}",
    "readonly": f"make it and its folder writable, then {_GO_ON}; or {CHOOSE}",
    "unique": "a row is there already: another program goes on with the same run; let one of them end",
    "malformed": f"docs/faults.md says how to save its rows; {CHOOSE}",
}
"""What to do, by words of the database's own message in small letters."""


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
            self._require_sound()
            _METADATA.create_all(self._engine)
            self._add_columns()
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            raise self._problem("opened", error) from error

    def start(self, run: Run) -> Run:
        """Store a run and return it with its id."""
        values = {name: value for name, value in asdict(run).items() if name != "id"}
        result = self._write(_RUNS.insert().values(**values))
        return Run(**values, id=int(result))

    def set_machine(self, run: Run) -> None:
        """Store what is known by now of the machine of a run that has begun. Raises StoreError."""
        self._write(_RUNS.update().where(_RUNS.c.id == run.id).values(machine=dict(run.machine)))

    def add(self, run: Run, *rows: Row) -> None:
        """Append these rows in one transaction. Raises StoreError, also where one of them is there already."""
        if rows:
            values = [asdict(row) | {"run_id": run.id, "samples_s": list(row.samples_s)} for row in rows]
            self._write(_ROWS.insert().values(values))

    def add_trainings(self, run: Run, rows: Iterable[Training]) -> None:
        """Append all contestants' rows of a repetition in one transaction: it is finished, or it is not there."""
        self._write(_TRAININGS.insert().values([asdict(row) | {"run_id": run.id} for row in rows]))

    def runs(self) -> tuple[Run, ...]:
        """Every run, oldest first."""
        records = self._read(sa.select(_RUNS).order_by(_RUNS.c.id))
        return tuple(Run(**record | {"options": record["options"] or {}}) for record in records)

    def run(self, run_id: int | None = None, training: bool = False) -> Run:
        """One run of measurements, or of training; the latest without a number. Raises StoreError if there is none."""
        runs = (run for run in self.runs() if (run.suite == TRAINING) == training)
        found = [run for run in runs if run_id in (None, run.id)]
        if not found:
            which = "no run" if run_id is None else f"no run {run_id}"
            command = "train" if training else "run"
            raise StoreError(f"{self.address} holds {which} of this kind; make one with: layerbench {command}")
        return found[-1]

    def rows(self, run_id: int | None = None) -> tuple[tuple[int, Row], ...]:
        """(run id, row) of one run, or of all, in the order in which they were finished."""
        query = sa.select(_ROWS).order_by(_ROWS.c.id)
        if run_id is not None:
            query = query.where(_ROWS.c.run_id == run_id)
        return tuple((record["run_id"], _row(record)) for record in self._read(query))

    def trainings(self, run_id: int | None = None) -> tuple[Training, ...]:
        """What was trained in one run, or in all, in the order in which it was finished.

        Of a repetition that was done again, as when a contestant was added, only the latest is given.
        """
        query = sa.select(_TRAININGS).order_by(_TRAININGS.c.id)
        if run_id is not None:
            query = query.where(_TRAININGS.c.run_id == run_id)
        rows = [(record["run_id"], _training(record)) for record in self._read(query)]
        latest = {(run, r.experiment, r.structure, r.plan, r.repetition, r.contestant): r for run, r in rows}
        return tuple(latest.values())

    def close(self) -> None:
        """Give back the file."""
        self._engine.dispose()

    def _add_columns(self) -> None:
        """Give a store that was made before a field existed a column for it; its rows hold nothing there."""
        for table in (_RUNS, _ROWS, _TRAININGS):
            known = {column["name"] for column in sa.inspect(self._engine).get_columns(table.name)}
            with self._engine.begin() as connection:
                for column in table.columns:
                    if column.name not in known:
                        kind = column.type.compile(self._engine.dialect)
                        connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))

    def _write(self, statement: sa.Insert | sa.Update) -> int:
        """The key of the row that it inserted; 0 where there is no one key."""
        try:
            with self._engine.begin() as connection:
                done = connection.execute(statement)
        except sa.exc.SQLAlchemyError as error:
            raise self._problem("written", error) from error
        key = done.inserted_primary_key if statement.is_insert else None
        return int(key[0]) if key and key[0] else 0

    def _read(self, statement: sa.Select[Any]) -> list[dict[str, Any]]:
        try:
            with self._engine.connect() as connection:
                return [dict(record) for record in connection.execute(statement).mappings()]
        except sa.exc.SQLAlchemyError as error:
            raise self._problem("read", error) from error

    def _require_sound(self) -> None:
        """Raises DatabaseError for an SQLite file with damaged pages, before anything more is written into it."""
        if self._engine.dialect.name == "sqlite":
            with self._engine.connect() as connection:
                found = connection.execute(sa.text("PRAGMA quick_check(1)")).scalar()
            if found != "ok":
                raise sa.exc.DatabaseError(None, None, Exception(f"it is malformed: {found}".replace("\n", " ")))

    def _problem(self, verb: str, error: Exception) -> StoreError:
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        remedy = next((text for words, text in REMEDIES.items() if words in cause.lower()), CHOOSE)
        return StoreError(f"the store {self.address} cannot be {verb}: {cause}; {remedy}")


def _url(address: str) -> str:
    return address if "://" in address else f"sqlite:///{address}"


def _row(record: Mapping[str, Any]) -> Row:
    values = {f.name: record[f.name] for f in fields(Row) if record[f.name] is not None}
    for name in ("samples_s", "aside_s"):
        values[name] = tuple(values.get(name, ()))
    values["figures"] = {name: tuple(samples) for name, samples in values.get("figures", {}).items()}
    values["threads"] = thread_counts(values.get("threads", {}))
    values["speedups"] = {name: Interval(**interval) for name, interval in values["speedups"].items()}
    return Row(**values)


def _training(record: Mapping[str, Any]) -> Training:
    found = {f.name: record[f.name] for f in fields(Training) if record[f.name] is not None}
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
    return Training(**values)
