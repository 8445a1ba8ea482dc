"""On a device that works on its own every figure is taken, and faults of waiting, writing or losing it are seen."""

import importlib.util
import os
from pathlib import Path

import pytest

from bench.contamination import Nobody
from bench.measure import Effort, Session
from bench.nvml import Reading
from bench.results import END_TO_END, KERNEL, KERNEL_FLUSHED, RESIDENT_BY_DEVICE
from impls import parse_case
from tests.plugins import install

FOLDER = Path(__file__).parent / "faulty"
CASE = parse_case("conv2d:2x4x3x2,k3x3,f2")


class FakeReader:
    """A GPU that is throttled at its third look, on which this process begins to compute at the first."""

    is_quick = True

    def __init__(self):
        self.looks = 0

    def read(self):
        self.looks += 1
        ours = (os.getpid(),) if self.looks > 1 else ()
        return Reading(sm_mhz=1000.0, throttling=("power cap",) if self.looks == 3 else (), processes=ours)


def _expected():
    spec = importlib.util.spec_from_file_location("faulty_devices", FOLDER / "faulty_devices.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: status for name, (_, status) in module.EXPECTED.items()}


EXPECTED = _expected()


class SlowReader(FakeReader):
    """One whose looks take long."""

    is_quick = False


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """One row per plan, all measured in one session; and under "again" the one whose device is lost by then."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("plugin")
        (folder / "faulty_devices.py").write_text((FOLDER / "faulty_devices.py").read_text())
        install(folder, {f"conv2d.{name}": f"faulty_devices:{name}" for name in EXPECTED}, monkeypatch)
        with Session(threads=1, memory="both", reader=FakeReader(), host=Nobody()) as session:
            found = {r.implementation: r for r in session.run(CASE, "forward", tuple(EXPECTED), budget_s=1.5)}
            (again,) = session.run(CASE, "forward", ("loses_its_device",), budget_s=1.0)
        slow = SlowReader()
        with Session(threads=1, memory="both", reader=slow, host=Nobody()) as session:
            session.effort = Effort(min_rounds=3, copied_rounds=1, compared=1, is_watched_slowly=False)
            (brief,) = session.run(CASE, "forward", ("right",), budget_s=0.1)
            assert slow.looks == 0
        return found | {"again": again, "brief": brief}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_fault_gets_its_status(rows, name):
    row = rows[name]
    assert row.status in ({EXPECTED[name], "NOISY"} if EXPECTED[name] == "OK" else {EXPECTED[name]}), row.reason


def test_every_figure_has_a_sample_of_every_round(rows):
    row = rows["right"]
    assert set(row.figures) == {RESIDENT_BY_DEVICE, KERNEL, KERNEL_FLUSHED, END_TO_END}
    assert {len(samples) for samples in row.figures.values()} == {len(row.samples_s)}
    assert all(seconds > 0.002 for samples in row.figures.values() for seconds in samples)
    assert row.clocks == "host and device"


def test_with_less_effort_the_end_to_end_time_is_taken_once_and_the_gpu_is_not_looked_at_slowly(rows):
    row = rows["brief"]
    counts = {figure: len(samples) for figure, samples in row.figures.items()}
    assert len(row.samples_s) >= 3
    assert counts == {**dict.fromkeys((RESIDENT_BY_DEVICE, KERNEL, KERNEL_FLUSHED), len(row.samples_s)), END_TO_END: 1}
    assert row.gpu == {}


def test_what_copies_its_inputs_when_it_is_bound_has_no_end_to_end_time(rows):
    assert set(rows["keeps_tensors_of_its_own"].figures) == {RESIDENT_BY_DEVICE, KERNEL, KERNEL_FLUSHED}


def test_dirty_samples_are_those_of_the_round_that_was_throttled(rows):
    row = rows["right"]
    assert row.dirty_samples == len(row.aside_s) == 1
    assert row.gpu["dirt"] == ["throttled: power cap"]
    assert row.gpu["before"]["sm_mhz"] == row.gpu["after"]["sm_mhz"] == 1000.0


def test_clocks_that_disagree_say_which_way_and_keep_their_samples(rows):
    assert "not waited for" in rows["waits_for_nothing"].reason
    assert "not in the order of the stream" in rows["on_another_stream"].reason
    assert rows["waits_for_nothing"].samples_s
    assert rows["waits_for_nothing"].median_s is None


def test_a_clock_that_cannot_be_read_leaves_the_hosts(rows):
    row = rows["has_a_broken_clock"]
    assert row.median_s > 0
    assert row.figures == {}
    assert "ZeroDivisionError" in row.clocks


def test_a_lost_device_is_a_row_and_the_reason_of_the_next(rows):
    """The worker is replaced; the new one finds no device."""
    assert "CUDA_ERROR_ILLEGAL_ADDRESS; the worker is replaced" in rows["loses_its_device"].reason
    assert rows["again"].status == "UNAVAILABLE"
    assert rows["again"].reason == "it fell off the bus"


def test_what_does_not_fit_says_how_many_bytes_it_needs(rows):
    assert "100000 bytes are free on the device" in rows["does_not_fit"].reason
    assert "for 3 sets of arrays and one that is checked" in rows["does_not_fit"].reason
