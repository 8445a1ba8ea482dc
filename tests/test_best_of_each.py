"""Ours at its best meets the competitors at theirs: in every case the one that is hardest to beat."""

import pytest

from bench.results import Interval, Row
from reports.best_of_each import best_of_each, meetings, worst_cases

SMALL, LARGE = "32x2x2x16,k3x3,f16", "32x4x4x16,k3x3,f16"


def timed(name, spec, device, **more):
    """A row of a second a call."""
    kind = {"device": device, "algorithm": "direct", "arithmetic": "float32", "status": "OK", "median_s": 1.0}
    return Row("conv2d", "forward", spec, name, **kind, **more)


def ours(name, spec, device="cpu", **over):
    """A timed row of ours with its speed-ups over competitors."""
    speedups = {rival: Interval(value, 0.9 * value, 1.1 * value) for rival, value in over.items()}
    return timed(name, spec, device, competitor=False, speedups=speedups)


def theirs(name, spec, device="cpu"):
    """A timed row of a competitor."""
    return timed(name, spec, device, competitor=True)


ROWS = (
    ours("gemm", SMALL, keras=2.0, torch=3.0),
    ours("direct", SMALL, keras=1.5, torch=9.0),
    ours("gemm", LARGE, keras=4.0, torch=0.25),
    ours("direct", LARGE, keras=0.125, torch=0.5),
    *(theirs(name, spec) for name in ("keras", "torch") for spec in (SMALL, LARGE)),
)


def test_in_each_case_the_best_of_ours_meets_the_competitor_that_it_beats_least():
    found = [(m.case, m.ours, m.theirs, m.speedup.median) for m in meetings(ROWS)]
    assert found == [(SMALL, "gemm", "keras", 2.0), (LARGE, "gemm", "torch", 0.25)]


def test_a_direction_has_the_geometric_mean_of_its_cases_and_the_lowest_with_its_place():
    (record,) = best_of_each(ROWS).frame.to_dict("records")
    assert record["speedup"] == pytest.approx((2.0 * 0.25) ** 0.5)
    assert (record["cases"], record["lowest"], record["where"], record["slower"]) == (2, 0.25, LARGE, 1)
    assert (record["ours"], record["theirs"]) == ("gemm 2", "keras 1, torch 1")


def test_the_worst_cases_come_first():
    assert worst_cases(ROWS).frame["speedup"].tolist() == [0.25, 2.0]


def test_what_is_on_another_device_is_met_by_nobody():
    lone = (ours("cuda", SMALL, "cuda", keras=50.0), theirs("keras", SMALL))
    assert meetings(lone) == ()
    assert best_of_each(lone).sections == ()
