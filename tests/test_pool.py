"""Workers are asked side by side to compile, and one that fails takes no other with it."""

import os
import signal
import threading
import time

import pytest

from bench import machine
from bench.pool import LOAD_ATTEMPTS, Pool
from bench.results import Failure

MODULES = {
    "fake_quick": "",
    "fake_failing": "raise ValueError('ptxas')",
    "fake_crashing": "import os; os._exit(3)",
    "fake_hanging": "import time; time.sleep(60)",
}
SOURCE = """\
import numpy as np
from impls import cuda_setup
from impls.contract import Implementation, Plan
from impls.devices import CPU


class Kernel:
    def compile(self):
        {body}
        pass


class KernelPlan(Plan):
    def forward(self, x, w, b, out):
        pass


cuda_setup.KERNELS[:] = [Kernel()]
IMPL = Implementation(KernelPlan, algorithm="direct")
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """A pool whose workers have one kernel each, started."""
    from tests.plugins import install

    for name, body in MODULES.items():
        (tmp_path / f"{name}.py").write_text(SOURCE.format(body=body))
    install(tmp_path, {f"conv2d.{name}": f"{name}:IMPL" for name in MODULES}, monkeypatch)
    with Pool(threads=1) as made:
        made.start([("conv2d", name) for name in MODULES])
        yield made


def test_all_workers_compile_side_by_side_and_each_says_what_became_of_it(pool):
    started = time.monotonic()
    answers = pool.compile([("conv2d", name) for name in MODULES], seconds=3)
    assert time.monotonic() - started < 30
    assert answers["fake_quick"] == {"kernels": 1}
    assert answers["fake_failing"] == {"status": "ERROR", "reason": "ValueError: ptxas"}
    assert answers["fake_crashing"]["reason"].startswith("the worker ended with exit status 3")
    assert answers["fake_hanging"]["status"] == "TIMEOUT"
    assert pool.compile([("conv2d", "fake_quick"), ("conv2d", "fake_failing")], seconds=30) == {
        name: answers[name] for name in ("fake_quick", "fake_failing")
    }


def test_a_worker_without_cuda_kernels_has_nothing_to_compile():
    with Pool(threads=1) as made:
        made.start([("dense", "numpy")])
        assert made.compile([("dense", "numpy")], seconds=30) == {"numpy": {"kernels": 0}}


def test_who_does_not_start_in_time_is_not_waited_for(monkeypatch):
    """All have the same time, and not one after the other."""
    from bench import pool

    monkeypatch.setattr(pool.WorkerProcess, "_send", lambda self, request: None)
    started = time.monotonic()
    with Pool(threads=1) as made:
        made.start([("dense", name) for name in ("numpy", "numba_jit", "direct")], seconds=0.5)
        assert not made.pids()
    assert time.monotonic() - started < 30


def test_workers_that_are_ended_from_another_thread_are_a_failure_of_the_one_who_waits(pool):
    threading.Timer(0.5, pool.kill).start()
    answers = pool.compile([("conv2d", "fake_hanging")], seconds=60)
    assert "signal 9" in answers["fake_hanging"]["reason"]


def test_a_worker_that_has_ended_is_sent_no_signal_since_its_number_may_be_anothers_by_now(monkeypatch):
    sent = []
    with Pool(threads=1) as made:
        made.start([("dense", "numpy")])
        worker = made._workers["numpy"]
        monkeypatch.setattr(os, "kill", lambda *signal: sent.append(signal))
        worker.resume()
        monkeypatch.undo()
        os.kill(worker.pid, signal.SIGCONT)
        worker.kill()
        monkeypatch.setattr(os, "kill", lambda *signal: sent.append(signal))
        worker.pause()
        assert sent == [(worker.pid, signal.SIGCONT)]


@pytest.mark.parametrize(
    ("body", "seconds", "failure"),
    [
        ("import time; time.sleep(60)", 0.5, ("TIMEOUT", "no answer in 0.5 s")),
        (
            "import os; print('last words', flush=True); os._exit(4)",
            60,
            ("CRASHED", "the worker ended with exit status 4 | last words"),
        ),
    ],
    ids=["hangs", "exits"],
)
def test_what_cannot_be_loaded_says_so_and_is_not_tried_at_every_case(tmp_path, monkeypatch, body, seconds, failure):
    from tests.plugins import install

    (tmp_path / "fake_unloadable.py").write_text(body)
    install(tmp_path, {"conv2d.fake_unloadable": "fake_unloadable:IMPL"}, monkeypatch)
    with Pool(threads=1) as made:
        started = []
        new = made._new
        monkeypatch.setattr(made, "_new", lambda op, name: started.append(name) or new(op, name))
        made.start([("conv2d", "fake_unloadable")], each_seconds=seconds)
        for _ in range(LOAD_ATTEMPTS + 2):
            with pytest.raises(Failure) as raised:
                made.ask("conv2d", "fake_unloadable", "release", seconds)
            assert (raised.value.status, raised.value.reason) == failure
        assert len(started) == LOAD_ATTEMPTS


def test_what_cannot_be_loaded_for_one_operation_is_tried_for_another(tmp_path, monkeypatch):
    """Two packages may have given the same name to different things."""
    from tests.plugins import install

    (tmp_path / "fake_unloadable.py").write_text("import os; os._exit(4)")
    (tmp_path / "fake_loadable.py").write_text(SOURCE.format(body=""))
    modules = {"conv2d.fake_twin": "fake_unloadable:IMPL", "dense.fake_twin": "fake_loadable:IMPL"}
    install(tmp_path, modules, monkeypatch)
    with Pool(threads=1) as made:
        for _ in range(LOAD_ATTEMPTS):
            with pytest.raises(Failure):
                made.ask("conv2d", "fake_twin", "release", 60)
        assert made.ask("dense", "fake_twin", "release", 60) == {}


def test_a_new_worker_may_take_as_long_as_it_is_given(monkeypatch):
    """More than START_SECONDS too: whoever asks has been told how long by --setup-limit."""
    from bench import pool

    waited = []
    monkeypatch.setattr(pool.WorkerProcess, "receive", lambda self, seconds: waited.append(seconds) or {})
    with Pool(threads=1) as made:
        made.start([("dense", "numpy")], each_seconds=3 * pool.START_SECONDS)
    assert waited == [3 * pool.START_SECONDS]


@pytest.mark.parametrize(("kills", "status"), [((3, 3), "CRASHED"), ((3, 4), "OUT_OF_MEMORY")])
def test_a_worker_that_the_system_ended_for_want_of_memory_is_told_from_one_that_was_killed(monkeypatch, kills, status):
    counts = iter(kills)
    monkeypatch.setattr(machine, "oom_kills", lambda: next(counts))
    with Pool(threads=1) as made:
        made.start([("dense", "numpy")])
        (pid,) = made.pids()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Failure) as failure:
            made.ask("dense", "numpy", "release", 30)
    assert failure.value.status == status
