"""What reports say of a small store whose numbers can be checked by hand."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench import ranking
from bench.ceilings import Ceiling
from bench.results import Interval, Row, Run
from bench.store import Store
from impls.specs import ConvSpec
from reports import folder, formats, frames, published, tables

MACHINE = {
    "id": "box",
    "cpu": "Some CPU",
    "cores": 2,
    "memory_gb": 24.0,
    "commit": "abc123",
    "versions": {"keras": "3"},
}
RUN = Run("layerbench run", "paper", seed=0, threads=2, started="2025-01-02T03:04:05Z", machine=MACHINE, id=1)

SMALL = "32x2x2x16,k3x3,f16"
LARGE = "32x4x4x16,k3x3,f16"


def row(name, spec=SMALL, ms=1.0, over_keras=None, status="OK", samples_ms=None, op="conv2d", **more):
    """A row whose times are given in milliseconds: a median with an interval of 10 % on either side."""
    is_timed = status in ("OK", "NOISY")
    samples = tuple(1e-3 * sample for sample in samples_ms or (ms,) * 5) if is_timed else ()
    measured = {"median_s": ms * 1e-3, "low_s": 0.9e-3 * ms, "high_s": 1.1e-3 * ms, "min_s": 0.9e-3 * ms}
    values = {
        "direction": "forward",
        "device": "cpu",
        "algorithm": "gemm",
        "arithmetic": "float32",
        "suite": "paper",
        "competitor": name in ("keras", "torch"),
        "error_bounds": None if name in ("keras", "torch") else 0.25,
        "gflops": 10.0 / ms if is_timed else None,
        "samples_s": samples,
        "speedups": {"keras": Interval(over_keras, 0.9 * over_keras, 1.1 * over_keras)} if over_keras else {},
    }
    return Row(op=op, spec=spec, implementation=name, status=status, **values | (measured if is_timed else {}) | more)


ROWS = (
    row("numpy_gemm", SMALL, ms=2.0, over_keras=2.0),
    row("numpy_gemm", LARGE, ms=8.0, over_keras=0.5, status="NOISY"),
    row("cv2", SMALL, ms=1.0, over_keras=4.0, error_bounds=0.5, fraction=0.25),
    row("cv2", LARGE, status="WRONG", reason="a pixel | is off", error_bounds=7.0),
    row("cuda", SMALL, status="UNAVAILABLE", reason="no driver"),
    row("cuda", LARGE, status="UNAVAILABLE", reason="no driver"),
    row("keras", SMALL, ms=4.0),
    row("keras", LARGE, ms=4.0),
)


def line_of(table, name, section=0):
    """The cells of the line that starts with this name."""
    return next(line.cells for line in table.sections[section].lines if line.cells[0] == name)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ({"A": [1.0] * 5, "B": [2.0] * 5, "C": [3.0] * 5}, "A < B < C"),
        ({"C": [3.0] * 5, "B": [1.0, 1.2, 0.9, 1.1, 1.0], "A": [1.1, 1.0, 1.0, 0.9, 1.05]}, "B = A < C"),
        ({"A": [1.0, 1.0], "B": [2.0, 2.0]}, "A = B"),
        ({"A": [1.0] * 5}, "A"),
        ({}, ""),
    ],
    ids=["clear", "two that change places tie", "too few rounds to tell", "alone", "nothing"],
)
def test_a_ranking_ties_what_its_rounds_cannot_tell_apart(samples, expected):
    assert ranking.ranking_text(ranking.ranking(samples)) == expected


def test_measurements_carry_units_sizes_and_ratios():
    frame = frames.measurements(ROWS)
    first = frame.iloc[0]
    assert len(frame) == len(ROWS)
    assert first[["median_ms", "low_ms", "high_ms"]].tolist() == pytest.approx([2.0, 1.8, 2.2])
    assert first[["over_keras", "over_keras_low", "over_keras_high"]].tolist() == pytest.approx([2.0, 1.8, 2.2])
    assert first[["batch", "side", "channels", "filters", "kernel", "padding"]].tolist() == [
        32,
        2,
        16,
        16,
        "3x3",
        "same",
    ]
    assert frame["median_ms"].isna().sum() == 3


@pytest.mark.parametrize(
    ("op", "spec", "expected"),
    [
        ("dense", "32x784,u128", {"batch": 32, "inputs": 784, "units": 128}),
        ("maxpool2d", "1x4x6x8,pool2x2", {"height": 4, "width": 6, "pool": "2x2", "stride": "2x2"}),
        ("conv2d", "1x8x8x1,k3x3,f1,p1:0:2:1", {"padding": "1:0:2:1", "side": 8}),
    ],
)
def test_every_kind_of_spec_becomes_columns(op, spec, expected):
    record = frames.measurements([row("numpy", spec, op=op)]).iloc[0]
    assert {name: record[name] for name in expected} == expected


def test_an_image_that_is_not_square_has_no_side():
    assert pd.isna(frames.measurements([row("numpy", "1x4x6x8,pool2x2", op="maxpool2d")])["side"].iloc[0])


def test_a_store_becomes_one_frame_that_names_the_run_of_every_row(tmp_path):
    store = Store(tmp_path / "small.sqlite")
    first, second = store.start(RUN), store.start(RUN)
    for number, run in enumerate((first, second), start=1):
        for each in ROWS[:number]:
            store.add(run, each)
    frame = frames.stored(store)
    store.close()
    assert frame["run_id"].tolist() == [1, 2, 2]
    assert set(frame["machine"]) == {"box"}


def test_of_a_case_measured_twice_the_later_row_counts():
    again = row("numpy_gemm", SMALL, ms=9.0)
    assert [each.median_s for each in frames.latest([ROWS[0], again])] == [again.median_s]


def test_selecting_keeps_what_matches_everything_asked():
    assert {each.spec for each in frames.select(ROWS, ops=["conv2d"], implementations=["cv2"])} == {SMALL, LARGE}
    assert frames.select(ROWS, suites=["quick"]) == ()


def test_the_summary_says_what_gives_other_bits_from_call_to_call():
    rows = (row("numpy_gemm", repeatable=False), row("keras", repeatable=True))
    section = tables.summary(RUN, rows).sections[0]
    assert [line.cells[-1] for line in section.lines] == ["1 not repeatable", "none"]


def test_the_summary_says_right_error_ratio_and_what_is_not_ok():
    table = tables.summary(RUN, ROWS)
    assert line_of(table, "numpy_gemm")[1:4] == ("2/2", "0.25", "1.00 ±100%")
    assert line_of(table, "cv2") == ("cv2", "1/2", "7.0", "4.00", "1-0-0", "10.0", "25%", "1 wrong")
    assert line_of(table, "numpy_gemm")[4] == "1-1-0"
    assert line_of(table, "keras †")[1] == formats.MISSING


def test_the_heading_says_what_the_rows_are_held_against():
    ceiling = Ceiling("read, L1", "GB/s", (100.0, 500.0), threads=RUN.threads, level="L1")
    run = replace(RUN, machine={**MACHINE, "ceilings": [ceiling.record()]})
    assert dict(tables.heading(run, ROWS))["ceilings"] == "L1 500 GB/s"
    assert "ceilings" not in dict(tables.heading(RUN, ROWS))


def test_over_many_cases_the_summary_counts_only_what_is_shown_for_all_together():
    """Of 58 cases without a difference some fall below 5 % by chance; one more is five times as slow."""
    rng = np.random.default_rng(0)
    specs = [f"32x{n}x2x16,k3x3,f16" for n in range(2, 60)]
    rows = [
        row(name, spec, samples_ms=rng.lognormal(0, 0.05, 15).tolist(), over_keras=None if name == "keras" else 1.0)
        for spec in specs
        for name in ("ours", "keras")
    ]
    slow = row("ours", SMALL.replace("f16", "f8"), samples_ms=(5 * rng.lognormal(0, 0.05, 15)).tolist(), over_keras=0.2)
    rows += [slow, row("keras", slow.spec, samples_ms=rng.lognormal(0, 0.05, 15).tolist())]
    assert line_of(tables.summary(RUN, rows), "ours")[4] == "0-1-58"


def test_the_summary_lists_ours_by_speed_and_competitors_last():
    names = [line.cells[0] for line in tables.summary(RUN, ROWS).sections[0].lines]
    assert names == ["cv2", "numpy_gemm", "keras †"]


def test_what_the_machine_cannot_run_is_said_once_and_stays_in_the_frames():
    assert tables.not_timed(RUN, ROWS).sections[0].title == "this machine"
    (line,) = tables.not_timed(RUN, ROWS).sections[0].lines
    assert line.cells[:3] == ("cuda", "UNAVAILABLE", "2")
    assert "cuda" in set(tables.summary(RUN, ROWS).frame["implementation"])
    assert "cuda" not in dict(tables.heading(RUN, ROWS))["implementations"]


def test_the_means_say_on_how_many_cases_they_stand_and_why_others_are_left_out():
    frame = tables.means(RUN, ROWS).frame.set_index("implementation")
    assert frame.loc["numpy_gemm", ["cases", "speedup", "left_out"]].tolist() == [2, pytest.approx(1.0), ""]
    assert frame.loc["cv2", ["cases", "speedup", "left_out"]].tolist() == [1, 4.0, "1 wrong"]
    assert line_of(tables.means(RUN, ROWS), "cv2")[-1] == "1 wrong"


def test_a_case_without_the_competitor_s_time_is_left_out_by_name():
    lone = row("numpy_gemm", LARGE, ms=8.0)
    late = row("keras", LARGE, status="OVER_BUDGET")
    assert tables.means(RUN, [ROWS[0], lone, late]).frame["left_out"].tolist() == ["1 keras over budget"]


def test_the_detail_shows_every_row_in_the_order_of_time_with_its_rank():
    table = tables.detail(RUN, ROWS)
    assert [line.cells[0] for line in table.sections[0].lines] == ["cv2", "numpy_gemm", "keras †", "cuda"]
    assert line_of(table, "cv2")[1:3] == ("1.00 ±10%", "10.0")
    assert [line.cells[-1] for line in table.sections[0].lines] == ["1", "2", "3", formats.MISSING]
    assert [line.strong for line in table.sections[0].lines] == [True, False, False, False]
    assert line_of(table, "numpy_gemm", section=1)[1] == "~8.00 ±10%"
    assert line_of(table, "cv2", section=1)[1] == "WRONG"


def test_ties_share_a_rank_and_the_next_place_is_skipped():
    tied = [row(name, ms=1.0) for name in ("a", "b")] + [row("c", ms=2.0)]
    assert [line.cells[-1] for line in tables.detail(RUN, tied).sections[0].lines] == ["1=", "1=", "3"]


def test_the_best_of_ours_stands_beside_the_ranking_of_all():
    table = tables.best(RUN, ROWS)
    assert line_of(table, SMALL) == (SMALL, "cv2", "1.00 ±10%", "4.00 ±10%", "20%", "cv2 < numpy_gemm < keras")
    assert line_of(table, LARGE)[1:] == ("numpy_gemm", "~8.00 ±10%", "0.50 ±10%", "20%", "keras < numpy_gemm")


def test_a_pivot_has_a_line_per_case_and_says_why_a_cell_is_empty():
    table = tables.pivot(RUN, ROWS)
    assert table.headings == ("case", "cv2", "numpy_gemm", "keras †", "fastest")
    assert line_of(table, LARGE) == (LARGE, "wrong", "~8.00", "4.00", "keras")
    assert table.frame["numpy_gemm_ms"].tolist() == pytest.approx([2.0, 8.0])
    assert table.frame["not_timed"][1] == "cv2 WRONG: a pixel | is off; cuda UNAVAILABLE: no driver"


def test_what_was_not_timed_is_listed_with_its_reason():
    assert line_of(tables.not_timed(RUN, ROWS), "cuda") == ("cuda", "UNAVAILABLE", "2", "no driver")
    several = [row("a", spec, status="OVER_BUDGET", reason=spec) for spec in (SMALL, LARGE)]
    assert line_of(tables.not_timed(RUN, several), "a")[-1] == f"{SMALL} (and 1 other reasons)"


def test_the_heading_names_machine_threads_commit_contents_and_declarations():
    lines = dict(tables.heading(RUN, ROWS))
    assert lines["machine"] == "box, Some CPU, 2 cores, 24 GB"
    assert lines["commit"] == "abc123"
    assert lines["threads"] == "2"
    assert "hot caches" in lines["a time is"]
    assert "cv2 (gemm, float32, cpu)" in lines["implementations"]


def test_a_machine_that_says_nothing_of_itself_still_has_a_report():
    bare = Run("c", "s", seed=0, threads=1, started="2025-01-02", machine={})
    assert "machine" not in dict(tables.heading(bare, ROWS))
    assert "1 thread" in tables.summary(bare, ROWS).title


@pytest.mark.parametrize("pivoted", [False, True])
def test_a_csv_reads_back_to_the_same_numbers(pivoted):
    report = tables.report(RUN, ROWS, pivoted=pivoted, with_published=True)
    read = pd.read_csv(io.StringIO(formats.text(report, "csv")))
    assert list(read) == list(report.frame)
    for name in ("published_cv2_ms", "numpy_gemm_ms" if pivoted else "median_ms"):
        np.testing.assert_array_equal(read[name], report.frame[name].astype(float))


def test_markdown_tables_have_as_many_cells_in_every_line_and_escape_bars():
    lines = formats.markdown_table(tables.not_timed(RUN, ROWS)).splitlines()
    cells = {line.replace(r"\|", "").count("|") for line in lines if line.startswith("|")}
    assert cells == {5}
    assert r"a pixel \| is off" in "".join(lines)


def test_latex_escapes_what_latex_would_read():
    text = formats.text(tables.report(RUN, ROWS), "latex")
    assert r"numpy\_gemm & \textasciitilde{}8.00 $\pm$10\%" in text
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 7


def printed(report, width):
    """The lines of a report on a console of so many characters."""
    console = Console(width=width, file=io.StringIO())
    formats.show(report, console)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [100, 120])
def test_a_terminal_of_100_characters_holds_every_line(width):
    lines = printed(tables.report(RUN, ROWS), width)
    assert max(map(len, lines)) <= width
    assert any("~8.00 ±10%" in line for line in lines)


def test_a_narrow_terminal_cuts_no_number_short():
    numbers = line_of(tables.beside_published(RUN, ROWS), SMALL)
    lines = printed(tables.report(RUN, ROWS, with_published=True), 40)
    assert any(line.split() == list(numbers) for line in lines)


def test_the_brief_report_of_a_run_is_its_summary_and_what_was_not_timed():
    assert [table.title.split(" ·")[0] for table in tables.brief(RUN, ROWS).tables] == ["Summary", "Not timed"]
    assert [table.title.split(" ·")[0] for table in tables.brief(RUN, ROWS[:1]).tables] == ["Summary"]


def test_a_run_without_rows_still_has_a_report():
    report = tables.report(RUN, (), pivoted=True, with_published=True)
    assert report.tables == ()
    assert "Some CPU" in formats.text(report, "markdown")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234.5, "1234"), (999.7, "1000"), (99.96, "100"), (12.34, "12.3"), (0.2, "0.200"), (0, "0"), (None, "-")],
)
def test_numbers_have_three_significant_digits(value, shown):
    assert formats.number(value) == shown


def test_the_published_figures_are_complete():
    timings, trainings = published.conv_forward(), published.experiments()
    assert (len(timings), len(trainings)) == (2754, 66)
    assert timings.groupby("suite").size().to_dict() == {"paper": 1296, "paper-large-kernels": 1458}
    assert trainings["experiment"].nunique() == 33
    assert not timings.drop(columns=["call_min_s", "call_median_s", "call_max_s"]).isna().any(axis=None)


def test_published_figures_are_the_published_ones():
    timings = published.conv_forward().set_index(["suite", "implementation", "case"])["mean_s"]
    largest = str(ConvSpec(32, 64, 64, 64, 64, (7, 7)))
    assert timings["paper", "numba_jit_direct", largest] == pytest.approx(52.561067, abs=1e-6)
    assert timings["paper", "numpy_gemm", SMALL] == 0.0007994890213012696
    trainings = published.experiments().set_index(["dataset", "machine", "number"])
    first = trainings.loc[("Olivetti", "NVIDIA Quadro M4000M", 1)]
    assert (first["experiment"], first["keras_fit_s"], first["hmdl_test_accuracy"]) == ("0979993065", 4.4, 0.6817)


def test_the_larger_published_grid_fills_in_what_the_first_lacks():
    wide = published.conv_forward_ms().set_index(["case", "implementation"])["published_ms"]
    both = published.conv_forward().set_index(["suite", "case", "implementation"])["mean_s"]
    large = str(ConvSpec(32, 8, 8, 16, 16, (19, 19)))
    assert wide[SMALL, "numba_cuda_tiles"] == 1e3 * both["paper", SMALL, "numba_cuda_tiles"]
    assert wide[large, "numba_cuda_tiles"] == 1e3 * both["paper-large-kernels", large, "numba_cuda_tiles"]
    assert wide.index.is_unique


def test_joining_published_times_keeps_every_row_and_gives_them_to_forward_convolutions_only():
    rows = [row("a"), row("a", direction="grad_input"), row("a", "32x2x2x16,k3x3,f16,nobias")]
    joined = published.join(frames.measurements(rows))
    assert joined["published_numpy_gemm_ms"].notna().tolist() == [True, False, False]


def test_the_published_table_is_labelled_with_what_its_times_contain():
    table = tables.beside_published(RUN, ROWS)
    assert table.headings[:5] == ("case", "ours", "keras †", "cv2 *", "keras *")
    assert line_of(table, SMALL)[1:3] == ("1.00", "4.00")
    assert any("40 ms" in note for note in table.notes)


def test_the_folder_of_a_run_holds_its_readme_cases_rows_and_figures(tmp_path):
    target = tmp_path / folder.folder_name(RUN)
    files = folder.write_results(target, RUN, ROWS)
    assert target.name == "box-2025-01-02"
    assert {path.name for path in files} == {path.name for path in target.iterdir()}
    assert "| cv2 | 1/2 | 7.0 |" in (target / "README.md").read_text(encoding="utf-8")
    assert json.loads((target / "run.json").read_text(encoding="utf-8"))["machine"] == MACHINE
    assert pd.read_csv(target / "measurements.csv")["status"].tolist() == [each.status for each in ROWS]


def test_many_measurements_are_compressed(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "LARGE", 100)
    folder.write_results(tmp_path, RUN, ROWS)
    assert len(pd.read_csv(tmp_path / "measurements.csv.gz")) == len(ROWS)
    assert not (tmp_path / "measurements.csv").exists()


def test_a_machine_s_name_becomes_a_folder_name_that_every_system_takes():
    odd = Run("c", "s", seed=0, threads=1, started="2025-01-02T00:00", machine={"id": "my box: A/B"})
    assert folder.folder_name(odd) == "my-box-A-B-2025-01-02"


def test_reports_import_neither_tensorflow_nor_numba():
    code = "import sys, reports.folder; print({'tensorflow', 'torch', 'numba', 'cv2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def on_a_gpu(name, ms, **more):
    """A row of a device with three figures beside the resident one."""
    figures = {
        "resident_by_device": (ms * 1e-3,) * 5,
        "kernel": (0.5e-3 * ms,) * 5,
        "end_to_end": (3e-3 * ms,) * 5,
    }
    return row(name, SMALL, ms=ms, device="cuda", figures=figures, clocks="host and device", launched="graph", **more)


ON_A_GPU = (
    on_a_gpu("tiles", 2.0, over_keras=2.0, dirty_samples=1, gpu={"dirt": ["throttled: power cap"]}),
    on_a_gpu("torch", 8.0),
    row("keras", SMALL, ms=4.0, device="cuda"),
    row("numpy", SMALL, ms=40.0, over_keras=0.1),
)


def test_figures_on_a_device_stand_beside_the_resident_one_with_ratios_of_their_own():
    rows = [
        replace(r, speedups={"torch": Interval(4.0, 4.0, 4.0)}) if r.implementation == "tiles" else r for r in ON_A_GPU
    ]
    first = frames.measurements(rows).iloc[0]
    assert first[["median_ms", "kernel_ms", "end_to_end_ms"]].tolist() == pytest.approx([2.0, 1.0, 6.0])
    assert first[["over_torch", "kernel_over_torch", "end_to_end_over_torch"]].tolist() == pytest.approx([4.0] * 3)
    table = tables.on_devices(RUN, rows)
    assert table.headings == (
        "implementation",
        "resident",
        "kernel",
        "end to end",
        f"kernel {formats.TIMES} torch",
        "remarks",
    )
    tiles = line_of(table, "tiles")
    assert tiles[2:5] == ("1.00 ±0.0%", "6.00 ±0.0%", "4.00 ±0.0%")
    assert tiles[5] == "graph; 1 of 5 samples dirty: throttled: power cap"


def test_a_figure_is_compared_only_with_those_that_have_it():
    first = frames.measurements(ON_A_GPU).iloc[0]
    assert first["over_keras"] == 2.0
    assert pd.isna(first["kernel_over_keras"])


def test_what_has_only_the_hosts_clock_says_so_and_the_cpu_is_left_out():
    table = tables.on_devices(RUN, ON_A_GPU)
    assert line_of(table, "keras †")[-1] == "clock: host"
    assert [line.cells[0] for line in table.sections[0].lines] == ["tiles", "torch †", "keras †"]
    assert not tables.on_devices(RUN, ROWS).sections


def test_a_clock_that_disagrees_is_an_alarm_with_its_reason():
    rows = [row("tiles", status="ASYNC_MISMATCH", reason="its work was not waited for", device="cuda"), row("numpy")]
    assert "ASYNC_MISMATCH" in line_of(tables.not_timed(RUN, rows), "tiles")
    assert "red" in formats._style("1 async mismatch")
    assert "async" in str(tables.pivot(RUN, [*rows, row("tiles", LARGE, device="cuda")]).sections)


def test_the_heading_names_the_device_that_was_measured():
    device = {"name": "H100", "compute_capability": "9.0", "memory_bytes": 85e9, "l2_bytes": 52428800}
    machine = MACHINE | {"gpu": "H100, H100", "cuda_device": device | {"multiprocessors": 132}, "gpu_driver": "580.1"}
    text = dict(tables.heading(replace(RUN, machine=machine), ROWS))["machine"]
    assert "H100 compute capability 9.0 85 GB L2 52 MB 132 SMs driver 580.1" in text


@pytest.mark.parametrize(
    ("ran", "declared", "shown"),
    [
        (("sums", "float32"), ("gemm", "float32"), "(gemm, float32, cpu)"),
        (("sums", "float64"), ("gemm", "float32"), "(gemm, float32, cpu, inferred: float64)"),
        (("sums", "float32"), ("fft", "float32"), "(fft, float32, cpu, inferred: sums)"),
        (("winograd", "float32"), ("direct", "float32"), "(direct, float32, cpu, inferred: winograd)"),
        (("", ""), ("gemm", "TF32"), "(gemm, TF32, cpu)"),
    ],
)
def test_what_ran_stands_behind_what_was_declared_where_it_differs(ran, declared, shown):
    names = ("ran_algorithm", "ran_arithmetic", "algorithm", "arithmetic")
    found = row("x", **dict(zip(names, (*ran, *declared), strict=True)))
    assert dict(tables.heading(RUN, [found]))["implementations"] == f"x {shown}"


def test_contamination_is_said_where_there_was_any():
    host = {"dirt": {"cores stolen by the host": {"rounds": 2, "most": 0.25}}}
    rows = [row("x", dirty_samples=2, aside_s=(0.1, 0.2), host=host), row("y", dirty_samples=0)]
    text = "2 samples dirty, 2 of them left out: up to 0.25 cores stolen by the host"
    assert dict(tables.heading(RUN, rows))["contamination"] == text
    assert "contamination" not in dict(tables.heading(RUN, rows[1:]))


@pytest.mark.parametrize(("faults", "is_shown"), [(None, False), (0.0, False), (144.0, True)])
def test_page_faults_have_a_column_where_a_call_makes_any(faults, is_shown):
    table = tables.detail(RUN, [row("x", minor_faults=faults), row("y", ms=2.0)])
    assert ("faults" in table.headings) == is_shown
    assert not is_shown or line_of(table, "x")[table.headings.index("faults")] == "144"
