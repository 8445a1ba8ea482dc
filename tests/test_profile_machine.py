"""Figures are measured in rounds, one process at a time; one that fails takes no other with it."""

import dataclasses

import pytest

from bench import profile_machine
from bench.ceilings import IN_RUN, Ceiling
from bench.cpu_ceilings import BLAS, SYSTEM, VECTORS
from bench.profile_machine import full, limits_of, measure, with_ceilings
from bench.results import Failure, Run

RUN = Run("layerbench run", "quick", 0, 2, "2026-11-21T00:00:00+00:00", {"id": "box", "cuda_device": {}})


class Fake:
    """A process whose figures are 1, 2, 3, ... and that notes what is asked of it."""

    def __init__(self, names, log, answer=None, fails_at=None):
        self.names, self.log, self.answer, self.fails_at = names, log, answer, fails_at
        self.turns = 0

    def greet(self):
        figures = [{"name": n, "unit": "GB/s", "level": "L1", "beyond": 0, "touched": 8} for n in self.names]
        return self.answer or {"figures": figures}

    def take_turn(self, do, seconds, **values):
        self.log.append((do, *values.values()))
        self.turns += 1
        if self.turns == self.fails_at:
            raise Failure("CRASHED", "signal 4")
        return {"value": self.turns}

    def pause(self):
        self.log.append("pause")

    def kill(self):
        self.log.append("kill")


def test_after_a_warm_up_every_figure_is_sampled_once_a_round_in_changing_order():
    log, told = [], []
    found, missing = measure(
        [("g", 2)], 6, lambda *_: Fake("abc", log), progress=lambda done, of: told.append((done, of))
    )
    assert log[0] == "pause"
    assert log[-1] == "kill"
    rounds = [log[1 + 3 * i : 4 + 3 * i] for i in range(7)]
    assert all(sorted(turns) == [("sample", name) for name in "abc"] for turns in rounds)
    assert len({tuple(turns) for turns in rounds}) > 1
    assert [len(c.samples) for c in found] == [6, 6, 6]
    assert {c.threads for c in found} == {2}
    assert told[-1] == (7, 7)
    assert not missing


def test_a_process_that_cannot_begin_or_that_fails_is_missing_and_the_others_go_on():
    log = []
    fakes = {
        "good": Fake("a", log),
        "absent": Fake("b", log, answer={"status": "ERROR", "reason": "no BLAS"}),
        "crashing": Fake("c", log, fails_at=3),
    }
    found, missing = measure([(name, 1) for name in fakes], 4, lambda name, threads: fakes[name])
    assert {c.name: len(c.samples) for c in found} == {"a": 4, "c": 1}
    assert missing == {"absent, 1 thread": "ERROR: no BLAS", "crashing, 1 thread": "CRASHED: signal 4"}
    assert log.count("kill") == 3


def test_what_uses_cores_is_measured_with_one_thread_and_with_all():
    assert full(4) == ((VECTORS, 1), (VECTORS, 4), (BLAS, 1), (BLAS, 4), (SYSTEM, 4))
    assert full(1) == ((VECTORS, 1), (BLAS, 1), (SYSTEM, 1))


def test_a_run_keeps_what_its_rows_are_held_against(monkeypatch):
    ceiling = Ceiling("read, L1", "GB/s", (1.0, 2.0), threads=2, level="L1", touched=8)
    monkeypatch.setattr(profile_machine, "measure", lambda wanted, rounds: ((ceiling,), {}))
    run = with_ceilings(RUN)
    assert run.machine[IN_RUN][0]["value"] == 2.0
    assert limits_of(run).ceilings == (ceiling,)
    assert limits_of(dataclasses.replace(run, machine=RUN.machine)).ceilings == ()


@pytest.mark.parametrize("device", [{}, {"name": "H100"}])
def test_the_gpu_is_asked_where_there_is_one(monkeypatch, device):
    line = Ceiling("device copy", "GB/s", (1.0,), "cuda").record()
    monkeypatch.setattr(profile_machine, "measure", lambda *unused, **options: ((), {}))
    monkeypatch.setattr(profile_machine.machine, "describe", lambda device: {"cuda_device": about})
    monkeypatch.setattr(profile_machine, "records", lambda *unused, **settings: iter([line]))
    about = device
    found = profile_machine.profile(1)
    assert [c.name for c in found.ceilings] == ["device copy"] * bool(device)
    assert ("cuda" in found.missing) != bool(device)


def test_what_a_gpu_said_before_it_failed_is_kept_with_the_reason(monkeypatch):
    def lines(*unused, **settings):
        yield Ceiling("device copy", "GB/s", (1.0,), "cuda").record()
        raise Failure("TIMEOUT", "cut off")

    monkeypatch.setattr(profile_machine, "records", lines)
    found, missing = profile_machine.cuda_ceilings({})
    assert [c.name for c in found] == ["device copy"]
    assert missing == {"cuda": "TIMEOUT: cut off"}


def test_a_real_process_tells_the_rates_of_this_machine():
    found, missing = measure([(VECTORS, 1)], 1)
    assert not missing
    assert {"GFLOP/s", "GB/s"} == {c.unit for c in found}
    assert all(c.value > 0 and c.threads == 1 for c in found)
