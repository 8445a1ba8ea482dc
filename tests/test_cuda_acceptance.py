"""The acceptance keeps its time, says what it left out, and its page puts what is wrong first."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from bench import cuda_acceptance, cuda_sanitized, lines, programs
from bench.__main__ import accept
from bench.ceilings import CUDA, GBYTES, GFLOPS, Ceiling
from bench.check import Judgement
from bench.cuda_acceptance import PARTS, Options, OutOfTimeError, parse, slice_of
from bench.cuda_ceilings import DEVICE_COPY, FMA, MEMORY
from bench.lines import Lines
from bench.results import Failure, Interval, Row, Run
from impls import OPS, parse_case
from impls.specs import directions_of
from reports import acceptance

ROOT = Path(__file__).parents[1]
CASE = "conv2d:8x16x16x4,k3x3,f8"
ENTRY = {"op": "conv2d", "name": "numba_cuda_direct", "device": "cuda", "competitor": False, "missing": None}
ROW = Row("conv2d", "forward", CASE.partition(":")[2], "numba_cuda_direct", "cuda", False, "direct", "float32", "OK")
RUN = Run("layerbench cuda-acceptance", "networks", 0, 1, "2026-11-21T00:00:00+00:00", {"id": "here"})


# --- what is asked for ---


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--minutes", "0.5"), "--minutes 0.5 is too little: 1 is enough for the ceilings and a part of the checks"),
        (("--minutes", "nan"), "is too little"),
        (("--megabytes", "0"), "--megabytes must be above 0"),
        (("--budget", "-1"), "--budget must be above 0"),
        (("--seed", "-1"), "--seed must be at least 0"),
        (("--part", "everything"), "invalid choice: 'everything'"),
        (("--page-only",), "holds no part of an earlier run"),
    ],
)
def test_what_cannot_be_is_refused_with_its_remedy(tmp_path, capsys, words, reason):
    with pytest.raises(SystemExit) as ended:
        parse(["-o", str(tmp_path / "new"), *words])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_folder_that_cannot_be_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path):
        with pytest.raises(SystemExit):
            parse(["-o", str(folder)])
    assert capsys.readouterr().err.count("cannot be written") == 2


def test_parts_are_done_in_the_order_of_their_worth_whatever_the_order_they_are_asked_in(tmp_path):
    words = ["-o", str(tmp_path / "new"), "--part", "grid", "--part", "ceilings"]
    assert parse(words).parts == ("ceilings", "grid")
    assert parse(words[:2]).parts == PARTS


def test_the_shares_of_all_parts_are_the_whole_time():
    left = 480.0
    for number in range(len(PARTS)):
        left -= slice_of(left, PARTS[number:])
    assert left == pytest.approx(0)


# --- without a device, and with one that goes away ---


def test_without_a_device_it_ends_with_the_reason_and_writes_nothing(tmp_path, capsys, monkeypatch):
    gone = {**ENTRY, "missing": "no CUDA device or driver is visible"}
    monkeypatch.setattr(cuda_acceptance, "records", lambda *unused: iter([gone]))
    assert accept(["-o", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().err
    assert "nothing on CUDA can be used: no CUDA device or driver is visible" in said
    assert "Without a GPU: `layerbench list`" in said
    assert not (tmp_path / "new").exists()


class Lost:
    """A session whose device is lost in the second case, together with the process that computes the truth."""

    def __init__(self, *unused, **also_unused):
        self.cases = 0

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        pass

    def start(self, pairs):
        pass

    def compile(self, pairs, seconds):
        return {name: {"kernels": 2} for _, name in pairs}

    def look(self):
        return None

    def kill(self):
        pass

    def verify(self, case, direction, names):
        self.cases += 1
        if self.cases > 2:
            raise RuntimeError("cudaErrorDevicesUnavailable")
        row = dataclasses.replace(ROW, direction=direction, error_bounds=0.5)
        return [row if self.cases == 1 else dataclasses.replace(row, status="CRASHED", reason="signal 6")]


@pytest.fixture
def with_a_device(monkeypatch, tmp_path):
    """Options for one case on a device that seems to be there."""
    records = {"bench.listing": ENTRY, "bench.truth": {"reason": "CuPy is not wished for"}}
    monkeypatch.setattr(cuda_acceptance, "records", lambda module, *unused: iter([records[module[0]]]))
    (tmp_path / "one.txt").write_text(CASE)
    return ["-o", str(tmp_path / "new"), "--suite", str(tmp_path / "one.txt"), "--part", "correctness"]


def test_a_device_lost_midway_is_rows_and_the_page_says_so_first(with_a_device, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_acceptance, "Session", Lost)
    assert accept(with_a_device) == 1
    page = (tmp_path / "new" / "report.md").read_text()
    assert "**WRONG: 2 kinds of faults, below; 1 checks passed**" in page
    assert "CRASHED | 1 | 8x16x16x4,k3x3,f8: signal 6" in page.replace("**", "")
    assert "the harness: RuntimeError: cudaErrorDevicesUnavailable" in page
    assert page.index("What is wrong") < page.index("What was done")


class Hanging(Lost):
    """A session in which a kernel never ends."""

    def verify(self, case, direction, names):
        time.sleep(60)


def test_a_kernel_that_hangs_does_not_outlast_the_whole_time(with_a_device, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_acceptance, "Session", Hanging)
    monkeypatch.setattr(cuda_acceptance, "LEAST_MINUTES", 0.0)
    started = time.monotonic()
    assert accept([*with_a_device, "--minutes", "0.01"]) == 0
    assert time.monotonic() - started < 30
    page = (tmp_path / "new" / "report.md").read_text()
    assert "**Nothing was checked**" in page
    assert "cut off when the whole time was over" in page


def test_an_alarm_that_was_lost_rings_again(monkeypatch):
    """A destructor that swallows it is not the end of it."""
    monkeypatch.setattr(cuda_acceptance, "ALARM_AGAIN_S", 0.05)
    started = time.monotonic()

    def swallow_once():
        with contextlib.suppress(OutOfTimeError):
            time.sleep(60)
        time.sleep(60)

    with pytest.raises(OutOfTimeError), cuda_acceptance._alarm(0.05, lambda: None):
        swallow_once()
    assert time.monotonic() - started < 30


def test_where_no_alarm_is_heard_the_workers_are_ended(monkeypatch):
    """And not where all ended in time."""
    monkeypatch.setattr(cuda_acceptance, "LAST_RESORT_S", 0.05)
    monkeypatch.delattr(cuda_acceptance.signal, "setitimer")
    ended = threading.Event()
    with cuda_acceptance._alarm(0.0, ended.set):
        assert ended.wait(30)
    called = threading.Event()
    with cuda_acceptance._alarm(0.0, called.set):
        pass
    assert not called.wait(0.2)


def test_the_truth_is_proven_by_another_process_and_computed_here_if_it_hangs(with_a_device, tmp_path, monkeypatch):
    def records(module, *unused):
        if module[0] == "bench.truth":
            raise Failure("TIMEOUT", "bench.truth was cut off after 30 s")
        return iter([ENTRY])

    asked = []
    monkeypatch.setattr(cuda_acceptance, "records", records)
    monkeypatch.setattr(cuda_acceptance, "Session", Lost)
    monkeypatch.setattr(cuda_acceptance.machine, "describe", lambda device: asked.append(device) or {"id": "here"})
    accept([*with_a_device, "--part", "environment", "--part", "networks"])
    parts = acceptance.read(cuda_acceptance.files(tmp_path / "new"))
    (truth,) = parts["environment"].records["truth"]
    assert truth == {"on": "host", "reason": "TIMEOUT: bench.truth was cut off after 30 s"}
    assert [*parts] == ["environment", "correctness", "networks"]
    assert asked == [None], "the machine is described once"
    page = (tmp_path / "new" / "report.md").read_text()
    assert "on the host (TIMEOUT: bench.truth was cut off after 30 s)" in page
    assert "| kernels compiled | 2 in 0.0 s |" in page


@pytest.mark.parametrize("part", cuda_acceptance.CORE)
def test_the_core_of_a_part_is_timed_first_in_its_order(tmp_path, part):
    """Every case of it is in the part; about forty jobs of the networks have all operations and directions."""
    options = Options(tmp_path)
    work = cuda_acceptance._Work(options, Lost(), (), "", cuda_acceptance._suites(options))
    work.entries = tuple({**ENTRY, "op": op} for op in OPS)
    core = [parse_case(text) for text in cuda_acceptance.CORE[part]]
    jobs = work._jobs(part, competitors=True)
    places = [core.index(case) if (case := cuda_acceptance._of_one(job.case)) in core else len(core) for job in jobs]
    assert places == sorted(places)
    assert set(places) == set(range(len(core) + 1))
    first = [job for job, place in zip(jobs, places, strict=True) if place < len(core)]
    if part == "networks":
        assert 40 <= len(first) <= 50
        assert {(job.case.op, job.direction) for job in first} == {(job.case.op, job.direction) for job in jobs}


class Slow(Lost):
    """A session in which every case outlasts its part."""

    def verify(self, case, direction, names):
        time.sleep(0.3)
        return [dataclasses.replace(ROW, direction=direction)]


def test_what_a_part_leaves_out_is_said(with_a_device, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_acceptance, "Session", Slow)
    monkeypatch.setattr(cuda_acceptance, "LEAST_MINUTES", 0.0)
    monkeypatch.setattr(cuda_acceptance, "slice_of", lambda seconds, left: 0.2)
    assert accept(with_a_device) == 0
    page = (tmp_path / "new" / "report.md").read_text()
    assert "2 of 3 cases and directions: the time of this part was over" in page


def test_a_job_has_little_more_than_the_time_of_its_part(with_a_device, monkeypatch):
    sessions = []

    class Seen(Slow):
        def __init__(self, *unused, **also_unused):
            super().__init__()
            sessions.append(self)

    monkeypatch.setattr(cuda_acceptance, "Session", Seen)
    accept([*with_a_device, "--minutes", "1"])
    left = sessions[0].deadline - cuda_acceptance.timing.CLOCK()
    assert 0 < left - cuda_acceptance.EFFORT.call_s < 60


@pytest.mark.parametrize(
    ("program", "seconds", "status", "reason"),
    [
        ("raise SystemExit(3)", 60, "CRASHED", "ended with status 3"),
        ("import time; time.sleep(60)", 3, "TIMEOUT", "was cut off after 3 s"),
    ],
)
def test_what_a_child_printed_before_it_failed_is_kept(tmp_path, monkeypatch, program, seconds, status, reason):
    (tmp_path / "failing.py").write_text(f"print('{{\"a\": 1}}', flush=True)\n{program}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = []
    with pytest.raises(Failure, match=reason) as failure:
        found.extend(programs.records(["failing"], seconds))
    assert failure.value.status == status
    assert found == [{"a": 1}]


def test_a_sanitizers_list_has_every_entry_in_every_direction_and_every_case_is_tiny():
    calls = cuda_sanitized.wanted([])
    assert {(case.op, name) for case, _, name in calls} == {
        (op, name) for op, of in cuda_sanitized.NAMES.items() for name in of
    }
    assert {(case.op, direction) for case, direction, _ in calls} == {(op, d) for op in OPS for d in directions_of(op)}
    assert max(case.spec.bytes for case, _, _ in calls) < 2000


def test_a_result_that_is_wrong_under_a_sanitizer_is_said(monkeypatch):
    calls = [(parse_case("dense:2x3,u4"), "forward", name) for name in ("numpy", "numba_cuda_none")]
    monkeypatch.setattr(cuda_sanitized.check, "verdict", lambda *unused: Judgement(7.0, "at (0, 0)"))
    (wrong, failed) = cuda_sanitized.computed(calls)
    assert (wrong["status"], wrong["reason"]) == ("WRONG", "at (0, 0): 7 times its bound")
    assert failed["status"] == "ERROR"


def test_calls_that_a_sanitizer_did_not_reach_are_said_one_by_one(with_a_device, tmp_path, monkeypatch):
    first = {**cuda_sanitized.described(cuda_sanitized.wanted([CASE])[0]), "status": "OK", "bounds": 0.5, "reason": ""}

    def records(module, *unused):
        if module[0] == "bench.listing":
            yield ENTRY
        else:
            yield first
            raise Failure("TIMEOUT", "bench.cuda_sanitized was cut off after 9 s")

    monkeypatch.setattr(cuda_acceptance, "records", records)
    monkeypatch.setattr(cuda_acceptance.shutil, "which", lambda program: program)
    monkeypatch.setattr(cuda_acceptance, "Session", Lost)
    assert accept([*with_a_device[:-1], "sanitizer"]) == 0
    page = (tmp_path / "new" / "report.md").read_text()
    assert "memcheck reached 1 of 9 calls; racecheck reached 1 of 9 calls" in page
    assert f"| numba_cuda_tiles | {CASE} | forward | OK | OK | OK |" in page
    assert f"| numba_cuda_viafft | {CASE} | grad_input | NOT REACHED | NOT REACHED | NOT REACHED |" in page


def test_what_a_sanitizer_finds_is_wrong(tmp_path, monkeypatch, with_a_device):
    """A stand-in that finds an error with memcheck, and runs the program it is given."""
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    program = f"""\
        #!{sys.executable}
        import pathlib, subprocess, sys
        words = sys.argv[1:]
        pathlib.Path(words[words.index("--log-file") + 1]).write_text("Invalid __global__ write")
        code = subprocess.call(words[words.index("--log-file") + 2 :])
        sys.exit(86 if "memcheck" in words else code)
        """
    tool.write_text(textwrap.dedent(program))
    tool.chmod(0o755)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    (tmp_path / "one.txt").write_text("maxpool2d:1x4x4x1,pool2")
    assert accept([*with_a_device[:-1], "sanitizer"]) == 1
    parts = acceptance.read(cuda_acceptance.files(tmp_path / "new"))
    found = {tool["name"]: (tool["status"], tool["calls"]) for tool in parts["sanitizer"].records["tool"]}
    assert found["memcheck"] == ("CRASHED", 2)
    assert {tool: status for tool, (status, _) in found.items()} == {
        "memcheck": "CRASHED",
        "racecheck": "OK",
        "initcheck": "OK",
    }
    assert "see compute-sanitizer-memcheck.txt" in (tmp_path / "new" / "report.md").read_text()


# --- lines ---


def test_a_row_comes_back_from_its_line(tmp_path):
    row = dataclasses.replace(
        ROW, samples_s=(1.0, 2.0), speedups={"torch_cuda": Interval(1.0, 0.9, 1.1)}, threads={"numba": (2,)}
    )
    file = Lines(tmp_path / "rows.jsonl")
    file.add("run", dataclasses.asdict(RUN))
    file.add_row(row)
    (_, run), (_, record) = lines.read(file.path)
    assert (lines.run_of(run), lines.row_of(record)) == (RUN, row)


def test_a_line_that_was_cut_off_ends_the_file_and_spoils_nothing(tmp_path):
    file = Lines(tmp_path / "rows.jsonl")
    file.add_row(dataclasses.replace(ROW, error_bounds=math.inf))
    with file.path.open("a") as stream:
        stream.write('{"row": {"op": "conv')
    assert [(kind, record["error_bounds"]) for kind, record in lines.read(file.path)] == [("row", None)]


def test_two_runs_never_share_a_file(tmp_path):
    Lines(tmp_path / "rows.jsonl")
    with pytest.raises(FileExistsError):
        Lines(tmp_path / "rows.jsonl")


# --- the page ---


@pytest.mark.parametrize(
    ("points", "threshold", "errors"),
    [
        ([(1, False), (2, False), (3, True), (4, True)], 3, 0),
        ([(1, False), (2, True), (3, False), (4, True)], 4, 1),
        ([(1, True), (2, True)], 1, 0),
        ([(1, False), (2, False)], None, 0),
        ([(1, False), (2, True), (2, True), (2, False)], 2, 1),
    ],
)
def test_the_crossover_is_where_the_fewest_cases_disagree(points, threshold, errors):
    assert acceptance.crossover(points) == (threshold, errors)


def limits(bytes_per_s: float, flops_per_s: float) -> tuple[Ceiling, ...]:
    """A device that copies and computes at these rates."""
    return (
        Ceiling(DEVICE_COPY, GBYTES, (bytes_per_s / 1e9,), CUDA, level=MEMORY, beyond=10**9),
        Ceiling(FMA, GFLOPS, (flops_per_s / 1e9,), CUDA),
    )


def test_the_ceiling_that_binds_is_the_one_that_takes_longer():
    row = dataclasses.replace(ROW, median_s=1.0)
    spec = parse_case(CASE).spec
    assert acceptance.fraction_of_bound(row, limits(spec.bytes, 1e30)) == (pytest.approx(1.0), True)
    assert acceptance.fraction_of_bound(row, limits(1e30, 4 * spec.flops)) == (pytest.approx(0.25), False)


def test_copies_are_held_against_flushed_caches_and_arithmetic_against_hot_ones():
    row = dataclasses.replace(ROW, median_s=9.0, figures={"kernel": (1.0,), "kernel_flushed": (2.0,)})
    spec = parse_case(CASE).spec
    assert acceptance.fraction_of_bound(row, limits(spec.bytes, 1e30)) == (pytest.approx(0.5), True)
    assert acceptance.fraction_of_bound(row, limits(1e30, spec.flops)) == (pytest.approx(1.0), False)


def test_a_mean_says_on_how_many_of_the_cases_it_stands():
    part = acceptance.Part("networks", RUN, rivals_of(ROW, torch_cuda="float32"))
    part.records["planned"].append({"conv2d forward": 32})
    ((line,),) = [section.lines for section in acceptance.means_table(part).sections]
    assert line.cells[:3] == ("numba_cuda_direct", "torch_cuda", "1 of 32")


def rivals_of(row: Row, **arithmetic: str) -> list[Row]:
    """A timed row of ours, twice as fast as every competitor, and theirs, with the arithmetic of each."""
    speedups = {name: Interval(2.0, 1.9, 2.1) for name in arithmetic}
    ours = dataclasses.replace(row, median_s=1.0, low_s=0.9, high_s=1.1, speedups=speedups)
    theirs = (
        dataclasses.replace(row, implementation=name, competitor=True, arithmetic=found, median_s=2.0)
        for name, found in arithmetic.items()
    )
    return [ours, *theirs]


def test_float32_is_never_compared_with_tf32():
    rows = rivals_of(ROW, torch_cuda="float32", torch_cuda_tf32="TF32")
    tf32 = dataclasses.replace(ROW, implementation="cupy_gemm_tf32", arithmetic="TF32")
    rows += rivals_of(tf32, torch_cuda="float32", torch_cuda_tf32="TF32")[:1]
    table = acceptance.means_table(acceptance.Part("networks", RUN, rows))
    found = {(s.title, line.cells[0], line.cells[1]) for s in table.sections for line in s.lines}
    assert found == {
        ("float32: conv2d forward", "numba_cuda_direct", "torch_cuda"),
        ("TF32: conv2d forward", "cupy_gemm_tf32", "torch_cuda_tf32"),
    }


def test_the_worst_case_is_that_of_the_best_of_ours_against_the_best_of_theirs():
    def row(name, median, spec):
        speedups = {"torch_cuda": Interval(median, 0, 0), "keras_jax_cuda": Interval(median / 2, 0, 0)}
        return dataclasses.replace(ROW, implementation=name, spec=spec, median_s=1.0, speedups=speedups)

    rows = [row("slow", 0.2, "8x8x8x4,k3x3,f8"), row("fast", 0.6, "8x8x8x4,k3x3,f8"), row("fast", 4, "8x9x9x4,k3x3,f8")]
    for name in ("torch_cuda", "keras_jax_cuda"):
        rows += [dataclasses.replace(r, implementation=name, competitor=True) for r in rows[1:3]]
    (section,) = acceptance.worst_table(rows).sections
    assert [line.cells[2:5] for line in section.lines] == [
        ("fast", "keras_jax_cuda", "0.30"),
        ("fast", "keras_jax_cuda", "2.00"),
    ]


def test_published_times_stand_beside_the_best_of_ours_end_to_end():
    """And what has no end-to-end figure is not shown, since a resident time is another thing."""
    spec = "32x16x16x16,k3x3,f16"
    figures = {"slow": (0.5, 0.5, 0.5), "fast": (0.001, 0.002, 0.003)}
    row = dataclasses.replace(ROW, spec=spec, median_s=1e-6)
    rows = [dataclasses.replace(row, implementation=n, figures={"end_to_end": s}) for n, s in figures.items()]
    frame = acceptance.published.conv_forward_ms()
    theirs = frame[(frame["case"] == spec) & frame["implementation"].isin(acceptance.PUBLISHED)]["published_ms"].min()
    (section,) = acceptance.published_table(rows).sections
    (line,) = section.lines
    assert line.cells[:3] == (spec, "fast", "2.00")
    assert line.strong == (theirs / 2 < acceptance.AIM)
    assert not acceptance.published_table([row]).sections


def test_a_competitor_that_is_wrong_is_not_ours_to_mend():
    rows = [dataclasses.replace(ROW, status="ERROR", competitor=True)]
    assert not acceptance.wrong_table({"networks": acceptance.Part("networks", RUN, rows)}).sections


def test_a_part_becomes_a_results_folder_of_the_kind_that_is_kept(tmp_path):
    file = Lines(tmp_path / "4-networks.jsonl")
    file.add("run", dataclasses.asdict(RUN))
    for row in rivals_of(dataclasses.replace(ROW, samples_s=(1.0, 1.1, 0.9)), torch_cuda="float32"):
        file.add_row(row)
    file.add("end", {"left_out": "", "seconds": 1})
    assert accept(["-o", str(tmp_path), "--page-only"]) == 0
    assert "float32: conv2d forward" in (tmp_path / "report.md").read_text()
    assert "torch_cuda" in (tmp_path / "networks" / "measurements.csv").read_text()
    assert (tmp_path / "networks" / "README.md").exists()


def test_a_part_without_an_end_was_cut_off(tmp_path):
    path = Lines(tmp_path / "4-networks.jsonl").path
    path.write_text(json.dumps({"run": dataclasses.asdict(RUN)}) + "\n")
    acceptance.write_page(tmp_path, {"networks": path})
    assert "cut off before its end" in (tmp_path / "report.md").read_text()


def test_every_option_is_in_the_options(tmp_path):
    assert parse(["-o", str(tmp_path / "new"), "--threads", "1"]) == Options(tmp_path / "new")


def test_the_installed_command_is_the_same_program(tmp_path):
    from click.testing import CliRunner

    from bench.cli import main

    found = CliRunner().invoke(main, ["cuda-acceptance", "-o", str(tmp_path / "new"), "--minutes", "0.1"])
    assert found.exit_code == 2
    assert "--minutes 0.1 is too little" in found.output + (found.stderr if found.stderr_bytes else "")


def test_what_the_page_for_a_new_gpu_says_exists():
    """Its commands, the options of the acceptance, its tox environments, its parts."""
    from bench.cli import main

    text = (ROOT / "docs" / "new-gpu.md").read_text()
    commands = set(re.findall(r"^    (?:layerbench|python -m bench) ([a-z-]+)", text, re.MULTILINE))
    assert {"list", "cuda-acceptance", "verify", "run"} <= commands <= set(main.commands)
    options = set(re.findall(r"(--[a-z-]+)", " ".join(re.findall(r"cuda-acceptance(.*)", text))))
    assert {"--minutes", "--megabytes", "--page-only"} <= options
    assert options <= set(cuda_acceptance.command_line()._option_string_actions)
    environments = set(re.findall(r"tox -e (\w+)", text))
    assert environments == {"cuda", "cuda13"}
    assert all(f"[testenv:{name}]" in (ROOT / "tox.ini").read_text() for name in environments)
    assert [word for word in re.findall(r"^\| (\w+) \|", text, re.MULTILINE) if word in PARTS] == list(PARTS)
