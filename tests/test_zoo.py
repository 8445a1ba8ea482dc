"""The zoo: every faulty implementation is a row with the one status that it must get, and the right ones pass.

What harms its process leaves its last words, and the run goes on with a fresh worker; what works on a device of its own
has every figure, and faults of waiting, writing or losing it are seen.
"""

import importlib.util
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest

from bench.ceilings import GFLOPS, Ceiling, Limits
from bench.contamination import Nobody
from bench.jobs import Selection
from bench.measure import Effort, Session
from bench.nvml import Reading
from bench.results import END_TO_END, KERNEL, KERNEL_FLUSHED, RESIDENT_BY_DEVICE
from impls import parse_case
from tests.plugins import install

FOLDER = Path(__file__).parent / "faulty"

CASE = parse_case("conv2d:3x6x7x4,k3x3,f5")
LARGER = parse_case("conv2d:8x16x16x8,k3x3,f16")
MANY = parse_case("conv2d:70x6x7x4,k3x3,f5")
HEAVY = parse_case("conv2d:4x32x32x16,k5x5,f32")
"""10^8 operations: 5 ms at the rate of CEILING."""
ON_DEVICE = parse_case("conv2d:2x4x3x2,k3x3,f2")

CEILING = Ceiling("multiply-add", GFLOPS, (20.0,), threads=1)
"""What the machine is said to do at most: the same on every one."""


@dataclass(frozen=True)
class Fate:
    """What must become of an implementation in a case; ``words``: a part of the reason."""

    status: str
    words: str = ""
    case: object = CASE


ZOO = {
    "faulty_kernels": {
        "right": Fate("OK"),
        "slow_at_first": Fate("OK"),
        "all_zeros": Fate("WRONG"),
        "flipped_kernel": Fate("WRONG"),
        "dropped_tap": Fate("WRONG"),
        "forgot_bias": Fate("WRONG"),
        "wraps_at_the_border": Fate("WRONG"),
        "one_bad_pixel": Fate("WRONG"),
        "drops_the_last_sample": Fate("WRONG"),
        "drops_samples_of_a_large_batch": Fate("WRONG", case=MANY),
        "wrong_at_a_larger_size": Fate("WRONG", case=LARGER),
        "not_a_number_for_one_input_set": Fate("WRONG", "on dense inputs"),
        "returns_before_finishing": Fate("WRONG"),
        "works_only_once": Fate("WRONG"),
        "reuses_the_first_result": Fate("WRONG"),
        "caches_by_pointer": Fate("WRONG"),
        "caches_by_shape": Fate("WRONG"),
        "caches_by_value": Fate("IMPOSSIBLE", "by what was measured of multiply-add", HEAVY),
        "keeps_weights_by_address": Fate("WRONG"),
        "half_precision": Fate("MISDECLARED", "declared float32, ran as float16: factors rounded to float16"),
        "mutates_its_input": Fate("SIDE_EFFECT", "an input, or memory around it"),
        "writes_outside_its_output": Fate("SIDE_EFFECT", "memory around an output"),
        "has_no_bound": Fate("ERROR", "bfloat16"),
        "raises": Fate("ERROR", "ArithmeticError: no such luck"),
        "claims_support_it_lacks": Fate("ERROR", "NotImplementedError: kernels of this size"),
        "exits": Fate("CRASHED", "exit status 3 | last words"),
        "not_there": Fate("UNAVAILABLE", "cannot be imported"),
    },
    "faulty_processes": {
        "right": Fate("OK"),
        "segmentation_fault": Fate("CRASHED", "signal 11 (SIGSEGV) | about to read address 0"),
        "aborts": Fate("CRASHED", "signal 6 (SIGABRT)"),
        "crashes_in_set_up": Fate("CRASHED", "exit status 7"),
        "crashes_in_warm_up": Fate("CRASHED", "exit status 6"),
        "crashes_when_timed": Fate("CRASHED", "exit status 8"),
        "leaves_the_interpreter": Fate("CRASHED", "exit status 1 | I am done here"),
        "hangs_in_set_up": Fate("TIMEOUT", "no answer in 2 s | waiting for a licence"),
        "spins": Fate("TIMEOUT", "no answer in 2 s"),
        "hangs_when_timed": Fate("TIMEOUT", "no answer in 2 s"),
        "exception_without_text": Fate("ERROR", "Mute, and its text cannot be had: RuntimeError"),
        "allocates_too_much": Fate("OUT_OF_MEMORY", "Unable to allocate 1.00 GiB"),
        "needs_too_much_scratch": Fate("OUT_OF_MEMORY", "GB of scratch"),
        "floods_the_output": Fate("CRASHED", "exit status 9 | all work and no play"),
        "answers_for_the_worker": Fate("ERROR", "cannot be read: b'not an answer"),
        "closes_the_pipe": Fate("CRASHED", "closed its pipe | nobody listens"),
        "closes_the_pipe_when_timed": Fate("CRASHED", "closed its pipe | nobody listens"),
        "leaks_memory": Fate("LEAK", "bytes a call over"),
        "sets_numpys_seed": Fate("SIDE_EFFECT", "changed NumPy's random state"),
        "draws_a_random_number": Fate("SIDE_EFFECT", "changed Python's random state"),
        "silences_warnings": Fate("SIDE_EFFECT", "changed the warnings filters"),
        "changes_the_folder": Fate("SIDE_EFFECT", "the current directory from "),
        "changes_the_environment": Fate("SIDE_EFFECT", "OMP_NUM_THREADS from 1 to 64"),
        "takes_more_threads": Fate("SIDE_EFFECT", "from 1 to 2"),
        "flushes_denormals": Fate("SIDE_EFFECT", "changed the treatment of denormal numbers"),
        "rounds_up": Fate("SIDE_EFFECT", "changed the rounding mode"),
        "mutates_its_input_when_timed": Fate("SIDE_EFFECT", "an input, or memory around it"),
    },
    "faulty_devices": {
        "right": Fate("OK", case=ON_DEVICE),
        "keeps_tensors_of_its_own": Fate("OK", case=ON_DEVICE),
        "has_a_broken_clock": Fate("OK", case=ON_DEVICE),
        "waits_for_nothing": Fate("ASYNC_MISMATCH", "not waited for", ON_DEVICE),
        "on_another_stream": Fate("ASYNC_MISMATCH", "not in the order of the stream", ON_DEVICE),
        "writes_beside_its_output": Fate("SIDE_EFFECT", "memory around an output", ON_DEVICE),
        "writes_to_its_input": Fate("SIDE_EFFECT", "an input, or memory around it", ON_DEVICE),
        "leaves_one_out": Fate("WRONG", case=ON_DEVICE),
        "computes_when_bound": Fate("WRONG", case=ON_DEVICE),
        "loses_its_device": Fate("CRASHED", "CUDA_ERROR_ILLEGAL_ADDRESS; the worker is replaced", ON_DEVICE),
        "does_not_fit": Fate("OUT_OF_MEMORY", "100000 bytes are free on the device", ON_DEVICE),
    },
}
"""By its module and its name: the one status that each must get. ``layerbench run`` knows none of them."""


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _lives_here(module: str, name: str) -> bool:
    return platform.machine() == "x86_64" or name not in getattr(_load(module), "ON_X86", ())


