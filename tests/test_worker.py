"""A worker's rotation over its input sets, in this process."""

import time

import pytest

from bench import arena, inputs
from bench.worker import Worker
from impls import parse_case

CASE = parse_case("dense:2x3,u4")


@pytest.fixture
def planned(tmp_path):
    """A worker with a plan, and a result file."""
    made = Worker(threads=1)
    plan = {"do": "plan", "case": str(CASE), "implementation": "numpy", "direction": "forward", "sets": 3, "sharers": 1}
    assert "status" not in made.answer(plan)
    result = tmp_path / "result"
    arena.create(result, arena.shapes_of(CASE.spec, "forward", outputs=True), CASE.spec.dtype)
    return made, result


@pytest.fixture
def worker(planned, tmp_path):
    """A worker with three sets bound, and a list of the sets that were called."""
    made, result = planned
    for i in range(3):
        path = tmp_path / f"set{i}"
        arena.write(path, inputs.make(CASE, "forward", inputs.DENSE, i), CASE.spec.dtype)
        answer = made.answer({"do": "compute", "inputs": str(path), "result": str(result), "keep": True})
        assert answer["side_effect"] is None
    called = []
    for i, bound in enumerate(made.bound):
        run = bound.call.run
        bound.call.run = lambda i=i, run=run: (called.append(i), run())
    return made, called, str(result)


@pytest.mark.parametrize(
    ("loops", "calls"),
    [(1, [[0], [1], [2], [0]]), (2, [[0, 1], [2, 0], [1, 2]]), (4, [[0, 1, 2, 0], [1, 2, 0, 1]])],
)
def test_the_rotation_goes_on_from_sample_to_sample(worker, loops, calls):
    made, called, result = worker
    for expected in calls:
        called.clear()
        answer = made.answer({"do": "sample", "loops": loops, "warm": False, "results": [result] * 3})
        assert called == expected
        assert answer["differs"] == []


@pytest.mark.parametrize(
    ("loops", "compared", "sets"), [(4, None, {0, 1, 2}), (1, None, {0}), (4, 1, {2}), (2, 1, {1}), (4, 0, set())]
)
def test_of_the_results_that_were_called_for_the_last_few_are_compared(worker, loops, compared, sets):
    """Every result is another than the verified one: those that are compared differ."""
    made, _, result = worker
    for bound in made.bound:
        bound.verified = tuple(None if a is None else a + 1 for a in bound.verified)
    request = {"do": "sample", "loops": loops, "warm": False, "results": [result] * 3, "compared": compared}
    assert set(made.answer(request)["differs"]) == sets


def test_a_released_worker_holds_nothing(worker):
    made, _, _ = worker
    made.answer({"do": "release"})
    assert made.plan is None
    assert made.bound == []
    assert "nothing is planned" in made.answer({"do": "compute", "inputs": "", "result": ""})["reason"]


def test_what_a_competitor_compiles_at_its_first_call_is_not_taken_for_its_speed(planned, tmp_path):
    """And as it is bound anew for every set, it compiles for every set."""
    made, result = planned
    made.is_competitor = True
    bind, compiling = made.plan.bind, 0.05

    def bind_lazily(*arguments):
        call = bind(*arguments)
        run, left = call.run, [compiling]
        call.run = lambda: (time.sleep(left.pop() if left else 0), run())
        return call

    made.plan.bind = bind_lazily
    for i in range(2):
        path = tmp_path / f"set{i}"
        arena.write(path, inputs.make(CASE, "forward", inputs.DENSE, i), CASE.spec.dtype)
        answer = made.answer({"do": "compute", "inputs": str(path), "result": str(result)})
        assert answer["seconds"] < compiling <= answer["first_call_s"]
