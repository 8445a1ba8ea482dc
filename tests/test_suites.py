"""The grids are the published ones, and a file of cases is read or refused."""

import dataclasses

import pytest

from bench import suites
from impls import OPS, SpecError
from impls.specs import directions_of, traffic


@pytest.mark.parametrize(("name", "cases"), [("paper", 162), ("paper-large-kernels", 486)])
def test_the_published_grids_have_their_size(name, cases):
    suite = suites.load(name)
    assert len(set(suite.cases)) == cases
    assert {case.spec.batch for case in suite.cases} == {32}
    assert {case.spec.height for case in suite.cases} == {2, 4, 8, 16, 32, 64}
    assert all(case.spec.padding == "same" and case.spec.stride == (1, 1) for case in suite.cases)


def test_dear_cases_come_after_cheap_ones():
    flops = [case.spec.flops for case in suites.load("paper").cases]
    assert flops == sorted(flops)


def test_the_networks_suite_has_the_published_batches_and_no_case_twice():
    suite = suites.load("networks")
    assert len(set(suite.cases)) == len(suite.cases)
    assert {case.spec.batch for case in suite.cases} == {28, 3000, 1000}
    assert {case.op for case in suite.cases} == {"conv2d", "maxpool2d", "dense"}


def test_the_quick_suite_covers_every_operation():
    suite = suites.load("quick")
    assert {case.op for case in suite.cases} == set(OPS)
    assert len(suite.cases) == 12


def test_the_scaling_suite_varies_one_parameter_at_a_time_and_has_no_case_twice():
    specs = [case.spec for case in suites.load("scaling").cases]
    assert len(set(specs)) == len(specs) == sum(map(len, suites.SWEEPS.values())) - len(suites.SWEEPS) + 1
    assert all(suites.BASE in sweep.values() for sweep in suites.SWEEPS.values())


def test_a_file_of_cases_is_a_suite(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# two layers\nconv2d:1x4x4x1,k3x3,f2  # the first\n\ndense:2x3,u4\n")
    suite = suites.load(str(path))
    assert suite.name == "mine"
    assert [str(case) for case in suite.cases] == ["conv2d:1x4x4x1,k3x3,f2", "dense:2x3,u4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("conv2d:1x4x4x1,k3x3,f2\nconv2d:nonsense\n", "line 2"), ("# nothing\n", "holds no case")],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        suites.load(str(path))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "cases.bin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"cases\.bin cannot be read as a text file of cases"):
        suites.load(str(path))


def test_an_unknown_suite_names_the_known_ones():
    with pytest.raises(SpecError, match="quick, paper, paper-large-kernels, networks, awkward, scaling"):
        suites.load("nonsense")


def test_another_batch_changes_every_case():
    suite = suites.with_batch(suites.load("quick"), 3)
    assert {case.spec.batch for case in suite.cases} == {3}


def test_every_operation_has_awkward_cases():
    assert {case.op for case in suites.load("awkward").cases} == set(OPS)


@pytest.mark.parametrize("most", [10_000, 200_000, 1e9])
def test_a_cut_batch_is_the_largest_that_fits(most):
    for case, cut in zip(suites.load("quick").cases, suites.within(suites.load("quick"), most).cases, strict=True):
        larger = dataclasses.replace(cut.spec, batch=cut.spec.batch + 1)
        sizes = [max(traffic(spec, d) for d in directions_of(case.op)) for spec in (cut.spec, larger)]
        assert dataclasses.replace(cut.spec, batch=case.spec.batch) == case.spec
        assert sizes[0] <= most or cut.spec.batch == 1
        assert sizes[1] > most or cut == case
