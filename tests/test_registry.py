"""The file name is the name; a missing library is a reason; our own mistake is an error; others can add theirs."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import pytest

import impls
from bench import local
from impls import OPS, SpecError, Unavailable, parse_case, registry
from tests.plugins import forget, install

RIGHT = """
import numpy as np
from impls.contract import GEMM, Implementation, Plan

class Dense(Plan):
    offers = ("forward",)

    def forward(self, x, w, b, out):
        np.matmul(x, w, out=out)
        np.add(out, b, out=out)

IMPL = Implementation(Dense, algorithm=GEMM)
"""

CASE = parse_case("dense:3x4,u5")


@pytest.fixture
def loaded():
    """Forget the modules that a test imports."""
    before = set(sys.modules)
    yield
    forget([name for name in sys.modules if name not in before])


@pytest.fixture
def own_folder(tmp_path, monkeypatch, loaded):
    """A folder whose modules count as files of impls/dense."""
    package = importlib.import_module("impls.dense")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    return tmp_path


@pytest.fixture
def add(tmp_path, monkeypatch, loaded):
    """Install one module with entry points, as another package would."""

    def add(source, *entries):
        (tmp_path / "their_module.py").write_text(source)
        install(tmp_path, dict.fromkeys(entries, "their_module"), monkeypatch)

    return add


@pytest.mark.parametrize("op", OPS)
def test_names_are_the_public_files_of_the_folder_but_the_reference(op):
    found = {m.name for m in pkgutil.iter_modules(importlib.import_module(f"impls.{op}").__path__)}
    assert set(impls.names(op)) == {name for name in found if not name.startswith("_")} - {"reference"}


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in OPS for name in (*impls.names(op), "reference")])
def test_every_record_knows_its_operation_and_name_and_offers_something(op, name):
    try:
        implementation = impls.get(op, name)
    except Unavailable as reason:
        pytest.skip(f"{name}: {reason}")
    assert (implementation.op, implementation.name) == (op, name)
    assert not implementation.competitor
    assert implementation.directions


@pytest.mark.parametrize("op", OPS)
def test_competitors_are_labelled_and_never_among_ours(op):
    assert not set(registry.rivals(op)) & set(impls.names(op))
    assert all(impls.get(op, name).competitor for name in registry.rivals(op))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"no implementation 'fastest' of dense; known: .*numba_jit, numpy"):
        impls.get("dense", "fastest")


@pytest.mark.parametrize("ask", [registry.names, registry.rivals, registry.reference])
def test_an_unknown_operation_lists_the_known_ones(ask):
    with pytest.raises(SpecError, match="unknown operation 'conv3d'; known: conv2d, maxpool2d, avgpool2d, dense"):
        ask("conv3d")


def test_a_new_file_in_the_folder_is_found_and_computes(own_folder):
    (own_folder / "brand_new.py").write_text(RIGHT)
    assert "brand_new" in impls.names("dense")
    assert local.judge(impls.get("dense", "brand_new"), CASE, "forward").is_right


def test_a_library_that_is_missing_is_a_reason(own_folder):
    (own_folder / "needs_more.py").write_text("import a_library_that_nobody_has.part\n" + RIGHT)
    with pytest.raises(Unavailable, match="a_library_that_nobody_has is not installed"):
        impls.get("dense", "needs_more")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import impls.no_such_module\n", ModuleNotFoundError),
        ("from impls.contract import Impelmentation\n", ImportError),
        ("undefined\n", NameError),
        ("", AttributeError),
    ],
)
def test_a_mistake_of_our_own_is_an_error(own_folder, source, error):
    (own_folder / "mistaken.py").write_text(source)
    with pytest.raises(error):
        impls.get("dense", "mistaken")


def test_another_package_adds_an_implementation_by_an_entry_point(add):
    add(RIGHT, "dense.theirs", "conv2d.another")
    assert "theirs" in impls.names("dense")
    assert "theirs" not in impls.names("conv2d")
    assert local.judge(impls.get("dense", "theirs"), CASE, "forward").is_right


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no licence')\n", "cannot be imported: RuntimeError: no licence"),
        ("import a_library_that_nobody_has\n", "cannot be imported: ModuleNotFoundError"),
        ("IMPL = 3\n", "has no record named IMPL"),
    ],
)
def test_another_packages_mistake_is_listed_with_its_reason(add, source, reason):
    add(source, "dense.broken")
    assert "broken" in impls.names("dense")
    with pytest.raises(Unavailable, match=f"their_module {reason}"):
        impls.get("dense", "broken")


def test_a_plan_for_a_problem_that_is_not_supported_says_why():
    implementation = impls.get("dense", "numpy")
    spec = parse_case("dense:3x4,u5,float64").spec
    assert implementation.supports(spec) == "computes in float32, not in float64"
    with pytest.raises(Unavailable, match="computes in float32, not in float64"):
        implementation.plan(spec)
