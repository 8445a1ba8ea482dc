"""The harness is honest about itself: what a sample costs beside its time, inside it, and for being apart."""

import pytest

from bench import overhead
from bench.results import Interval
from reports import selftest


class Machine:
    """A clock that its calls move on: a call takes 1 ms here and 1.25 ms in a worker, a turn 3 ms more than its sample.

    Every reading of the clock takes a microsecond.
    """

    def __init__(self):
        self.now = 0.0

    def clock(self):
        self.now += 1e-6
        return self.now

    def call(self):
        self.now += 1e-3

    def ask(self, loops):
        self.now += 1.25e-3 * loops + 3e-3
        return 1.25e-3


@pytest.fixture
def found():
    machine = Machine()
    return overhead.costs("a case", "ours", machine.ask, machine.call, rounds=10, clock=machine.clock)


def test_a_sample_has_as_many_calls_as_in_a_run(found):
    assert found.loops == 10
    assert found.sample.median == pytest.approx(12.5e-3)


def test_what_a_turn_takes_beside_its_sample_is_overhead(found):
    assert found.beside.median == pytest.approx(3e-3 + 1e-6)


def test_what_is_timed_of_a_call_that_does_nothing_is_the_clock(found):
    assert found.inside.median == pytest.approx(1e-6 / 10)


def test_isolation_is_the_time_apart_over_the_time_in_one_process(found):
    assert found.isolation.median == pytest.approx(1.25 / (1 + 1e-4))


def test_a_worker_and_this_process_are_both_timed(monkeypatch):
    monkeypatch.setattr(overhead, "PROBLEMS", overhead.PROBLEMS[:1])
    (found,) = overhead.measure(threads=1, rounds=3)
    assert found.loops > 1
    assert 0 < found.isolation.low <= found.isolation.median <= found.isolation.high
    assert 0 < found.inside.median < found.sample.median


def test_the_table_says_each_cost_in_its_unit():
    one = Interval(1.5, 1.0, 2.0)
    cost = overhead.Overhead(
        "maxpool2d:1x2x2x1", "numpy", 8, Interval(0.01, 0.01, 0.02), Interval(0.002, 0.001, 0.003), one, one
    )
    (section,) = selftest.overhead([cost]).sections
    assert section.lines[0].cells[:4] == ("maxpool2d:1x2x2x1", "8", "10.0 [10.0, 20.0]", "2.00 [1.00, 3.00]")
    assert section.lines[0].cells[-1] == "1.50 [1.00, 2.00]"
