"""Every implementation in the registry on awkward shapes against the float64 definition: a new file is tested too."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bench import inputs, local
from bench.awkward import SHAPES
from bench.check import ROUNDOFF, SMALLEST_NORMAL
from impls import OPS, Case, Unavailable, get, names, parse, reference
from impls.contract import EVERY_PRODUCT, Implementation
from impls.devices import CPU
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, PoolSpec, SpecError, arguments, directions_of, spec_type

IMPLEMENTATIONS = [pytest.param(op, name, id=f"{op}-{name}") for op in OPS for name in names(op)]

PROBLEMS = [
    pytest.param(op, name, direction, Case(op, parse(op, text)), id=f"{op}-{name}-{direction}-{shape}")
    for op in OPS
    for name in names(op)
    for direction in directions_of(op)
    for shape, text in SHAPES[op].items()
]

LARGE = {
    "conv2d": "64x16x16x16,k3x3,f16,relu",
    "maxpool2d": "512x16x16x16,pool2x2",
    "avgpool2d": "512x16x16x16,pool3x3,s2x2,same",
    "dense": "8192x64,u64,relu",
}
"""Batches beyond every block, and arrays far beyond what a call needs for itself."""

MOST_SCRATCH_BYTES = 64 * 2**20

ALLOCATES = {("conv2d", "scipy"): "scipy.signal has no argument for an array to fill"}

MAY_DROP_NAN = {("maxpool2d", "cv2"): "OpenCV's maximum of a number and NaN depends on their order"}


def refusal(op: str, name: str, spec, direction: str) -> str | None:
    """None, or the reason why this problem cannot be computed here, be it a missing library."""
    try:
        return get(op, name).supports(spec, direction)
    except Unavailable as error:
        return str(error)


def usable(op: str, name: str) -> Implementation:
    """The implementation, or a skip with the reason; a failure where a GPU is required and missing."""
    try:
        implementation = get(op, name)
        reason = implementation.missing()
    except Unavailable as error:
        reason = str(error)
    if reason and ("cuda" in name or "cupy" in name) and os.environ.get("LAYERBENCH_REQUIRE_CUDA") == "1":
        pytest.fail(f"{name} is required: {reason}")
    if reason:
        pytest.skip(f"{name}: {reason}")
    return implementation


def able(op: str, name: str, spec, direction: str) -> Implementation:
    """The implementation, or a skip with the reason why it cannot compute this problem."""
    implementation = usable(op, name)
    if reason := implementation.supports(spec, direction):
        pytest.skip(f"{name}: {reason}")
    return implementation


@pytest.mark.parametrize(("op", "name", "direction", "case"), PROBLEMS)
def test_every_value_is_within_its_bound_and_nothing_else_is_touched(op, name, direction, case):
    """Designed inputs; outputs start as NaN; inputs and the memory around all arrays stay as they are."""
    judgement = local.judge(able(op, name, case.spec, direction), case, direction, seed=1)
    assert judgement.is_right, f"{judgement.bounds:.3g} bounds: {judgement.where}"


@pytest.mark.parametrize("op", OPS)
def test_every_awkward_shape_is_computed_by_somebody_in_every_direction(op):
    """A shape that all of them refuse would be tested by none."""
    refused = [
        (shape, direction)
        for shape, text in SHAPES[op].items()
        for direction in directions_of(op)
        if all(refusal(op, name, parse(op, text), direction) for name in names(op))
    ]
    assert refused == []


@pytest.mark.parametrize(("op", "name"), IMPLEMENTATIONS)
def test_what_scratch_memory_held_before_does_not_matter(op, name):
    """Plans may share a workspace: between two calls another plan has written to it."""
    implementation = usable(op, name)
    if implementation.device is not CPU:
        pytest.skip(f"{name}: its workspace is not in host memory")
    for text in SHAPES[op].values():
        spec = parse(op, text)
        for direction in implementation.directions:
            if implementation.supports(spec, direction):
                continue
            workspace = implementation.plan_type.allocate(implementation.plan_type.scratch_bytes(spec, (direction,)))
            plan = implementation.plan(spec, (direction,), workspace)
            arrays = inputs.make(Case(op, spec), direction, inputs.DENSE, seed=2)
            first = local.compute(plan, direction, arrays)
            workspace.fill(0xFF)  # NaN in every float
            second = local.compute(plan, direction, arrays)
            for before, after in zip(first, second, strict=True):
                np.testing.assert_array_equal(before, after, err_msg=f"{spec} {direction}")


@pytest.mark.parametrize(("op", "name"), IMPLEMENTATIONS)
def test_scratch_is_bounded_and_does_not_grow_with_the_batch(op, name):
    implementation = usable(op, name)
    spec = parse(op, LARGE[op])
    for direction in implementation.directions:
        if implementation.supports(spec, direction) is None:
            sizes = {
                implementation.plan_type.scratch_bytes(replace(spec, batch=batch), (direction,))
                for batch in (2**14, 2**15)
            }
            assert len(sizes) == 1
            assert max(sizes) <= MOST_SCRATCH_BYTES


@pytest.mark.parametrize(("op", "name"), IMPLEMENTATIONS)
def test_a_call_allocates_nothing_of_the_size_of_the_batch(op, name):
    """Of Python's own memory and NumPy's, which are traced."""
    implementation = usable(op, name)
    if reason := ALLOCATES.get((op, name)):
        pytest.skip(f"{name}: {reason}")
    if implementation.device is not CPU:
        pytest.skip(f"{name}: its memory is not the host's")
    spec = parse(op, LARGE[op])
    for direction in implementation.directions:
        if implementation.supports(spec, direction):
            continue
        plan = implementation.plan(spec, (direction,))
        arrays = inputs.make(Case(op, spec), direction, inputs.DENSE, seed=3)
        outputs = [np.empty(a.shape, spec.dtype) for a in arguments(spec, direction) if a.is_output]
        call = plan.bind(direction, *arrays, *outputs)
        call()
        tracemalloc.start()
        call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < max(a.nbytes for a in (*arrays, *outputs)) / 8, direction


@pytest.mark.parametrize(("op", "name"), IMPLEMENTATIONS)
def test_a_direction_that_is_not_planned_is_refused_with_its_name(op, name):
    implementation = usable(op, name)
    plan = implementation.plan(parse(op, SHAPES[op]["batch of one"]), (FORWARD,))
    with pytest.raises(NotImplementedError, match="planned for forward, not for grad_input"):
        plan.bind(GRAD_INPUT)


@pytest.mark.parametrize(("op", "name"), [p for p in IMPLEMENTATIONS if p.values[0] == "maxpool2d"])
def test_a_nan_under_a_window_makes_its_maximum_nan_and_takes_its_gradient(op, name):
    """As NumPy's maximum does; the other windows do not notice."""
    spec = parse(op, "2x6x6x18,pool3x2,s2x2,same")
    implementation = able(op, name, spec, FORWARD)
    if reason := MAY_DROP_NAN.get((op, name)):
        pytest.skip(f"{name}: {reason}")
    rng = np.random.default_rng(4)
    x = rng.standard_normal(spec.x_shape, np.float32)
    x[rng.random(spec.x_shape) < 0.1] = np.nan
    dy = rng.standard_normal(spec.y_shape, np.float32)
    truth, plan = reference(op).plan(spec), implementation.plan(spec)
    (y,) = local.compute(truth, FORWARD, (x,))
    np.testing.assert_array_equal(local.compute(plan, FORWARD, (x,))[0], y)
    (dx,) = local.compute(plan, GRAD_INPUT, (x, y, dy))
    np.testing.assert_allclose(dx, local.compute(truth, GRAD_INPUT, (x, y, dy))[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("op", "name"), [p for p in IMPLEMENTATIONS if "pool" in p.values[0]])
def test_an_infinity_stays_under_its_own_windows(op, name):
    """Sums that slide along, and products with masks, would carry it on as NaN."""
    spec = parse(op, "2x7x8x5,pool3x3,s2x2,same")
    implementation = usable(op, name)
    rng = np.random.default_rng(5)
    x, dy = rng.standard_normal(spec.x_shape, np.float32), rng.standard_normal(spec.y_shape, np.float32)
    x[0, 2, 3, 1], dy[1, 2, 1, 3] = np.inf, -np.inf
    truth, plan = reference(op).plan(spec), implementation.plan(spec)
    (y,) = local.compute(truth, FORWARD, (x,))
    for direction, arrays in ((FORWARD, (x,)), (GRAD_INPUT, (x, y, dy))):
        if direction in plan.directions:
            (got,), (due,) = local.compute(plan, direction, arrays), local.compute(truth, direction, arrays)
            np.testing.assert_allclose(got, due, rtol=1e-6, atol=1e-6)


SIDE = st.integers(1, 6)
PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
BORDER = st.tuples(st.integers(0, 2), st.integers(0, 2))


@st.composite
def linear_specs(draw, op: str):
    """Small problems without bias and activation."""
    values = {"batch": draw(st.integers(1, 3))}
    if op == "dense":
        values |= {"inputs": draw(st.integers(1, 9)), "units": draw(st.integers(1, 9)), "bias": False}
    else:
        padding = draw(st.sampled_from(["same", "valid"]) | st.tuples(BORDER, BORDER))
        values |= {"height": draw(SIDE), "width": draw(SIDE), "padding": padding, "stride": draw(PAIR)}
    if op == "conv2d":
        groups = draw(st.integers(1, 3))
        values |= {"channels": groups * draw(st.integers(1, 3)), "filters": groups * draw(st.integers(1, 3))}
        values |= {"kernel": draw(PAIR), "dilation": draw(PAIR), "groups": groups, "bias": False}
    elif op != "dense":
        values |= {"channels": draw(st.integers(1, 9)), "pool": draw(PAIR)}
    try:
        return spec_type(op)(**values)
    except SpecError:
        assume(False)


def inner(a, b) -> float:
    """<a, b> in float64."""
    return float(np.vdot(np.asarray(a, np.float64), np.asarray(b, np.float64)))


@pytest.mark.parametrize(("op", "name"), IMPLEMENTATIONS)
def test_gradients_are_adjoint_to_forward(op, name):
    """<forward(x), dy> = <x, grad_input> = <w, grad_weights>: no second implementation needed.

    Each side errs by at most gamma_(k+1) * <|x| * |w|, |dy|>, k being the terms of its sums, 1 an average's division.
    """
    implementation = usable(op, name)
    u, tiny = ROUNDOFF["float32"], SMALLEST_NORMAL["float32"]

    @settings(max_examples=15, deadline=None, database=None, derandomize=True)
    @given(spec=linear_specs(op), seed=st.integers(0, 2**32 - 1))
    def adjoint(spec, seed):
        directions = [
            d
            for d in implementation.directions
            if implementation.supports(spec, d) is None and implementation.algorithm_of(spec, d) in EVERY_PRODUCT
        ]
        if FORWARD not in directions:
            return
        rng = np.random.default_rng(seed)
        x, dy = rng.standard_normal(spec.x_shape, np.float32), rng.standard_normal(spec.y_shape, np.float32)
        w = None if isinstance(spec, PoolSpec) else rng.standard_normal(spec.w_shape, np.float32)
        plan = implementation.plan(spec, tuple(directions))
        truth = reference(op).plan(spec, (FORWARD,))
        operands = (x,) if w is None else (x, w, None)
        (y,) = local.compute(plan, FORWARD, operands)
        (magnitudes,) = local.compute(truth, FORWARD, [None if a is None else np.abs(a) for a in operands])
        calls = {GRAD_INPUT: (x, (x, y, dy) if w is None else (dy, w)), GRAD_WEIGHTS: (w, (x, dy))}
        for direction in directions[1:]:
            operand, arrays = calls[direction]
            gradient = local.compute(plan, direction, arrays)[0]
            k = spec.terms_of(FORWARD) + 1 + spec.terms_of(direction) + 1
            bound = k * u / (1 - k * u) * inner(magnitudes, np.abs(dy)) + k * tiny
            assert abs(inner(y, dy) - inner(operand, gradient)) <= bound, f"{spec} {direction}"

    if len(implementation.directions) == 1:
        pytest.skip(f"{name} computes no gradient")
    adjoint()
