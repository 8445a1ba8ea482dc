"""Two runs beside each other: verdicts per case, whatever they were read from."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from bench.cli import main
from bench.compare import ABSOLUTE, FASTER, SAME, SLOWER, UNTOLD, compare
from bench.results import Row, Run, write_csv, write_json
from bench.sources import MOST_SAMPLES, Source, SourceError, is_one_machine, joined, kind_of, read, rows_beside
from bench.store import Store
from reports.comparison import report

MACHINE = {"id": "box", "commit": "abc123456789", "versions": {"numpy": "2.0"}}
RUN = Run("layerbench run", "quick", seed=0, threads=2, started="2026-01-01T00:00:00+00:00", machine=MACHINE, id=1)
SPECS = [f"4x{n},u3" for n in range(1, 5)]


def row(name, spec=SPECS[0], seconds=1.0, noise=0.01, rounds=30, drift=None, seed=0, **more):
    """A row whose samples have log-normal noise, times the machine's drift of each round."""
    rng = np.random.default_rng([seed, *map(ord, name + spec)])
    samples = seconds * rng.lognormal(0, noise, rounds) * (np.ones(rounds) if drift is None else drift)
    values = {"direction": "forward", "device": "cpu", "algorithm": "gemm", "arithmetic": "float32", "status": "OK"}
    values |= {"competitor": name == "keras", "samples_s": tuple(samples.tolist())}
    return Row(op="dense", spec=spec, implementation=name, **values | more)


def source(*rows, label="a run", **run):
    return Source(label, replace(RUN, **run), rows)


def verdicts(outcome):
    return {(each.implementation, each.case): each.verdict for each in outcome.comparisons}


@pytest.mark.parametrize(
    ("seconds", "noise", "expected"),
    [(1.2, 0.01, SLOWER), (0.8, 0.01, FASTER), (1.0, 0.01, SAME), (1.0, 0.5, UNTOLD)],
)
def test_a_case_is_faster_slower_the_same_or_cannot_be_told(seconds, noise, expected):
    outcome = compare(source(row("ours", noise=noise)), source(row("ours", seconds=seconds, noise=noise, seed=1)))
    assert list(verdicts(outcome).values()) == [expected]


def test_a_machine_that_was_twice_as_slow_is_no_change_relative_to_what_ran_in_the_same_rounds():
    drift = np.linspace(1, 4, 30)
    base = source(row("ours"), row("keras", seconds=3.0))
    new = source(row("ours", drift=drift, seed=1), row("keras", seconds=3.0, drift=drift, seed=1))
    (relative,) = compare(base, new).comparisons
    assert (relative.anchor, relative.verdict) == ("keras", SAME)
    absolute = compare(base, new, ABSOLUTE)
    assert verdicts(absolute) == {("ours", SPECS[0]): SLOWER, ("keras", SPECS[0]): SLOWER}


def test_any_implementation_of_both_can_be_the_anchor_and_another_is_refused():
    rows = [row("ours"), row("other"), row("keras")]
    outcome = compare(source(*rows), source(*rows), relative_to="other")
    assert {each.anchor for each in outcome.comparisons} == {"other"}
    with pytest.raises(
        SourceError, match="torch is not timed in both; --relative-to one of ours, other, keras, or none"
    ):
        compare(source(*rows), source(*rows), relative_to="torch")


def test_a_case_without_the_anchor_is_compared_as_measured():
    rows = [row("ours"), row("keras"), row("ours", SPECS[1])]
    anchors = {each.case: each.anchor for each in compare(source(*rows), source(*rows)).comparisons}
    assert anchors == {SPECS[0]: "keras", SPECS[1]: ABSOLUTE}


def test_over_many_cases_without_a_change_hardly_any_is_called_one():
    specs = [f"4x{n},u3" for n in range(1, 101)]
    found = compare(source(*(row("ours", s) for s in specs)), source(*(row("ours", s, seed=1) for s in specs)))
    alone = sum(each.estimate.p() < 0.05 for each in found.comparisons)
    together = sum(each.verdict in (FASTER, SLOWER) for each in found.comparisons)
    assert together == 0 < alone < 12


@pytest.mark.parametrize(("seconds", "is_worse"), [(1.03, False), (1.051, False), (1.2, True), (0.5, False)])
def test_worse_is_what_is_shown_to_be_slower_by_more_than_the_margin(seconds, is_worse):
    outcome = compare(source(row("ours")), source(row("ours", seconds=seconds, seed=1)), margin=0.05)
    assert outcome.is_worse == is_worse


def test_what_has_no_time_any_more_is_worse_and_listed():
    wrong = row("ours", status="WRONG", reason="a pixel is off", samples_s=())
    outcome = compare(source(row("ours"), row("other")), source(wrong, row("other", seed=1), row("new")))
    assert [r.reason for r in outcome.lost] == ["a pixel is off"]
    assert outcome.is_worse
    assert (outcome.only_in_base, outcome.only_in_new) == (0, 1)


