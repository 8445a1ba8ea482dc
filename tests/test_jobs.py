"""What is selected is done, once, and an unknown name is refused with the known ones."""

import pytest

from bench.jobs import Selection, jobs, missing
from bench.suites import Suite, load
from impls import SpecError, parse_case

SUITE = Suite("two", (parse_case("conv2d:1x4x4x1,k3x3,f2"), parse_case("maxpool2d:1x4x4x1,pool2x2")))


def test_every_direction_of_every_case_is_a_job():
    found = jobs(SUITE, Selection())
    assert [(job.case.op, job.direction) for job in found] == [
        ("conv2d", "forward"),
        ("conv2d", "grad_weights"),
        ("conv2d", "grad_input"),
        ("maxpool2d", "forward"),
        ("maxpool2d", "grad_input"),
    ]


def test_a_selection_narrows_the_jobs():
    found = jobs(SUITE, Selection(ops=("conv2d",), implementations=("numpy_gemm",), competitors=("none",)))
    assert {job.names for job in found} == {("numpy_gemm",)}
    assert {job.case.op for job in found} == {"conv2d"}


def test_competitors_do_not_run_where_no_named_implementation_exists():
    assert {job.case.op for job in jobs(SUITE, Selection(implementations=("numpy_gemm",)))} == {"conv2d"}


def test_ours_come_before_competitors():
    names = Selection().names("conv2d")
    assert names.index("numpy_gemm") < names.index("keras")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ops": ("conv3d",)}, "unknown operation 'conv3d'; known: conv2d"),
        ({"implementations": ("fast",)}, "unknown implementation 'fast'; known: .*numpy_gemm"),
        ({"directions": ("sideways",)}, "unknown direction 'sideways'; known: forward"),
        ({"competitors": ("caffe",)}, "unknown competitor 'caffe'; known: .*keras.*none"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(values, message):
    with pytest.raises(SpecError, match=message):
        Selection(**values)


def test_a_selection_that_leaves_nothing_says_so():
    with pytest.raises(SpecError, match="nothing of suite two is left"):
        jobs(SUITE, Selection(ops=("dense",)))


def test_only_jobs_without_rows_are_missing():
    wanted = jobs(SUITE, Selection(implementations=("numpy_gemm", "numba_jit_gemm"), competitors=("none",)))
    done = {("conv2d", str(SUITE.cases[0].spec), "forward", name) for name in wanted[0].names}
    assert missing(wanted, done) == wanted[1:]
    assert missing(wanted, ()) == wanted


def test_who_was_not_measured_in_the_same_rounds_cannot_join_afterwards():
    """But fewer than there were are done."""
    both, one, other = (
        jobs(SUITE, Selection(implementations=names, competitors=("none",)))
        for names in (("numpy_gemm", "numba_jit_gemm"), ("numpy_gemm",), ("numba_jit_gemm",))
    )
    done = {("conv2d", str(SUITE.cases[0].spec), "forward", "numpy_gemm")}
    for wanted in (both, other):
        with pytest.raises(SpecError, match=r"forward was measured with numpy_gemm, .*: numba_jit_gemm; .*--resume"):
            missing(wanted, done)
    assert missing(one, done) == one[1:]


def test_the_quick_suite_has_33_jobs():
    assert len(jobs(load("quick"), Selection())) == 33
