"""The truth is the same wherever it is computed, never strays from one library into the other, and is proven first."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from bench import check, inputs, truth
from bench.awkward import SHAPES
from impls import parse_case
from impls.specs import directions_of
from tests import strict_arrays

CASES = [
    (case, direction)
    for op, texts in SHAPES.items()
    for text in texts.values()
    for case in [parse_case(f"{op}:{text}")]
    for direction in directions_of(op)
]


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    """The library is found by its name, as every library is."""
    monkeypatch.setitem(sys.modules, "strict_arrays", strict_arrays)


@pytest.mark.parametrize(("case", "direction"), CASES, ids=str)
def test_every_judgement_is_the_same_on_a_device_as_on_the_host(case, direction):
    """Right results, wrong results and NaN, by every way of judging."""
    for design in inputs.judged(case):
        arrays = inputs.make(case, direction, design, seed=0)
        here, there = check.expected(case, direction, arrays), check.expected(case, direction, arrays, strict_arrays)
        right = [None if v is None else v.astype(np.float32) for v in here.values]
        wrong = [None if v is None else v + 1 for v in right]
        unwritten = [None if v is None else np.full_like(v, np.nan) for v in right]
        for outputs in (right, wrong, unwritten):
            found, expected = (
                check.verdict(case, direction, design, arrays, outputs, known, "direct", "float32")
                for known in (there, here)
            )
            assert found == expected
            assert found.is_right == (outputs is right)
            errors = [check.dense_error(case, direction, outputs, known) for known in (there, here)]
            assert errors[0] == errors[1]


def test_mixing_host_and_device_is_seen():
    """Or the tests above would show nothing."""
    with pytest.raises(TypeError, match="on a device"):
        strict_arrays.zeros(3) + np.ones(3)
    with pytest.raises(TypeError, match="not allowed"):
        np.asarray(strict_arrays.zeros(3))


def test_an_fft_is_judged_by_the_same_bound_on_a_device():
    case = parse_case("conv2d:2x5x9x3,k3x2,f4")
    arrays = inputs.make(case, "forward", inputs.INTEGERS, seed=0)
    here, there = check.expected(case, "forward", arrays), check.expected(case, "forward", arrays, strict_arrays)
    for shift in (0, 1e-6, 1):
        outputs = [here.values[0].astype(np.float32) + np.float32(shift)]
        found, expected = (
            check.verdict(case, "forward", inputs.INTEGERS, arrays, outputs, known, "fft", "float32")
            for known in (there, here)
        )
        assert found == expected
        assert found.is_right == (shift < 1)


def test_a_library_that_computes_the_same_is_proven():
    assert truth.disagreement(strict_arrays) is None
    assert truth.disagreement(np) is None


@pytest.mark.parametrize("planted", ["pad", "zeros", "maximum"])
def test_a_library_that_computes_in_half_the_digits_is_not_believed(monkeypatch, planted):
    """A float32 sum, or a border that is not what was asked for, is off by far more than float64 rounding."""
    original = getattr(strict_arrays, planted)

    def careless(*values, **named):
        found = original(*values, **named)
        return strict_arrays.StrictArray(found.inner.astype(np.float32).astype(found.inner.dtype) * (1 + 1e-7))

    def coarse(shape, *values):
        return strict_arrays.StrictArray(original(shape, *values).inner + 1e-7)

    monkeypatch.setattr(strict_arrays, planted, coarse if planted == "zeros" else careless)
    assert truth.disagreement(strict_arrays)


def library(is_available=lambda: True, **functions):
    """A stand-in for the installed CuPy."""
    found = types.SimpleNamespace(**{name: getattr(strict_arrays, name) for name in dir(strict_arrays)} | functions)
    found.is_available = is_available
    return found


def broken():
    raise OSError("libcuda.so.1: cannot open shared object file")


@pytest.mark.parametrize(
    ("cupy", "reason"),
    [
        (None, "CuPy cannot be imported"),
        (library(is_available=lambda: False), "CuPy sees no CUDA device"),
        (library(is_available=broken), "CuPy cannot compute here: OSError: libcuda"),
        (library(asarray=lambda a: strict_arrays.asarray(a * 2)), "CuPy differs from NumPy on values of conv2d"),
        (library(), ""),
    ],
)
def test_the_host_computes_the_truth_unless_the_device_is_proven(monkeypatch, cupy, reason):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    xp, why = truth.array_module.__wrapped__()
    assert why.startswith(reason)
    assert (xp is cupy) == (not reason)
    assert (xp is np) == bool(reason)
