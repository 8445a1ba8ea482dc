"""Nothing that was finished is lost, whatever is killed when; and the soak that proves it would see a loss."""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from bench.cli import main
from bench.results import Row
from bench.soak import gone, incomplete, malformed, wanted

OK = Row(
    *("dense", "forward", "4x8,u1", "numpy", "cpu", False, "gemm", "float32", "OK"),
    samples_s=(0.1, 0.2),
    median_s=0.15,
    low_s=0.1,
    high_s=0.2,
    min_s=0.1,
    error_bounds=0.5,
)
CRASHED = replace(OK, status="CRASHED", reason="signal 9", samples_s=(), median_s=None, error_bounds=None)
ALL = [
    replace(OK, op=job.case.op, spec=str(job.case.spec), direction=job.direction, implementation=name)
    for job in wanted()
    for name in job.names
]


def test_a_run_under_faults_loses_nothing():
    result = CliRunner().invoke(main, ["soak", "--minutes", "0.3"])
    assert result.exit_code == 0, result.output
    assert "0 losses" in result.output


def test_every_case_must_be_there_exactly_once():
    assert incomplete(ALL) == []
    first = f"{ALL[0].op} {ALL[0].spec} {ALL[0].direction} {ALL[0].implementation}"
    assert incomplete(ALL[1:]) == [f"{first} is there 0 times"]
    assert incomplete([*ALL, ALL[0]]) == [f"{first} is there 2 times"]


@pytest.mark.parametrize(
    ("now", "losses"),
    [
        (ALL, 0),
        ([*ALL, CRASHED], 0),
        (ALL[:-1], 1),
        ([], len(ALL)),
        ([replace(ALL[0], median_s=0.16), *ALL[1:]], 1),
    ],
)
def test_a_row_that_is_gone_or_changed_is_a_loss(now, losses):
    assert len(gone(ALL, now)) == losses


@pytest.mark.parametrize("row", [OK, CRASHED, replace(OK, status="NOISY", reason="wide")])
def test_a_whole_row_is_well_formed(row):
    assert malformed(row) is None


@pytest.mark.parametrize(
    "row",
    [
        replace(OK, samples_s=()),
        replace(OK, median_s=None),
        replace(OK, low_s=float("nan")),
        replace(OK, samples_s=(0.1, 0.0)),
        replace(OK, error_bounds=None),
        replace(OK, error_bounds=2.0),
        replace(OK, status="FINE"),
        replace(CRASHED, reason=""),
    ],
)
def test_half_a_row_is_not(row):
    assert malformed(row)