FATES = [(module, name) for module, fates in ZOO.items() for name in fates if _lives_here(module, name)]


def _names(module: str, case: object | None = None) -> tuple[str, ...]:
    """Those of a module that are to be measured, in this case or in whichever."""
    return tuple(name for m, name in FATES if m == module and case in (None, ZOO[m][name].case))


def _measured(session: Session, module: str, case: object, budget_s: float = 1.0) -> dict:
    """A row for each of a module whose fate is that of this case, held against CEILING."""
    names = _names(module, case)
    rows = Limits([CEILING], 1, lambda: [CEILING]).judge(session.run(case, "forward", names, budget_s))
    return dict(zip(names, rows, strict=True))


@contextmanager
def _installed(module: str, factory: pytest.TempPathFactory) -> Iterator[None]:
    """Its implementations are known as another package's would be."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = factory.mktemp("plugin")
        (folder / f"{module}.py").write_text((FOLDER / f"{module}.py").read_text())
        install(folder, {f"conv2d.{name}": f"{module}:{name}" for name in _names(module)}, monkeypatch)
        yield


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """All kernels; and, under what they are, rows of two that are right in another case than that of their fate."""
    with _installed("faulty_kernels", tmp_path_factory), Session(threads=1) as session:
        found = {}
        for case in (CASE, LARGER, MANY, HEAVY):
            found |= _measured(session, "faulty_kernels", case)
        (small,) = session.verify(CASE, "forward", ("wrong_at_a_larger_size",))
        (few,) = session.verify(CASE, "forward", ("drops_samples_of_a_large_batch",))
        (later,) = session.run(LARGER, "forward", ("slow_at_first",), budget_s=1.0)
        return found | {"at a small size": small, "of a small batch": few, "later": later}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """All that harm their process, in one session; and under "right afterwards" the right one once more."""
    with _installed("faulty_processes", tmp_path_factory), Session(threads=1) as session:
        session.start([("conv2d", name) for name in _names("faulty_processes")])
        session.effort = replace(session.effort, plan_s=2.0, call_s=2.0)
        found = _measured(session, "faulty_processes", CASE, budget_s=2.0)
        (again,) = session.verify(CASE, "forward", ("right",))
        return found | {"right afterwards": again}


class FakeReader:
    """A GPU that is throttled at its third look, on which this process begins to compute at the first."""

    is_quick = True

    def __init__(self):
        self.looks = 0

    def read(self):
        self.looks += 1
        ours = (os.getpid(),) if self.looks > 1 else ()
        return Reading(sm_mhz=1000.0, throttling=("power cap",) if self.looks == 3 else (), processes=ours)


class SlowReader(FakeReader):
    """One whose looks take long."""

    is_quick = False


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """All plans on the device; under "again" the one whose device is lost by then, and one with little "effort"."""
    with _installed("faulty_devices", tmp_path_factory):
        with Session(threads=1, memory="both", reader=FakeReader(), host=Nobody()) as session:
            found = _measured(session, "faulty_devices", ON_DEVICE, budget_s=1.5)
            (again,) = session.run(ON_DEVICE, "forward", ("loses_its_device",), budget_s=1.0)
        slow = SlowReader()
        with Session(threads=1, memory="both", reader=slow, host=Nobody()) as session:
            session.effort = Effort(min_rounds=3, copied_rounds=1, compared=1, is_watched_slowly=False)
            (brief,) = session.run(ON_DEVICE, "forward", ("right",), budget_s=0.1)
            assert slow.looks == 0
        return found | {"again": again, "effort": brief}


@pytest.mark.parametrize(("module", "name"), FATES, ids=[f"{module}-{name}" for module, name in FATES])
def test_each_gets_its_one_status_and_a_reason(request, module, name):
    fate, row = ZOO[module][name], request.getfixturevalue(module.removeprefix("faulty_"))[name]
    assert row.status in (("OK", "NOISY") if fate.status == "OK" else (fate.status,)), row.reason
    assert fate.words in row.reason
    assert len(row.reason) < 2100
    assert bool(row.reason) or row.status == "OK"


def test_the_table_names_everybody_who_lives_here():
    for module, fates in ZOO.items():
        assert set(fates) - {"not_there"} == set(_load(module).RECORDS)


def test_what_is_wrong_is_not_timed(kernels):
    assert all(row.median_s is None for row in kernels.values() if row.status not in ("OK", "NOISY", "IMPOSSIBLE"))


def test_the_right_one_is_timed_and_within_its_bound(kernels):
    assert kernels["right"].median_s > 0
    assert kernels["right"].error_bounds <= 1


def test_a_slow_first_call_does_not_put_a_larger_case_over_the_budget(kernels):
    assert kernels["slow_at_first"].first_call_s > 0.2
    assert kernels["later"].status in ("OK", "NOISY"), kernels["later"].reason


@pytest.mark.parametrize("what", ["at a small size", "of a small batch"])
def test_what_is_wrong_in_a_large_case_only_is_right_in_a_small_one(kernels, what):
    assert kernels[what].status == "OK", kernels[what].reason


def test_what_computes_in_another_arithmetic_is_told_from_what_is_wrong(kernels):
    assert kernels["right"].ran_arithmetic == "float64"
    assert kernels["flipped_kernel"].ran_arithmetic == ""


def test_what_is_impossible_has_no_speed_ups(kernels):
    assert kernels["caches_by_value"].error_bounds <= 1
    assert kernels["caches_by_value"].speedups == {}


def test_who_is_right_among_them_is_timed_and_goes_on(processes):
    assert processes["right"].median_s > 0
    assert processes["right afterwards"].status == "OK"


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


def test_every_figure_has_a_sample_of_every_round(devices):
    row = devices["right"]
    assert set(row.figures) == {RESIDENT_BY_DEVICE, KERNEL, KERNEL_FLUSHED, END_TO_END}
    assert {len(samples) for samples in row.figures.values()} == {len(row.samples_s)}
    assert all(seconds > 0.002 for samples in row.figures.values() for seconds in samples)
    assert row.clocks == "host and device"


def test_with_less_effort_the_end_to_end_time_is_taken_once_and_the_gpu_is_not_looked_at_slowly(devices):
    row = devices["effort"]
    counts = {figure: len(samples) for figure, samples in row.figures.items()}
    assert len(row.samples_s) >= 3
    assert counts == {**dict.fromkeys((RESIDENT_BY_DEVICE, KERNEL, KERNEL_FLUSHED), len(row.samples_s)), END_TO_END: 1}
    assert row.gpu == {}


def test_what_copies_its_inputs_when_it_is_bound_has_no_end_to_end_time(devices):
    assert set(devices["keeps_tensors_of_its_own"].figures) == {RESIDENT_BY_DEVICE, KERNEL, KERNEL_FLUSHED}


def test_dirty_samples_are_those_of_the_round_that_was_throttled(devices):
    row = devices["right"]
    assert row.dirty_samples == len(row.aside_s) == 1
    assert row.gpu["dirt"] == ["throttled: power cap"]
    assert row.gpu["before"]["sm_mhz"] == row.gpu["after"]["sm_mhz"] == 1000.0


def test_clocks_that_disagree_keep_their_samples(devices):
    assert devices["waits_for_nothing"].samples_s
    assert devices["waits_for_nothing"].median_s is None


def test_a_clock_that_cannot_be_read_leaves_the_hosts(devices):
    row = devices["has_a_broken_clock"]
    assert row.median_s > 0
    assert row.figures == {}
    assert "ZeroDivisionError" in row.clocks


def test_a_lost_device_is_the_reason_of_the_next_row(devices):
    """The worker is replaced; the new one finds no device."""
    assert devices["again"].status == "UNAVAILABLE"
    assert devices["again"].reason == "it fell off the bus"


def test_what_does_not_fit_says_how_many_bytes_it_needs(devices):
    assert "for 3 sets of arrays and one that is checked" in devices["does_not_fit"].reason
