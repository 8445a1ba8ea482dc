"""What harms its process is a row with its status and its last words, and the run goes on with a fresh worker."""

import importlib.util
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from bench.jobs import Selection
from bench.measure import Session
from impls import parse_case
from tests.plugins import install

SOURCE = Path(__file__).parent / "faulty" / "faulty_processes.py"
CASE = parse_case("conv2d:3x6x7x4,k3x3,f5")


def _load():
    spec = importlib.util.spec_from_file_location("faulty_processes", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAULTS = _load()
EXPECTED = {
    name: expected
    for name, (_, *expected) in FAULTS.EXPECTED.items()
    if platform.machine() == "x86_64" or name not in FAULTS.ON_X86
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A row per kernel from one session, and under "right afterwards" one of a case that came later."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("plugin")
        (folder / "faulty_processes.py").write_text(SOURCE.read_text())
        install(folder, {f"conv2d.{name}": f"faulty_processes:{name}" for name in EXPECTED}, monkeypatch)
        with Session(threads=1) as session:
            session.start([("conv2d", name) for name in EXPECTED])
            session.effort = replace(session.effort, plan_s=2.0, call_s=2.0)
            found = {row.implementation: row for row in session.run(CASE, "forward", tuple(EXPECTED), budget_s=2.0)}
            (again,) = session.verify(CASE, "forward", ("right",))
            return found | {"right afterwards": again}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_fault_gets_its_status_and_keeps_its_last_words(rows, name):
    status, words = EXPECTED[name]
    row = rows[name]
    assert row.status in ((status, "NOISY") if status == "OK" else (status,)), row.reason
    assert words in row.reason or row.status == "NOISY"
    assert len(row.reason) < 2100


def test_who_is_right_among_them_is_timed_and_goes_on(rows):
    assert rows["right"].median_s > 0
    assert rows["right afterwards"].status == "OK"


BAD_IMPORTS = {
    "hangs": ("import time\ntime.sleep(3600)", "TIMEOUT", "no answer in 1 s"),
    "exits": ("import os\nprint('last words', flush=True)\nos._exit(5)", "CRASHED", "exit status 5 | last words"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "CRASHED", "signal 11 (SIGSEGV)"),
    "leaves": ("raise SystemExit(6)", "CRASHED", "exit status 6"),
    "raises": (
        "class Mute(Exception):\n    def __str__(self):\n        raise ValueError\nraise Mute",
        "UNAVAILABLE",
        "cannot be imported: Mute, and its text cannot be had",
    ),
    "has_no_record": ("", "UNAVAILABLE", "has no record named IMPL"),
}


@pytest.fixture(scope="module")
def bad_imports(tmp_path_factory):
    """Modules that cannot be imported, known as implementations."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("imports")
        for name, (source, _, _) in BAD_IMPORTS.items():
            (folder / f"import_{name}.py").write_text(source)
        install(folder, {f"conv2d.import_{name}": f"import_{name}" for name in BAD_IMPORTS}, monkeypatch)
        yield


@pytest.mark.parametrize("name", BAD_IMPORTS)
def test_an_import_that_fails_in_whatever_way_is_a_row_in_every_direction(bad_imports, name):
    _, status, words = BAD_IMPORTS[name]
    with Session(threads=1) as session:
        session.effort = replace(session.effort, plan_s=1.0 if status == "TIMEOUT" else 60.0)
        for direction in ("forward", "grad_input"):
            (row,) = session.verify(CASE, direction, (f"import_{name}",))
            assert row.status == status, row.reason
            assert words in row.reason


def test_what_cannot_be_imported_does_not_keep_others_from_being_chosen(bad_imports):
    chosen = Selection(ops=("conv2d",), implementations=("import_exits", "numpy_gemm")).names("conv2d")
    assert {"numpy_gemm", "keras", "import_exits"} <= set(chosen)
