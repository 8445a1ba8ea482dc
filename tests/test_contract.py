"""What a plan is bound to: host arrays as the contract says, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

import impls
from impls import parse
from impls.specs import FORWARD, arguments

SPEC = parse("conv2d", "2x5x4x3,k3x3,f2")
WRONG = {
    "another shape": ("x", lambda a: a[:1], r"\(2, 5, 4, 3\) as x, not float32 \(1, 5, 4, 3\);"),
    "another dtype": ("w", lambda a: a.astype(np.float64), r"float32 array \(3, 3, 3, 2\) as w, not float64"),
    "values apart": ("x", lambda a: np.repeat(a, 2, axis=3)[..., ::2], r"as x, .*, not C-contiguous; numpy.asconti"),
    "Fortran's order": ("out", np.asfortranarray, "as out, .*, not C-contiguous"),
}


def arrays(spec) -> dict[str, np.ndarray]:
    """Of a forward call."""
    return {a.name: np.ones(a.shape, spec.dtype) for a in arguments(spec, FORWARD) if a.shape is not None}


@pytest.mark.parametrize(("wrong", "change", "message"), WRONG.values(), ids=WRONG)
def test_an_array_that_is_not_as_the_contract_says_is_refused_by_its_name(wrong, change, message):
    """Compiled loops would go through it by address, and past its end."""
    given = arrays(SPEC)
    given[wrong] = change(given[wrong])
    plan = impls.get("conv2d", "numpy_gemm").plan(SPEC, (FORWARD,))
    with pytest.raises(ValueError, match=message):
        plan.bind(FORWARD, *given.values())


def test_the_definition_takes_any_dtype_and_no_other_shape():
    """It converts what it is given: the truth of float32 inputs is computed into float64 outputs."""
    plan = impls.get("conv2d", "reference").plan(SPEC, (FORWARD,))
    given = arrays(SPEC)
    given["out"] = given["out"].astype(np.float64)
    plan.bind(FORWARD, *given.values())()
    assert given["out"].max() == 28  # of 27 products of ones, and the bias
    given["x"] = given["x"][:1]
    with pytest.raises(ValueError, match="as x, not float32"):
        plan.bind(FORWARD, *given.values())


def test_a_bias_where_the_problem_has_none_is_refused():
    spec = parse("conv2d", "2x5x4x3,k3x3,f2,nobias")
    x, w, out = arrays(spec).values()
    plan = impls.get("conv2d", "numpy_gemm").plan(spec, (FORWARD,))
    with pytest.raises(ValueError, match="takes None as b, not float32"):
        plan.bind(FORWARD, x, w, np.ones(2, np.float32), out)
    plan.bind(FORWARD, x, w, None, out)()
    assert (out > 0).all()
