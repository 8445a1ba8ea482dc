"""What a person waits for before the first result stands beside what is timed."""

import pytest

from bench.results import Row
from reports.starting import starting


def timed(name, setup_s, first_call_s, median_s=0.001, **more):
    """A row of one case that was timed."""
    kind = {"device": "cpu", "algorithm": "direct", "arithmetic": "float32", "status": "OK", "competitor": False}
    times = {"setup_s": setup_s, "first_call_s": first_call_s, "median_s": median_s}
    return Row(**{"op": "dense", "direction": "forward", "implementation": name} | kind | times | more)


ROWS = (
    timed("keras", 2.0, 0.5, spec="1x4,u4", competitor=True),
    timed("compiled", 3.0, 0.004, spec="1x4,u4"),
    timed("compiled", 0.001, 0.002, spec="2x4,u4"),
    timed("compiled", 0.002, 0.002, spec="4x4,u4"),
    timed("never", None, None, spec="4x4,u4", median_s=None, status="CRASHED"),
)


def test_the_plan_that_compiled_stands_apart_from_the_others():
    record = starting(ROWS).frame.set_index("implementation").loc["compiled"]
    assert (record["plans"], record["longest_setup_s"], record["setup_s"]) == (3, 3.0, 0.002)
    assert (record["first_call_s"], record["first_call_over_call"]) == (0.002, pytest.approx(2.0))


def test_ours_come_first_and_what_has_no_time_has_no_line():
    assert [line.cells[0] for line in starting(ROWS).sections[0].lines] == ["compiled", "keras †"]
