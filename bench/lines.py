"""Records as lines of JSON, flushed one by one: what was written stays, whatever ends the program.

A line holds one record under its kind: {"row": {...}}, {"run": {...}}, {"reading": {...}}. JSON has no infinity and no
NaN: they are written as null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bench.results import Interval, Row, Run, thread_counts


class Lines:
    """A file that grows by whole lines."""

    def __init__(self, path: Path) -> None:
        """Begin a new file. Raises FileExistsError where there is one: two runs are never mixed."""
        self.path = path
        path.touch(exist_ok=False)

    def add(self, kind: str, record: Mapping[str, Any]) -> None:
        """Append one record and hand it to the system."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({kind: _plain(record)}, allow_nan=False, default=str) + "\n")

    def add_row(self, row: Row) -> None:
        """Append a measured row."""
        self.add("row", asdict(row))


def read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, record) of every whole line; a line that was cut off while it was written ends the file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record: dict[str, dict[str, Any]] = json.loads(line)
        except json.JSONDecodeError:
            return
        yield from record.items()


def row_of(record: Mapping[str, Any]) -> Row:
    """The row that was written; an infinite error comes back as None."""
    values = {f.name: record[f.name] for f in fields(Row) if f.name in record}
    for name in ("samples_s", "aside_s"):
        values[name] = tuple(values.get(name, ()))
    values["threads"] = thread_counts(values.get("threads", {}))
    values["speedups"] = {name: Interval(**interval) for name, interval in values["speedups"].items()}
    return Row(**values)


def run_of(record: Mapping[str, Any]) -> Run:
    """The run that was written."""
    return Run(**record)


def _plain(value: Any) -> Any:
    """The same value without what JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
