"""The program with a fault in its store, as ``bench.soak`` starts it: python -m bench.faulty_store FAULT run ..."""

from __future__ import annotations

import runpy
import sys
from typing import Any

import sqlalchemy as sa

FULL, READ_ONLY = "full disk", "read-only store"
STATEMENTS = {FULL: "PRAGMA max_page_count = {pages}", READ_ONLY: "PRAGMA query_only = 1"}
"""What makes SQLite give the very error of a full disk, or of a file that cannot be written, for this connection."""


def break_stores(fault: str) -> None:
    """Every store that is opened in this process from now on has the fault."""

    def break_one(connection: Any, record: object) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(STATEMENTS[fault].format(pages=max(pages, 1)))

    sa.event.listen(sa.Engine, "connect", break_one)


if __name__ == "__main__":
    break_stores(sys.argv.pop(1))
    runpy.run_module("bench", run_name="__main__", alter_sys=True)
