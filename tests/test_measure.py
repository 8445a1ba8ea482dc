"""One session checks, times and recovers, with real workers."""

import os
import signal
import time

import psutil
import pytest

from bench import measure
from bench.contamination import Nobody
from bench.jobs import Selection, jobs
from bench.measure import Session
from bench.results import Failure, Row
from bench.suites import Suite
from impls import get, parse_case

DENSE = parse_case("dense:7x33,u5,relu")
POOL = parse_case("maxpool2d:2x6x6x3,pool2x2")


def _within_seconds(condition):
    """Whether it comes true in five seconds: a signal takes its time."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture(scope="module")
def session():
    with Session(threads=1) as made:
        yield made


def test_every_implementation_of_an_operation_gets_a_row_per_direction(session):
    for job in jobs(Suite("one", (DENSE, POOL)), Selection(competitors=("none",))):
        rows = session.run(job.case, job.direction, job.names, budget_s=0.3)
        assert tuple(row.implementation for row in rows) == job.names
        for row in rows:
            supported = get(row.op, row.implementation).supports(job.case.spec, row.direction) is None
            assert (row.status in ("OK", "NOISY")) == supported, (row.implementation, row.reason)


def test_a_timed_row_is_complete(session):
    (row,) = session.run(DENSE, "forward", ("numpy",), budget_s=0.3)
    assert row.error_bounds <= 1
    assert 0 < row.low_s <= row.median_s <= row.high_s
    assert row.min_s == min(row.samples_s)
    assert row.gflops == pytest.approx(DENSE.spec.flops / row.median_s / 1e9)
    assert row.setup_s > 0
    assert row.first_call_s > 0
    assert row.repeatable
    assert row.stop in ("precision", "budget", "rounds")
    assert set(row.threads.values()) == {(1, 1, 1)}
    assert row.peak_bytes > 10**7


def test_the_rate_of_a_pooling_gradient_counts_only_what_it_needs(session):
    for op, values in (("maxpool2d", 8 * 36 * 3 * 2 + 8 * 9 * 3), ("avgpool2d", 8 * 36 * 3 + 8 * 9 * 3)):
        case = parse_case(f"{op}:8x6x6x3,pool2x2")
        (row,) = session.run(case, "grad_input", ("numpy",), budget_s=0.1)
        assert row.gbytes_per_s == pytest.approx(4 * values / row.median_s / 1e9)


def test_verify_checks_without_timing(session):
    (row,) = session.verify(DENSE, "grad_weights", ("numpy",))
    assert row.status == "OK"
    assert row.error_bounds <= 1
    assert row.median_s is None


def test_a_call_beyond_the_budget_is_not_timed(session):
    case = parse_case("dense:256x2048,u512")
    (row,) = session.run(case, "forward", ("numpy",), budget_s=1e-6)
    assert row.status == "OVER_BUDGET"
    assert "1e-06 s" in row.reason


OVER = ("OVER_BUDGET", "the time for all cases was over")


@pytest.mark.parametrize(("left", "found"), [(-1.0, OVER), (5.0, OVER), (90.0, ("TIMEOUT", "no answer in 60 s"))])
def test_nobody_is_waited_for_beyond_the_deadline_and_that_is_no_fault(monkeypatch, left, found):
    """But what outlasts a limit of its own, here 60 s, is a fault."""
    asked = []

    def hang(op, name, do, seconds, **values):
        asked.append(seconds)
        raise Failure("TIMEOUT", f"no answer in {seconds:.0f} s")

    with Session(threads=1) as made:
        monkeypatch.setattr(made._pool, "ask", hang)
        made.effort = measure.Effort(plan_s=60.0)
        made.deadline = measure.timing.CLOCK() + left
        (row,) = made.verify(DENSE, "forward", ("numpy",))
    assert (row.status, row.reason) == found
    assert asked == ([pytest.approx(min(left, 60.0), abs=1)] if left > 0 else [])


def test_what_was_timed_when_the_deadline_comes_is_kept(monkeypatch):
    """Its worker is looked at once more, after the deadline."""
    with Session(threads=1) as made:
        ask = made._pool.ask

        def last_sample(op, name, do, seconds, **values):
            answer = ask(op, name, do, seconds, **values)
            if do == "sample":
                made.deadline = measure.timing.CLOCK()
            return answer

        monkeypatch.setattr(made._pool, "ask", last_sample)
        made.effort = measure.Effort(calibrations=0, min_rounds=1)
        (row,) = made.run(DENSE, "forward", ("numpy",), budget_s=5)
    assert row.stop == "budget"
    assert len(row.samples_s) == 1
    assert row.status in ("OK", "NOISY")


def test_less_effort_is_fewer_rounds_and_shorter_samples(session, monkeypatch):
    monkeypatch.setattr(measure, "_leave_out_slow", lambda contenders, budget_s: None)
    found = []
    for effort in (measure.Effort(), measure.Effort(min_rounds=3, sample_s=1e-9)):
        monkeypatch.setattr(session, "effort", effort)
        (row,) = session.run(DENSE, "forward", ("numpy",), budget_s=0)
        found.append((len(row.samples_s) + len(row.aside_s), row.loops > 1))
    assert found == [(5, True), (3, False)]


def test_a_pool_that_came_later_or_changed_its_size_is_told_from_one_that_did_not():
    sizes = {}
    for now in ({"blas": 2}, {"blas": 2, "openmp": 4}, {"blas": 1, "openmp": 4}):
        sizes = measure._with_sizes(sizes, {"threads": now})
    assert sizes == {"blas": (2, 2, 1), "openmp": (0, 4, 4)}
    assert measure._with_sizes(sizes, {}) == sizes


def entrant(name, seconds, samples, status="OK"):
    """A contender with these samples."""
    row = Row("dense", "forward", "1x1,u1", name, "cpu", False, "gemm", "float32", status)
    return measure.Contender(row, seconds=seconds, taken=[measure.Taken(s, {}) for s in samples])


def test_nothing_is_precise_where_nobody_is_waited_for_and_who_has_ended_is_not():
    steady, wide = [1.0] * 10, [1.0, 2.0] * 4
    assert measure._precise([entrant("a", 1.0, steady)], 0.02)
    assert not measure._precise([entrant("a", 1.0, steady, "CRASHED")], 0.02)
    assert not measure._precise([entrant("a", 1.0, steady, "CRASHED"), entrant("b", 1.0, wide)], 0.02)


def test_each_row_says_why_its_own_timing_ended(monkeypatch):
    """One is twenty times slower and gets three rounds; one ends on its way, and the others are measured on."""
    monkeypatch.setattr(measure, "MAX_ROUNDS", 8)
    fast, slow, broken = entrant("fast", 0.1, ()), entrant("slow", 2.0, ()), entrant("broken", 0.01, ())

    def take(self, contender, *unused, **more):
        contender.taken.append(measure.Taken(contender.seconds, {}))
        if contender is broken and len(contender.taken) == 2:
            contender.end("CRASHED", "signal 9")

    with Session(threads=1, host=Nobody()) as made:
        monkeypatch.setattr(Session, "_calibrate", lambda *unused: None)
        monkeypatch.setattr(Session, "_round", take)
        monkeypatch.setattr(Session, "_ask", lambda *unused, **more: {})
        made._time(DENSE, "forward", [fast, slow, broken], [], budget_s=100.0)
    assert [(c.row.stop, len(c.samples)) for c in (fast, slow, broken)] == [("rounds", 8), ("rounds", 3), ("", 2)]
    fast.taken.clear()
    slow.taken.clear()
    monkeypatch.setattr(measure, "MAX_ROUNDS", 20)
    with Session(threads=1, host=Nobody()) as made:
        made._time(DENSE, "forward", [fast, slow], [], budget_s=100.0)
    assert [(c.row.stop, len(c.samples)) for c in (fast, slow)] == [("precision", 10), ("rounds", 3)]


def test_a_case_that_cannot_fit_is_a_row_and_nothing_is_allocated(session):
    case = parse_case("maxpool2d:1000000x256x256x64,pool2x2")
    rows = session.run(case, "grad_input", ("numpy", "numba_jit"), budget_s=0.3)
    assert {row.status for row in rows} == {"OUT_OF_MEMORY"}
    assert "GB of memory are free; try a smaller --batch" in rows[0].reason


@pytest.mark.parametrize(("batch", "sets"), [(1, 3), (100, 3), (1000, 2), (10_000, 1)])
def test_large_cases_rotate_fewer_input_sets(batch, sets):
    assert measure._sets(parse_case(f"maxpool2d:{batch}x32x32x32,pool2x2"), "forward") == sets


def test_what_is_not_supported_says_why(session):
    with pytest.raises(Failure, match="does not compute grad_weights"):
        session.compute("numpy", POOL, "grad_weights", ())


def test_a_worker_that_was_killed_is_a_row_and_is_replaced(session):
    (before,) = session.verify(DENSE, "forward", ("numpy",))
    assert before.status == "OK"
    worker = session._pool._workers["numpy"]
    os.kill(worker._process.pid, signal.SIGKILL)
    (crashed,) = session.verify(DENSE, "forward", ("numpy",))
    (after,) = session.verify(DENSE, "forward", ("numpy",))
    assert crashed.status == "CRASHED"
    assert "signal 9" in crashed.reason
    assert after.status == "OK"


def test_workers_stand_still_while_another_measures(session):
    session.verify(DENSE, "forward", ("numpy",))
    process = psutil.Process(session._pool._workers["numpy"]._process.pid)
    assert _within_seconds(lambda: process.status() == psutil.STATUS_STOPPED)


def test_workers_end_with_their_session():
    with Session(threads=1) as made:
        made.verify(DENSE, "forward", ("numpy",))
        pid = made._pool._workers["numpy"]._process.pid
        folder = made._folder
        assert psutil.pid_exists(pid)
    assert _within_seconds(lambda: not psutil.pid_exists(pid))
    assert not folder.exists()
