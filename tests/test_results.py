"""Rows come back from the store as they went in, and exports hold every one."""

import csv
import json
import sqlite3
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mssql, mysql

from bench.results import Interval, Row, Run, write_csv, write_json
from bench.store import _METADATA, Store, StoreError

RUN = Run("layerbench run", "quick", seed=0, threads=2, started="2026-01-01T00:00:00+00:00", machine={"cpu": "x"})
ROW = Row(
    "conv2d",
    "forward",
    "1x4x4x1,k3x3,f2",
    "numpy_gemm",
    "cpu",
    competitor=False,
    algorithm="gemm",
    arithmetic="float32",
    status="OK",
    samples_s=(0.1, 0.2),
    median_s=0.15,
    repeatable=True,
    speedups={"keras": Interval(2.0, 1.9, 2.1)},
    figures={"kernel": (0.01, 0.02)},
    gpu={"before": {"sm_mhz": 1980.0}, "dirt": ["throttled: power cap"]},
    dirty_samples=1,
    aside_s=(0.4,),
    threads={"numba": (2, 2, 2), "openblas": (2, 1, 1)},
    host={"before": {"load": 0.5}, "dirt": {"periods throttled by the control group": {"rounds": 1, "most": 2.0}}},
)


def test_a_row_comes_back_as_it_went_in(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    run = store.start(RUN)
    store.add(run, ROW)
    store.close()
    again = Store(tmp_path / "a.sqlite")
    assert again.rows(run.id) == ((run.id, ROW),)
    assert again.run() == run
    assert again.run().machine == {"cpu": "x"}
    again.close()


def test_a_store_made_before_a_field_existed_is_read_and_written(tmp_path):
    """Old rows have the field's default; new ones are stored whole."""
    later = replace(ROW, direction="grad_input")
    store = Store(tmp_path / "a.sqlite")
    run = store.start(RUN)
    store.add(run, ROW)
    store.close()
    with sqlite3.connect(tmp_path / "a.sqlite") as old:
        for name in ("figures", "gpu", "clocks", "dirty_samples"):
            old.execute(f"ALTER TABLE measurements DROP COLUMN {name}")
        old.execute("ALTER TABLE runs DROP COLUMN options")
        old.execute("""UPDATE measurements SET threads = '{"numba": 2}'""")
    old.close()
    again = Store(tmp_path / "a.sqlite")
    again.add(run, later)
    before, after = (row for _, row in again.rows(run.id))
    assert before == replace(ROW, figures={}, gpu={}, dirty_samples=None, threads={"numba": (2,)})
    assert after == later
    assert again.run() == run
    again.close()


def test_what_is_learned_of_the_machine_later_replaces_what_its_run_knew_and_no_other_s(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    first, second = store.start(RUN), store.start(RUN)
    later = replace(first, machine={"cpu": "x", "ceilings": [{"samples": [1.0, 2.0]}]})
    store.set_machine(later)
    assert store.runs() == (later, second)
    store.close()


def test_rows_of_another_run_are_not_returned(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    first, second = store.start(RUN), store.start(RUN)
    store.add(first, ROW)
    assert store.rows(second.id) == ()
    assert store.run().id == second.id
    assert store.run(first.id).id == first.id
    store.close()


def test_a_store_without_runs_says_how_to_make_one(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    with pytest.raises(StoreError, match="holds no run of this kind; make one with: layerbench run"):
        store.run()
    store.close()


@pytest.mark.parametrize("make", ["folder", "text"])
def test_a_store_that_cannot_be_opened_is_named_with_the_remedy(tmp_path, make):
    path = tmp_path / "missing" / "a.sqlite" if make == "folder" else tmp_path / "a.sqlite"
    if make == "text":
        path.write_text("this is no database, and long enough to be seen as none" * 20)
    with pytest.raises(StoreError, match=r"a\.sqlite cannot be opened: .*; choose another with --db"):
        Store(path)


@pytest.fixture
def failing_store(tmp_path):
    """A store with one row, a run to add another to, and statements for its connections from then on."""
    statements = []
    store = Store(f"sqlite:///{tmp_path / 'a.sqlite'}?timeout=0")
    run = store.start(RUN)
    store.add(run, ROW)
    sa.event.listen(store._engine, "checkout", lambda c, *unused: [c.execute(s) for s in statements])
    yield store, run, statements
    store.close()


LATER = replace(ROW, direction="grad_input")


@pytest.mark.parametrize(
    ("statement", "cause", "remedy"),
    [
        ("PRAGMA max_page_count = 1", "database or disk is full", "make room on its disk"),
        (
            "PRAGMA query_only = 1",
            "attempt to write a readonly database",
            "make it and its folder writable",
        ),
    ],
)
def test_a_store_that_cannot_be_written_says_what_to_do_and_loses_nothing(failing_store, statement, cause, remedy):
    store, run, statements = failing_store
    statements.append(statement)
    many = [replace(LATER, spec=str(i), reason="x" * 4000) for i in range(4)]
    with pytest.raises(StoreError, match=f"cannot be written: {cause}; {remedy}.*--resume"):
        store.add(run, *many)
    assert store.rows(run.id) == ((run.id, ROW),)
    statements[:] = ["PRAGMA max_page_count = 100000", "PRAGMA query_only = 0"]
    store.add(run, *many)
    assert [row for _, row in store.rows(run.id)] == [ROW, *many]


def test_a_locked_store_is_named_with_the_remedy(failing_store, tmp_path):
    store, run, _ = failing_store
    blocker = sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="cannot be written: database is locked; another program holds it: wait"):
        store.add(run, LATER)
    blocker.execute("ROLLBACK")
    blocker.close()
    store.add(run, LATER)
    assert len(store.rows(run.id)) == 2


def test_a_row_is_there_once_and_what_was_to_come_with_it_is_not_there_at_all(failing_store):
    store, run, _ = failing_store
    with pytest.raises(StoreError, match="a row is there already: another program goes on with the same run"):
        store.add(run, LATER, ROW)
    assert store.rows(run.id) == ((run.id, ROW),)


@pytest.mark.parametrize(("dialect", "most", "width"), [(mysql, 3072, 4), (mssql, 1700, 1)])
def test_what_a_row_is_known_by_fits_into_an_index_of_every_database(dialect, most, width):
    """Bytes of a key, and of a character, in MySQL's utf8mb4 and SQL Server's VARCHAR; a TEXT fits into none."""
    table = _METADATA.tables["measurements"]
    (key,) = (c for c in table.constraints if isinstance(c, sa.UniqueConstraint))
    texts = [column for column in key.columns if column.name != "run_id"]
    compiled = [column.type.compile(dialect.dialect()) for column in texts]
    assert all(text.startswith("VARCHAR(") for text in compiled)
    assert 4 + width * sum(column.type.length for column in texts) <= most


def test_a_damaged_store_is_refused_before_anything_is_written(failing_store, tmp_path):
    store, run, _ = failing_store
    store.add(run, *(replace(ROW, spec=str(i)) for i in range(50)))
    whole = (tmp_path / "a.sqlite").read_bytes()
    damaged = tmp_path / "b.sqlite"
    damaged.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    with pytest.raises(StoreError, match=r"b\.sqlite cannot be opened: .*malformed.*; docs/faults.md says how to save"):
        Store(damaged)
    assert damaged.read_bytes()[4096:] == b"\xa5" * (len(whole) - 4096)


def test_an_infinite_error_does_not_make_the_json_unreadable(tmp_path):
    write_json(tmp_path / "a.json", RUN, [replace(ROW, status="WRONG", error_bounds=float("inf"))])
    text = (tmp_path / "a.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["rows"][0]["error_bounds"] is None


def test_exports_hold_the_same_rows(tmp_path):
    write_json(tmp_path / "a.json", RUN, [ROW])
    write_csv(tmp_path / "a.csv", RUN, [ROW])
    document = json.loads((tmp_path / "a.json").read_text())
    with (tmp_path / "a.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert document["rows"][0]["samples_s"] == [0.1, 0.2]
    assert document["rows"][0]["figures"] == {"kernel": [0.01, 0.02]}
    assert line["kernel_samples_s"] == "0.01 0.02"
    assert json.loads(line["gpu_dirt"]) == ["throttled: power cap"]
    assert document["rows"][0]["speedups"] == {"keras": {"median": 2.0, "low": 1.9, "high": 2.1}}
    assert document["run"]["suite"] == "quick"
    assert line["samples_s"] == "0.1 0.2"
    assert line["threads"] == "numba=2 openblas=2/1/1"
    assert float(line["over_keras_median"]) == 2.0
    assert line["status"] == "OK"
