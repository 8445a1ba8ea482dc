"""Wrong implementations must be rejected, each with its own status; the right one must not."""

import importlib.util
from pathlib import Path

import pytest

from bench.measure import Session
from impls import parse_case
from tests.plugins import install

FOLDER = Path(__file__).parent / "faulty"
CASE = parse_case("conv2d:3x6x7x4,k3x3,f5")
LARGER = parse_case("conv2d:8x16x16x8,k3x3,f16")


def _expected():
    spec = importlib.util.spec_from_file_location("faulty_kernels", FOLDER / "faulty_kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: status for name, (_, status) in module.EXPECTED.items()} | {"not_there": "UNAVAILABLE"}


EXPECTED = _expected()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """One row per kernel, all measured in one session; and one under "later" for a larger case afterwards."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("plugin")
        (folder / "faulty_kernels.py").write_text((FOLDER / "faulty_kernels.py").read_text())
        install(folder, {f"conv2d.{name}": f"faulty_kernels:{name}" for name in EXPECTED}, monkeypatch)
        with Session(threads=1) as session:
            found = {r.implementation: r for r in session.run(CASE, "forward", tuple(EXPECTED), budget_s=1.0)}
            (later,) = session.run(LARGER, "forward", ("slow_at_first",), budget_s=1.0)
            return found | {"later": later}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_fault_gets_its_status(rows, name):
    row = rows[name]
    assert row.status in ({EXPECTED[name], "NOISY"} if EXPECTED[name] == "OK" else {EXPECTED[name]}), row.reason


def test_what_is_wrong_is_not_timed(rows):
    assert all(row.median_s is None for row in rows.values() if row.status not in ("OK", "NOISY"))


def test_the_right_one_is_timed_and_within_its_bound(rows):
    assert rows["right"].median_s > 0
    assert rows["right"].error_bounds <= 1


def test_a_slow_first_call_does_not_put_a_larger_case_over_the_budget(rows):
    assert rows["slow_at_first"].first_call_s > 0.2
    assert rows["later"].status in ("OK", "NOISY"), rows["later"].reason


def test_what_has_no_bound_or_cannot_be_imported_says_so(rows):
    assert "bfloat16" in rows["has_no_bound"].reason
    assert "cannot be imported" in rows["not_there"].reason


def test_a_crash_keeps_the_last_words(rows):
    assert "last words" in rows["exits"].reason
    assert "exit status 3" in rows["exits"].reason


def test_an_exception_keeps_its_text(rows):
    assert rows["raises"].reason == "ArithmeticError: no such luck"


def test_what_computes_in_another_arithmetic_says_in_which(rows):
    assert rows["half_precision"].reason.startswith("declared float32, ran as float16: factors rounded to float16")
    assert rows["right"].ran_arithmetic == "float64"
    assert rows["flipped_kernel"].ran_arithmetic == ""