def test_a_new_run_that_lacks_a_case_is_worse_and_one_that_has_more_is_not():
    few, many = source(row("ours")), source(row("ours"), row("ours", SPECS[1]))
    assert compare(many, few).is_worse
    assert not compare(few, many).is_worse


def test_only_times_in_the_same_state_of_memory_are_compared_and_relative_to_one_another():
    hot, cold = ([row("ours", state=state), row("keras", state=state)] for state in ("hot", "cold"))
    both = compare(source(*hot, *cold), source(*hot, *cold))
    assert [(each.state, each.anchor) for each in both.comparisons] == [("hot", "keras"), ("cold", "keras")]
    mixed = compare(source(*hot, cold[0]), source(*hot, cold[0]))
    assert [each.anchor for each in mixed.comparisons] == ["keras", ABSOLUTE]
    with pytest.raises(SourceError, match="in the same state of memory"):
        compare(source(*hot), source(*cold))


H100 = {"name": "H100", "uuid": "GPU-1", "multiprocessors": 132}


@pytest.mark.parametrize(
    ("device", "is_one"),
    [(H100, True), (H100 | {"uuid": "GPU-2"}, True), (H100 | {"name": "A100"}, False), ({}, False)],
)
def test_another_kind_of_gpu_is_another_machine(device, is_one):
    base, new = (
        source(row("ours"), machine=MACHINE | {"cuda_device": found}, label="a run") for found in (H100, device)
    )
    assert is_one_machine(base, new) == is_one
    assert is_one_machine(base, source(row("ours")))
    shown = dict(report(base, new, compare(base, new), 0.05).heading)
    assert shown.get("machines", "") == ("" if is_one else f"box, H100 and {new.where}: DIFFERENT")


def test_options_that_differ_are_named():
    base, new = (source(row("ours"), options={"memory": "hot", "budget_s": s}) for s in (3.0, 1.0))
    assert dict(report(base, new, compare(base, new), 0.05).heading)["differs"] == "budget_s 3.0 -> 1.0"


def test_two_rounds_or_one_show_nothing():
    outcome = compare(source(row("ours", rounds=1)), source(row("ours", seconds=9.0, rounds=1)))
    assert list(verdicts(outcome).values()) == [UNTOLD]


def test_runs_with_nothing_in_common_are_refused():
    with pytest.raises(SourceError, match="no case and implementation in common"):
        compare(source(row("ours")), source(row("theirs")))


def test_the_report_names_what_differs_and_every_title_says_across_machines():
    other = replace(RUN, threads=1, machine=MACHINE | {"id": "barn", "versions": {"numpy": "2.1"}})
    base, new = source(row("ours")), Source("another", other, (row("ours", seed=1),))
    shown = report(base, new, compare(base, new), 0.05)
    lines = dict(shown.heading)
    assert lines["machines"] == "box and barn: DIFFERENT"
    assert lines["differs"] == "threads 2 -> 1; numpy 2.0 -> 2.1"
    assert "no interval knows" in lines["as measured"]
    assert all("ACROSS MACHINES, box and barn" in table.title for table in shown.tables)
    alike = report(base, base, compare(base, base), 0.05)
    assert not any("ACROSS" in table.title for table in alike.tables)


# --- what can be read ---


@pytest.fixture
def store(tmp_path):
    """A store of two runs of different commits; the second is 20 % slower."""
    address = str(tmp_path / "runs.sqlite")
    made = Store(address)
    for seconds, commit in ((1.0, "abc123456789"), (1.2, "def987654321+")):
        run = made.start(replace(RUN, machine=MACHINE | {"commit": commit}))
        for name, slow in (("ours", seconds), ("keras", 3.0)):
            made.add(run, row(name, seconds=slow, seed=int(10 * seconds)))
    made.close()
    return address


@pytest.mark.parametrize(("name", "run"), [("1", 1), ("abc1", 1), ("def98", 2), ("{store}", 2), ("{store}:1", 1)])
def test_a_run_is_named_by_its_number_its_commit_or_its_store(store, name, run):
    assert read(name.format(store=store), store).run.id == run


def test_what_names_no_run_says_which_there_are(store):
    with pytest.raises(SourceError, match=r"'fff' is no file, and neither .* holds: 1 \(abc123456789\), 2 \(def9"):
        read("fff", store)


