"""The page of a machine: every figure, two machines beside each other, and the roofline."""

import dataclasses
import re

import pytest
from click.testing import CliRunner
from PIL import Image

from bench import cli, profile_machine
from bench.ceilings import Ceiling, MachineProfile, read_profile, write_profile
from bench.results import Row
from reports import profiles, roofline

MACHINE = {"id": "box", "cpu": "Some CPU", "os": "Linux", "commit": "abc"}
ONE = (
    Ceiling("float32 multiply-add, 512 bits", "GFLOP/s", (90.0, 100.0), threads=1),
    Ceiling("read, L1", "GB/s", (200.0, 150.0), threads=1, level="L1", touched=24576),
    Ceiling("copy, DRAM", "GB/s", (10.0,), threads=1, level="DRAM", beyond=2**20),
)
ALL = tuple(dataclasses.replace(c, threads=2, samples=tuple(2 * s for s in c.samples)) for c in ONE)
FAULT = Ceiling("page fault", "ns", (500.0, 400.0), threads=2)
PROFILE = MachineProfile(MACHINE, 2, "2026-11-21T00:00:00+00:00", (*ONE, *ALL, FAULT), {"cuda": "no device"})
ROWS = [
    Row(op, "forward", spec, name, "cpu", name == "keras", "gemm", "float32", "OK", median_s=1.0, gflops=rate)
    for op, spec in (("dense", "64x512,u256"), ("maxpool2d", "2x8x8x4,pool2x2"))
    for name, rate in (("numpy", 20.0), ("keras", 0.01))
]


def test_every_figure_is_on_the_page_with_its_best_median_and_threads():
    table = profiles.table(PROFILE)
    assert [section.title for section in table.sections] == ["operations", "memory", "costs"]
    lines = [line.cells for section in table.sections for line in section.lines]
    assert len(lines) == len(PROFILE.ceilings)
    assert next(cells[2:5] for cells in lines if cells[0] == "read, L1") == ("GB/s", "200", "175")
    assert lines[-1][:4] == ("page fault", "2", "ns", "400")
    assert dict(profiles.report(PROFILE).heading)["not measured"] == "cuda (no device)"


def test_two_machines_are_compared_one_thread_with_one_and_all_with_all():
    """Above 1 the second is better, of times too; figures that one has not are left out."""
    larger = MachineProfile({}, 8, "", (*ONE, *(dataclasses.replace(c, threads=8) for c in (ALL[0], FAULT))), {})
    slower = tuple(dataclasses.replace(c, samples=tuple(2 * s for s in c.samples)) for c in larger.ceilings)
    frame = profiles.compared(PROFILE, dataclasses.replace(larger, ceilings=slower))
    found = {(r.figure, r.which): (r.threads_a, r.threads_b, r.b_over_a) for r in frame.itertuples()}
    assert found == {
        ("float32 multiply-add, 512 bits", "1"): (1, 1, 2.0),
        ("read, L1", "1"): (1, 1, 2.0),
        ("copy, DRAM", "1"): (1, 1, 2.0),
        ("float32 multiply-add, 512 bits", "all"): (2, 8, 2.0),
        ("page fault", "all"): (2, 8, 0.5),
    }


def test_two_profiles_are_compared_by_the_command_and_a_profile_with_something_else_is_refused(tmp_path):
    a, b, other = (tmp_path / name for name in ("a.json", "b.json", "other.json"))
    write_profile(a, PROFILE)
    write_profile(b, dataclasses.replace(PROFILE, threads=1, ceilings=(*ONE, FAULT)))
    other.write_text("{}")
    done = CliRunner().invoke(cli.main, ["compare", str(a), str(b)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert re.search(r"read, L1 +1 +1 +GB/s +200 +200 +1.00", done.output)
    for pair, words in (((a, other), "other.json is no profile"), ((a, b, "--fail-above", "5%"), "are for runs")):
        refused = CliRunner().invoke(cli.main, ["compare", *map(str, pair)])
        assert refused.exit_code == 2
        assert words in refused.output


def test_a_comparison_says_what_only_one_machine_has():
    shown = profiles.comparison(PROFILE, dataclasses.replace(PROFILE, ceilings=ONE))
    assert dict(shown.heading)["only one has"] == "page fault"


def test_the_roofs_are_those_of_the_threads_and_every_timed_row_is_a_point():
    figure = roofline.figure(MACHINE, PROFILE.ceilings, 2, [*ROWS, dataclasses.replace(ROWS[0], status="WRONG")])
    (axis,) = figure.axes
    texts = {text.get_text().strip() for text in axis.texts}
    assert texts == {"L1: 400 GB/s", "DRAM: 20.0 GB/s", "float32 multiply-add, 512 bits: 200"}
    points = [line for line in axis.lines if line.get_linestyle() == "None"]
    assert sorted(line.get_ydata()[0] for line in points) == [0.01, 0.01, 20.0, 20.0]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["dense", "maxpool2d", "numpy", "keras"]


def test_every_point_lies_within_the_figure():
    (axis,) = roofline.figure(MACHINE, PROFILE.ceilings, 2, ROWS).axes
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    for line in axis.lines:
        assert all(left <= x <= right for x in line.get_xdata())
        assert all(bottom <= y <= top for y in line.get_ydata())


def test_a_roofline_without_roofs_is_refused():
    with pytest.raises(ValueError, match="a rate of operations and one of memory"):
        roofline.figure(MACHINE, ALL[:1], 2)


def test_a_machine_of_which_nothing_could_be_measured_has_a_page_without_a_figure(tmp_path):
    nothing = dataclasses.replace(PROFILE, ceilings=(), missing={"vectors, 2 threads": "CRASHED: signal 4"})
    written = profiles.write(tmp_path, nothing)
    assert [path.name for path in written] == ["profile.md", "profile.json"]
    assert "CRASHED: signal 4" in written[0].read_text()


def test_the_command_prints_the_page_and_writes_what_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(profile_machine, "profile", lambda *unused: PROFILE)
    words = ["profile", "-o", str(tmp_path / "out"), "--json", str(tmp_path / "p.json")]
    done = CliRunner().invoke(cli.main, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "float32 multiply-add, 512 bits" in done.output
    assert read_profile(tmp_path / "p.json") == read_profile(tmp_path / "out" / "profile.json") == PROFILE
    assert "| copy, DRAM | 2 |" in (tmp_path / "out" / "profile.md").read_text()
    with Image.open(tmp_path / "out" / "roofline.png") as image:
        assert image.size == (850, 560)


def test_a_store_that_does_not_exist_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(profile_machine, "profile", lambda *unused: pytest.fail("measured"))
    done = CliRunner().invoke(cli.main, ["profile", "--db", str(tmp_path / "none.sqlite")])
    assert done.exit_code == 2
    assert "there is no store" in done.output
