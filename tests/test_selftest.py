"""The harness's test of itself: its slow-downs are real, its judgement is a ranking's, its conclusions follow."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from bench import local, overhead, selftest
from bench.cli import main
from bench.measure import Session
from bench.results import Failure, Interval, Row
from bench.selftest import Finding, Trial, conclusions, findings, keeps_its_word, plan
from impls import get, parse_case
from impls.dense.numpy import NumpyDense
from impls.variants import name_of

CASE = parse_case("dense:7x33,u5,relu")


@pytest.mark.parametrize(("share", "calls"), [(0.0, 200), (0.01, 202), (0.05, 210), (0.2, 240)])
def test_a_slowed_variant_makes_its_share_of_calls_twice(share, calls, monkeypatch):
    made = []
    original = NumpyDense.forward
    monkeypatch.setattr(NumpyDense, "forward", lambda self, *arrays: (made.append(1), original(self, *arrays)))
    spec = CASE.spec
    bound = get("dense", name_of("numpy", "b", share)).plan(spec, ("forward",))
    arrays = [np.ones(shape, np.float32) for shape in ((7, 33), (33, 5), (5,), (7, 5))]
    call = bound.bind("forward", *arrays)
    for _ in range(200):
        call()
    assert calls - 1 <= len(made) <= calls


@pytest.mark.parametrize("name", ["numpy@a", "numpy@b+20%"])
def test_a_variant_is_as_right_as_what_it_repeats(name):
    record = get("dense", name)
    assert record.name == name
    assert local.judge(record, CASE, "forward").bounds <= 1


def test_a_variant_that_cannot_be_read_says_how_to_write_one():
    with pytest.raises(KeyError, match=r"no variant 'numpy@b\+much'; write for example numpy@b\+5%"):
        get("dense", "numpy@b+much")


def test_the_plan_has_all_pairs_in_a_shuffled_order_and_every_problem_alike():
    wanted = plan(200)
    shares = [share for _, share in wanted]
    assert {share: shares.count(share) for share in set(shares)} == {0.0: 200, 0.01: 40, 0.02: 40, 0.05: 40, 0.2: 40}
    assert shares != sorted(shares)
    assert {sum(problem == each for problem, _ in wanted) for each in selftest.PROBLEMS} == {90}


def trial(injected, ratio, verdict):
    """A trial with a ratio whose interval is 1 % wide to each side."""
    return Trial(
        "dense:1x1,u1", "forward", "numpy", injected, Interval(ratio, ratio / 1.01, ratio * 1.01), verdict, 30, ""
    )


TRIALS = (
    *[trial(0.0, 1.001, 0)] * 58,
    trial(0.0, 1.03, 1),
    trial(0.0, 0.96, -1),
    *[trial(0.05, 1.05, 1)] * 39,
    trial(0.05, 0.95, -1),
    *[trial(0.01, 1.01, 1)] * 10,
    *[trial(0.01, 1.01, 0)] * 30,
)


def test_of_equal_pairs_both_signs_are_false_and_of_slowed_ones_only_the_right_sign_is_found():
    equal, one, five = findings(TRIALS)
    assert (equal.found.median, equal.reversed, equal.largest_false) == (pytest.approx(2 / 60), 1, pytest.approx(0.04))
    assert (one.found.median, one.largest_false) == (0.25, 0)
    assert (five.found.median, five.reversed) == (39 / 40, 1)
    assert five.found.low == pytest.approx(0.868, abs=1e-3)
    assert five.measured == pytest.approx(0.05)
    assert five.detectable == pytest.approx(0.0185, abs=1e-3)


def test_the_conclusions_say_what_is_found_and_what_cannot_be_relied_on():
    text = "\n".join(conclusions(findings(TRIALS), 0.7))
    assert "called different in 3.33 % [0.406 %, 11.5 %] of the cases; the largest such difference was 4 %" in text
    assert "a difference of 5% is found in 97.5 % [86.8 %, 99.9 %] of the cases within a budget of 0.7 s" in text
    assert "differences of 5% and more can be relied on" in text
    assert "it cannot be relied on for 1%" in text


def test_more_false_findings_than_chance_explains_break_its_word():
    kept = findings(TRIALS)[0]
    broken = replace(kept, found=Interval(0.12, 0.08, 0.17))
    assert keeps_its_word([kept])
    assert not keeps_its_word([broken])
    assert "more than the 5% that it states" in conclusions([broken], 0.7)[0]
    assert isinstance(broken, Finding)


def test_a_pair_is_measured_by_a_session_in_rounds_of_both():
    (found,) = selftest.run([(selftest.PROBLEMS[0], 0.2)], threads=1, budget_s=1.0)
    assert found.injected == 0.2
    assert found.rounds >= 5
    assert found.ratio.low <= found.ratio.median <= found.ratio.high
    assert found.stop in ("precision", "budget", "rounds")


def test_the_ratio_is_the_second_one_s_time_whichever_was_started_first(monkeypatch):
    times = {"numpy@a": 1.0, "numpy@b+20%": 1.2}

    def run(self, case, direction, names, budget_s):
        samples = {name: (times[name], 2 * times[name], times[name]) * 5 for name in names}
        return [
            Row("dense", direction, str(case.spec), name, "cpu", False, "", "", "OK", samples_s=samples[name])
            for name in names
        ]

    monkeypatch.setattr(Session, "run", run)
    found = tuple(selftest.run([(selftest.PROBLEMS[0], 0.2)] * 2, threads=1))
    assert [each.ratio.median for each in found] == pytest.approx([1.2, 1.2])
    assert [each.verdict for each in found] == [1, 1]


def test_a_pair_that_cannot_be_timed_is_an_error_that_names_it(monkeypatch):
    row = Row("dense", "forward", "1x1,u1", "numpy@a", "cpu", False, "", "", "CRASHED", "signal 9")
    monkeypatch.setattr(Session, "run", lambda self, *unused: [row, row])
    with pytest.raises(Failure, match=r"CRASHED: dense:32x256,u64,relu forward numpy@a: signal 9"):
        next(selftest.run([(selftest.PROBLEMS[0], 0.0)], threads=1))


def test_it_stops_when_its_time_is_over():
    times = iter([0.0, 1.0, 61.0])
    assert list(selftest.run(plan(1), threads=1, seconds=0.5, clock=lambda: next(times))) == []


@pytest.mark.parametrize(("trials", "status"), [(TRIALS, 0), ([trial(0.0, 1.03, 1)] * 20, 1)])
def test_the_command_prints_table_and_conclusions_and_fails_where_its_word_is_broken(
    trials, status, monkeypatch, tmp_path
):
    monkeypatch.setattr(selftest, "run", lambda wanted, *unused, **more: iter(trials))
    monkeypatch.setattr(overhead, "measure", lambda threads: ())
    result = CliRunner().invoke(main, ["selftest", "--pairs", "5", "--csv", str(tmp_path / "pairs.csv")])
    assert result.exit_code == status, result.output
    assert "Pairs whose difference is known" in result.output
    assert "what is equal is called different in" in result.output
    assert "What the harness costs" in result.output
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) == len(trials) + 1


def test_ctrl_c_shows_what_there_is(monkeypatch):
    def interrupted(wanted, *unused, **more):
        yield from TRIALS
        raise KeyboardInterrupt

    monkeypatch.setattr(selftest, "run", interrupted)
    monkeypatch.setattr(overhead, "measure", lambda threads: ())
    result = CliRunner().invoke(main, ["selftest"])
    assert result.exit_code == 130
    assert "a difference of 5% is found in 97.5 %" in " ".join(result.output.split())