@pytest.mark.parametrize(("write", "kind"), [(write_json, "run"), (write_csv, "csv")])
def test_an_export_is_compared_like_the_run_that_it_was_made_of(tmp_path, write, kind):
    path = tmp_path / "rows.txt"
    write(path, RUN, [row("ours"), row("keras")])
    write(other := tmp_path / "cold.txt", RUN, [row("ours", state="cold")])
    assert read(str(other), "unused").rows[0].state == "cold"
    found = read(str(path), "unused")
    assert kind_of(path.read_text()) == kind
    assert (found.machine, found.run.threads, found.run.machine["commit"]) == ("box", 2, "abc123456789")
    assert [r.competitor for r in found.rows] == [False, True]
    base = source(row("ours"), row("keras"))
    outcome = compare(base, found)
    assert "differs" not in dict(report(base, found, outcome, 0.05).heading)
    assert outcome.comparisons[0].ratio.median == pytest.approx(1, rel=1e-6)


def pytest_benchmark(node="a", data=(1.0, 1.1, 0.9, 1.0)):
    return {
        "machine_info": {"node": node, "system": "Linux", "machine": "x86_64", "cpu": {"brand_raw": "CPU", "count": 2}},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-01",
        "benchmarks": [
            {"fullname": "bench/test_a.py::test_b[c]", "group": None, "stats": {"data": list(data), "median": 1.0}}
        ],
    }


def test_pytest_benchmark_s_json_is_read_with_its_machine_and_commit(tmp_path):
    path = tmp_path / "saved"
    path.write_text(json.dumps(pytest_benchmark()))
    found = read(str(path), "unused")
    assert (found.rows[0].spec, found.rows[0].implementation) == ("bench/test_a.py", "test_b[c]")
    assert found.run.machine["commit"] == "0123456789ab+"
    path.write_text(json.dumps(pytest_benchmark(node="b")))
    assert read(str(path), "unused").machine != found.machine


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(pytest_benchmark(data=())), "only statistics; save them with --benchmark-json"),
        ("op,direction\nconv2d,forward\n", "holds no samples"),
        ("", "holds no row"),
        ('{"kind": "recipe"}', "is neither a store, nor what layerbench run --json or --csv writes"),
        ('{"runs": []}', "is neither a store"),
        ("{", "is neither a store"),
    ],
)
def test_a_file_that_cannot_be_compared_says_what_could(tmp_path, text, message):
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(SourceError, match=message):
        read(str(path), "unused")


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 54_321])
def test_a_long_series_is_joined_in_its_order_to_as_many_values_as_can_be_resampled(count):
    series = joined(range(count))
    assert len(series) <= MOST_SAMPLES
    assert list(series) == sorted(series)
    assert series == tuple(range(count)) if count <= MOST_SAMPLES else len(series) > MOST_SAMPLES / 2


def test_rows_of_another_machine_of_other_threads_or_with_cold_caches_are_no_points_of_its_roofline(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    hot, fit, cold = row("ours"), row("ours", SPECS[1]), row("ours", state="cold")
    store.add(store.start(RUN), fit, cold)
    store.add(store.start(replace(RUN, threads=1)), hot)
    store.add(store.start(replace(RUN, machine={"id": "barn"})), hot)
    assert rows_beside(store, {"id": "box"}, 2) == [fit]
    with pytest.raises(SourceError, match=r"no run of this machine, shed, with threads 2; .* run --threads 2"):
        rows_beside(store, {"id": "shed"}, 2)
    store.close()


# --- the command ---


def invoke(*words):
    return CliRunner().invoke(main, ["compare", *words])


@pytest.mark.parametrize(("limit", "status"), [("5%", 1), ("50", 0)])
def test_the_command_fails_above_its_limit_only(store, limit, status):
    result = invoke("1", "2", "--db", store, "--fail-above", limit)
    assert result.exit_code == status, result.output
    assert "+20." in result.output or "+19." in result.output
    assert "slower" in result.output
    assert invoke("1", "2", "--db", store).exit_code == 0
    assert invoke("2", "1", "--db", store, "--fail-above", limit).exit_code == 0


def test_different_machines_are_compared_only_on_request(store, tmp_path):
    path = tmp_path / "barn.json"
    write_json(path, replace(RUN, machine=MACHINE | {"id": "barn"}), [row("ours"), row("keras")])
    refused = invoke("1", str(path), "--db", store)
    assert refused.exit_code == 2
    assert "the machines differ" in refused.output
    assert "with --across-machines" in refused.output
    allowed = invoke("1", str(path), "--db", store, "--across-machines")
    assert allowed.exit_code == 0
    assert allowed.output.count("ACROSS MACHINES") == 2


@pytest.mark.parametrize("limit", ["-1%", "much", "0"])
def test_a_limit_that_is_no_percentage_is_refused(store, limit):
    result = invoke("1", "2", "--db", store, "--fail-above", limit)
    assert result.exit_code == 2
    assert "is not a percentage above 0, such as 5%" in " ".join(result.output.split())
