"""The store of rows: SQLite by default, any SQLAlchemy address on request.

A measurement is finished when its row is committed; every row is one transaction. What a run has in common (machine,
versions, threads, commit, seed) is stored once, in its run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.results import Interval, Row, Run

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

_JSON_FIELDS = ("samples_s", "figures", "speedups", "threads", "gpu")
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
            self._add_columns()
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

    def _add_columns(self) -> None:
        """Give a store that was made before a field existed a column for it; its rows hold nothing there."""
        known = {column["name"] for column in sa.inspect(self._engine).get_columns(_ROWS.name)}
        with self._engine.begin() as connection:
            for column in _ROWS.columns:
                if column.name not in known:
                    kind = column.type.compile(self._engine.dialect)
                    connection.execute(sa.text(f"ALTER TABLE {_ROWS.name} ADD COLUMN {column.name} {kind}"))

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
    values = {f.name: record[f.name] for f in fields(Row) if record[f.name] is not None}
    values["samples_s"] = tuple(values["samples_s"])
    values["figures"] = {name: tuple(samples) for name, samples in values.get("figures", {}).items()}
    values["speedups"] = {name: Interval(**interval) for name, interval in values["speedups"].items()}
    return Row(**values)
