"""How times scale: which runs are taken, what the model says, and what tables, figures and the page show."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bench import suites
from bench.ceilings import Ceiling
from bench.cli import main
from bench.results import Row, Run
from bench.store import Store, StoreError
from bench.suites import BASE, SWEEPS
from impls.conv2d._correlation import problems
from impls.conv2d.numba_jit_blocked import NumbaJitBlocked
from impls.conv2d.numba_jit_winograd import why_not
from impls.numba_setup import numba
from impls.specs import DIRECTIONS, GRAD_WEIGHTS
from reports import formats, scaling, scaling_limits, scaling_plots
from reports.scaling import Measured
from reports.scaling_folder import write_results

PEAK, MEMORY = 1000.0, 1.0
"""GFLOP/s and GB/s of one thread: by these the base is bound by bytes."""


def run(threads, machine="box", **more):
    """A run of so many threads, which double the rate of operations and leave that of memory as it is."""
    ceilings = (
        Ceiling("multiply-add", "GFLOP/s", (PEAK * threads,), threads=threads),
        Ceiling("read, DRAM", "GB/s", (MEMORY,), threads=threads, level="DRAM"),
    )
    about = {"id": machine, "cpu": "Some CPU", "commit": "abc", "ceilings": [each.record() for each in ceilings]}
    values = {
        "command": "c",
        "suite": "scaling",
        "seed": 0,
        "threads": threads,
        "started": "2025-01-02",
        "machine": about,
    }
    return Run(**values | more)


def row(spec, name="ours", ms=1.0, direction="forward", **more):
    """A row that took so many milliseconds, 10 % more or less."""
    seconds = 1e-3 * ms
    times = {"samples_s": (seconds,) * 5, "median_s": seconds, "low_s": 0.9 * seconds, "high_s": 1.1 * seconds}
    values = {"op": "conv2d", "device": "cpu", "algorithm": "direct", "arithmetic": "float32", "status": "OK"}
    known = {"spec": str(spec), "implementation": name, "direction": direction, "competitor": name == "keras"}
    return Row(**values | known | times | more)


BATCHES = SWEEPS["batch"]
TAKEN = (
    Measured(run(1, id=1), (row(BATCHES[1], ms=2.0), row(BATCHES[32], ms=64.0), row(BATCHES[32], "keras", ms=50.0))),
    Measured(
        run(2, id=2),
        (row(BATCHES[1], ms=2.0, status="NOISY"), row(BATCHES[32], ms=32.0), row(BATCHES[32], "keras", ms=20.0)),
    ),
)


def stored(tmp_path, *runs):
    """A store with these (run, rows)."""
    store = Store(tmp_path / "scaling.sqlite")
    for each, rows in runs:
        store.add(store.start(each), *rows)
    return store


def cells(table, section, name):
    """The texts of a line by the headings above them."""
    lines = next(part.lines for part in table.sections if part.title == section)
    return dict(zip(table.headings, next(line.cells for line in lines if line.cells[0] == name), strict=True))


def test_of_each_number_of_threads_the_latest_run_is_taken_fewest_first(tmp_path):
    rows = [row(BASE)]
    store = stored(tmp_path, (run(2), rows), (run(1), rows), (run(2), rows))
    assert [(each.threads, each.run.id) for each in scaling.measured(store)] == [(1, 2), (2, 3)]


def test_runs_of_another_suite_or_machine_and_runs_without_a_time_are_passed_over(tmp_path):
    rows, lost = [row(BASE)], [row(BASE, status="CRASHED", median_s=None)]
    others = ((run(4, "other"), rows), (run(8, suite="quick"), rows), (run(16), lost))
    store = stored(tmp_path, *others, (run(1), rows))
    assert [each.threads for each in scaling.measured(store)] == [1]


def test_a_store_without_the_suite_says_how_to_measure_it(tmp_path):
    with pytest.raises(StoreError, match="layerbench run --suite scaling --threads N --db"):
        scaling.measured(stored(tmp_path, (run(1, suite="quick"), [row(BASE)])))


def test_what_runs_on_a_device_is_not_shown_beside_the_processor_s_model():
    taken = Measured(run(1), (row(BASE), row(BASE, "on_a_gpu", device="cuda")))
    assert set(scaling.curves([taken])["implementation"]) == {"ours"}


def test_the_model_of_a_point_is_its_operations_over_the_peak_and_its_bytes_over_the_bandwidth():
    point = scaling.curves(TAKEN[1:]).query("value == 32 and parameter == 'batch'").iloc[0]
    assert point["operations_ms"] == pytest.approx(1e3 * BASE.flops / (2 * PEAK * 1e9))
    assert point["bytes_ms"] == pytest.approx(1e3 * BASE.bytes / (MEMORY * 1e9))
    assert point["roof"] == "DRAM"


def test_a_case_has_a_point_in_every_sweep_that_it_is_in():
    frame = scaling.curves([Measured(run(1), (row(BASE), row(BATCHES[1])))])
    assert sorted(frame["parameter"]) == sorted([*SWEEPS, "batch"])


def test_a_run_without_ceilings_has_curves_and_no_model():
    bare = Measured(replace(run(1), machine={"id": "box"}), TAKEN[0].rows)
    assert scaling.curves([bare])["operations_ms"].isna().all()
    (section,) = scaling.sweep_table(scaling.curves([bare]), "batch").sections
    assert [line.cells[0] for line in section.lines] == ["ours", "keras †"]


def test_a_table_has_the_times_by_value_and_the_model_below():
    table = scaling.sweep_table(scaling.curves(TAKEN), "batch")
    assert cells(table, "forward, 1 thread", "keras †") == {"ms per call": "keras †", "1": "-", "32": "50.0"}
    assert cells(table, "forward, 2 threads", "ours")["1"] == "~2.00"
    assert cells(table, "forward, 2 threads", "what binds")["32"] == "DRAM"


def test_a_speed_up_by_threads_is_the_geometric_mean_over_the_cases_with_the_least_and_the_most():
    (ours,) = scaling.gains(scaling.curves(TAKEN)).query("implementation == 'ours'").to_dict("records")
    assert (ours["threads"], ours["cases"], ours["least"], ours["most"]) == (2, 2, 1.0, 2.0)
    assert ours["speedup"] == pytest.approx(2**0.5)


@pytest.mark.parametrize(("memory", "gain"), [(MEMORY, 1.0), (1e6, 2.0)], ids=["bytes bind", "operations bind"])
def test_the_model_gains_by_threads_what_the_rate_that_binds_gains(memory, gain):
    def with_memory(each):
        compute, dram = each.run.machine["ceilings"]
        machine = {**each.run.machine, "ceilings": [compute, {**dram, "samples": [memory]}]}
        return Measured(replace(each.run, machine=machine), each.rows)

    found = scaling.gains(scaling.curves(map(with_memory, TAKEN)))
    assert found.query("implementation == 'model'")["speedup"].tolist() == pytest.approx([gain])


def test_one_number_of_threads_gives_no_speed_up():
    assert scaling.THREADS not in scaling.tables(scaling.curves(TAKEN[:1]))
    assert scaling.THREADS not in scaling_plots.figures(TAKEN[:1])


def test_a_parameter_with_a_single_value_has_no_figure():
    assert set(scaling_plots.figures(TAKEN)) == {"batch", "threads"}


def test_a_figure_has_the_directions_side_by_side_and_the_fewest_and_most_threads_above_each_other():
    rows = tuple(row(spec, direction=direction) for spec in BATCHES.values() for direction in DIRECTIONS)
    figure = scaling_plots.figures([Measured(run(n), rows) for n in (1, 2, 4)])["batch"]
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [f"{direction}, {threads}" for threads in ("1 thread", "4 threads") for direction in DIRECTIONS]


def test_a_figure_shows_operations_a_second_beside_both_rates_of_the_model():
    figure = scaling_plots.figures(TAKEN)["batch"]
    ours, _, operations, moved = (line.get_xydata() for line in figure.axes[0].get_lines())
    np.testing.assert_allclose(ours, [(1, 1e-9 * BATCHES[1].flops / 2e-3), (32, 1e-9 * BASE.flops / 64e-3)])
    np.testing.assert_allclose(operations, [(1, PEAK), (32, PEAK)])
    assert moved[1] == pytest.approx((32, MEMORY * BASE.flops / BASE.bytes))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["ours", "keras", "model: multiply-adds", "model: memories"]


def test_a_panel_says_what_binds_from_which_value_to_which_and_what_memories_allow():
    cases = pd.DataFrame({"value": [4, 8, 16], "roof": ["L2", "operations", "operations"]})
    text = scaling_plots.binding_text(cases.assign(operations_ms=[1.0, 3.0, 8.0], bytes_ms=[2.0, 1.0, 1.0]))
    assert text.splitlines() == [
        "binding: L2 (4), operations (8 to 16)",
        "memories allow 0.50 to 8.0 times as much",
    ]
    one_roof = cases.assign(roof="DRAM", operations_ms=np.nan, bytes_ms=1.0)
    assert scaling_plots.binding_text(one_roof) == "binding: DRAM (4 to 16)"
    assert scaling_plots.binding_text(cases.assign(roof="")) == scaling_plots.binding_text(cases[:0]) == ""


def test_the_figure_of_threads_has_every_implementation_the_ideal_and_the_model():
    figure = scaling_plots.figures(TAKEN)["threads"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "keras", "ideal", "model"]
    ideal, model, ours, _ = (line.get_ydata() for line in figure.axes[0].get_lines())
    assert (set(ideal), set(model)) == ({2.0}, {1.0})
    assert list(ours) == pytest.approx([2**0.5])


def test_the_folder_has_a_page_with_every_figure_all_points_and_each_run_s_own_folder(tmp_path):
    files = write_results(tmp_path / "out", TAKEN)
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} == set(files)
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for wanted in ("![batch](batch.png)", "![threads](threads.png)", "(2-threads/README.md)", "on 64 threads"):
        assert wanted in page
    assert len(pd.read_csv(tmp_path / "out" / "points.csv")) == len(scaling.curves(TAKEN))
    assert (tmp_path / "out" / "1-thread" / "run.json").is_file()


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "latex"])
def test_the_command_prints_the_tables(tmp_path, form):
    stored(tmp_path, *((each.run, each.rows) for each in TAKEN)).close()
    path = str(tmp_path / "scaling.sqlite")
    result = CliRunner().invoke(main, ["report", "--scaling", "--db", path, "--format", form])
    assert result.exit_code == 0, result.output
    assert "DRAM" in result.output


def test_the_command_writes_the_folder(tmp_path):
    stored(tmp_path, *((each.run, each.rows) for each in TAKEN)).close()
    options = ["--db", str(tmp_path / "scaling.sqlite"), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["report", "--scaling", *options])
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "out" / "batch.png") in result.output


@pytest.mark.parametrize("case", suites.load("scaling").cases, ids=str)
def test_the_pieces_of_the_direct_kernel_are_those_that_its_plan_hands_out(case):
    """As many strips as pieces, or as threads where these are fewer; parts and splits do not depend on threads."""
    spec = case.spec
    for direction in DIRECTIONS:
        (problem,) = problems(spec, direction)
        *_, (workers, _) = NumbaJitBlocked._shapes(problem, direction)
        threads = numba.get_num_threads()
        found = scaling_limits.pieces("numba_jit_blocked", spec, direction, threads)
        assert workers == (found if direction == GRAD_WEIGHTS else min(found, threads))


def test_no_weight_gradient_of_the_direct_kernel_has_more_than_16_pieces():
    found = [scaling_limits.pieces("numba_jit_blocked", spec, GRAD_WEIGHTS) for spec in BATCHES.values()]
    assert found[-1] == max(found) == 16


def test_what_winograd_refuses_has_no_pieces_and_everything_else_some():
    for spec in SWEEPS["kernel side"].values():
        for direction in DIRECTIONS:
            found = scaling_limits.pieces("numba_jit_winograd", spec, direction)
            assert (found is None) == (why_not(spec, direction) is not None)


def test_the_limits_are_said_with_a_line_for_every_convolution():
    table = scaling_limits.pieces_table()
    assert [len(section.lines) for section in table.sections] == [len(sweep) for sweep in SWEEPS.values()]
    assert "| 32 | 64 | 16 | 64 | 2048 | 4 | 2048 |" in formats.markdown_table(table)
    assert "32 MiB" in scaling_limits.limits_text()
