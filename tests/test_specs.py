"""Specs are read, written, refused with a reason, and count what a loop would count."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from impls import OPS, Case, ConvSpec, DenseSpec, PoolSpec, SpecError, parse, parse_case
from impls.specs import DTYPES, FORWARD, GRAD_INPUT, GRAD_WEIGHTS, arguments, directions_of, spec_type, traffic

SIZE = st.integers(1, 40)
PAIR = st.tuples(st.integers(1, 7), st.integers(1, 7))
BORDER = st.tuples(st.integers(0, 4), st.integers(0, 4))
DTYPE = {"dtype": st.sampled_from(DTYPES)}
ENDING = DTYPE | {"bias": st.booleans(), "activation": st.sampled_from([None, "relu"])}
IMAGE = {
    "batch": SIZE,
    "height": SIZE,
    "width": SIZE,
    "padding": st.sampled_from(["same", "valid"]) | st.tuples(BORDER, BORDER),
}
FIELDS = {
    ConvSpec: IMAGE | ENDING | {"kernel": PAIR, "stride": PAIR, "dilation": PAIR, "groups": st.integers(1, 4)},
    PoolSpec: IMAGE | DTYPE | {"channels": SIZE, "pool": PAIR, "stride": st.none() | PAIR},
    DenseSpec: ENDING | {"batch": SIZE, "inputs": SIZE, "units": SIZE},
}


@st.composite
def cases(draw):
    """Any valid problem of any operation."""
    op = draw(st.sampled_from(OPS))
    values = {name: draw(strategy) for name, strategy in FIELDS[spec_type(op)].items()}
    if op == "conv2d":
        values |= {name: values["groups"] * draw(st.integers(1, 5)) for name in ("channels", "filters")}
    try:
        return Case(op, spec_type(op)(**values))
    except SpecError:
        assume(False)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(cases())
def test_the_text_form_reads_back_as_the_same_case(case):
    assert parse_case(str(case)) == case


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("conv2d:32x28x28x1,k5,f8", "conv2d:32x28x28x1,k5x5,f8"),
        ("conv2d: 2x8x8x4 , f8, k3x3 , same, s1, linear, bias", "conv2d:2x8x8x4,k3x3,f8"),
        ("conv2d:2x8x8x4,relu,nobias,g2,d2x1,p1:0:2:3,f8,k3", "conv2d:2x8x8x4,k3x3,f8,p1:0:2:3,d2x1,g2,nobias,relu"),
        ("maxpool2d:2x8x8x4", "maxpool2d:2x8x8x4,pool2x2"),
        ("avgpool2d:2x8x8x4,pool3,s3,valid", "avgpool2d:2x8x8x4,pool3x3"),
        ("dense:32x784,u128,float32", "dense:32x784,u128"),
    ],
)
def test_only_what_differs_from_the_default_is_written_and_in_one_order(text, written):
    assert str(parse_case(text)) == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2x8x8x4,k3x3,f8", "must start with an operation and a colon: conv2d:, maxpool2d:, avgpool2d:, dense:"),
        ("conv3d:2x8x8x4", "must start with an operation"),
        ("conv2d:2x8x8,k3x3,f8", "must start with batchxheightxwidthxchannels, not '2x8x8'"),
        ("conv2d:2x8xax4,k3x3,f8", "expected whole numbers joined by x"),
        ("conv2d:2x8x8x4,f8", "lacks its kernel; for example 32x28x28x1,k5x5,f8"),
        ("conv2d:2x8x8x4,k3x3", "lacks its filters"),
        ("conv2d:2x8x8x4,k3x3,f8,f9", "'f9' .* is given twice"),
        ("conv2d:2x8x8x4,k3x3,f8,pool2x2", "'pool2x2' .* is not for conv2d"),
        ("conv2d:2x8x8x4,k3x3x3,f8", "cannot read 'k3x3x3'"),
        ("conv2d:2x8x8x4,k3x3,f8,p1:1", "cannot read 'p1:1'"),
        ("conv2d:2x8x8x4,k3x3,f0", "filters=0 must be a whole number of at least 1"),
        ("conv2d:0x8x8x4,k3x3,f8", "batch=0 must be"),
        ("conv2d:2x8x8x4,k3x3,f8,g3", "groups=3 must divide channels=4 and filters=8"),
        ("conv2d:2x8x8x4,k9x3,f8,valid", "spans 9x3 pixels, more than the padded image of 8x8"),
        ("conv2d:2x8x8x4,k3x3,f8,valid,d1x4", "spans 3x9 pixels"),
        ("conv2d:2x8x8x4,k3x3,f8,s0x1", r"stride=\(0, 1\) must be two whole numbers of at least 1"),
        ("maxpool2d:2x8x8x4,pool2x2,nobias", "'nobias' .* is not for maxpool2d"),
        ("maxpool2d:2x8x8x4,pool2x2,p2:0:0:0", "padding must be smaller than the window on every side"),
        ("dense:32,u4", "must start with batchxinputs, not '32'"),
        ("dense:32x4", "lacks its units; for example 32x784,u128"),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(SpecError, match=message):
        parse_case(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": -1}, "batch=-1 must be"),
        ({"batch": True}, "batch=True must be"),
        ({"height": 2.0}, "height=2.0 must be"),
        ({"kernel": 3}, "kernel=3 must be two whole numbers"),
        ({"padding": "full"}, "padding='full' must be 'same', 'valid' or"),
        ({"padding": ((0, -1), (0, 0))}, "must be 'same', 'valid' or"),
        ({"padding": (1, 1)}, "must be 'same', 'valid' or"),
        ({"dtype": "float16"}, "dtype='float16' must be one of float32, float64"),
        ({"activation": "tanh"}, "activation='tanh' must be None or 'relu'"),
        ({"bias": 1}, "bias=1 must be True or False"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(change, message):
    values = {"batch": 2, "height": 8, "width": 8, "channels": 4, "filters": 8, "kernel": (3, 3)}
    with pytest.raises(SpecError, match=message):
        ConvSpec(**(values | change))


def test_an_operation_takes_its_own_kind_of_spec():
    with pytest.raises(SpecError, match="dense takes a DenseSpec, not a PoolSpec"):
        Case("dense", PoolSpec(1, 2, 2, 1))
    with pytest.raises(SpecError, match="unknown operation 'conv3d'; known: conv2d, maxpool2d, avgpool2d, dense"):
        Case("conv3d", PoolSpec(1, 2, 2, 1))


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "before", "after"),
    [
        (5, 3, 1, 1, 1),
        (5, 3, 2, 1, 1),
        (4, 3, 2, 0, 1),
        (6, 2, 1, 0, 1),
        (6, 2, 2, 0, 0),
        (7, 2, 2, 0, 1),
        (3, 1, 2, 0, 0),
        (2, 7, 1, 3, 3),
        (10, 4, 3, 1, 2),
        (11, 4, 3, 1, 1),
        (12, 4, 3, 0, 1),
    ],
)
def test_same_padding_puts_the_odd_pixel_after_the_image(side, kernel, stride, before, after):
    """Keras' formula, max((ceil(side / stride) - 1) * stride + kernel - side, 0), worked out by hand."""
    spec = ConvSpec(1, side, side, 1, 1, (kernel, kernel), (stride, stride))
    assert spec.pads == ((before, after), (before, after))
    assert spec.y_shape == (1, math.ceil(side / stride), math.ceil(side / stride), 1)


COUNTED = (
    "conv2d:2x5x6x4,k3x2,f6,g2",
    "conv2d:2x5x6x4,k3x2,f6,valid,s2x1,d2x3",
    "conv2d:1x3x2x1,k5x7,f3,nobias",
    "conv2d:1x4x5x2,k2x3,f2,p3:0:1:2,s2x2",
    "maxpool2d:2x7x5x3,pool2x2",
    "avgpool2d:2x7x5x3,pool3x3,s2x1,same",
    "maxpool2d:1x4x4x1,pool3x2,s3x3,p2:0:1:1",
)


@pytest.mark.parametrize("case", [parse_case(text) for text in COUNTED], ids=str)
def test_flops_are_those_that_a_loop_would_count(case):
    """Two per product of a real pixel and a weight, one per pixel under a pooling window; padding is free."""
    spec = case.spec
    is_conv = isinstance(spec, ConvSpec)
    taps, stride, dilation = (spec.kernel, spec.stride, spec.dilation) if is_conv else (spec.pool, spec.step, (1, 1))
    _, out_h, out_w, _ = spec.y_shape
    met = sum(
        0 <= i * stride[0] + a * dilation[0] - spec.pads[0][0] < spec.height
        and 0 <= j * stride[1] + b * dilation[1] - spec.pads[1][0] < spec.width
        for i, j, a, b in product(range(out_h), range(out_w), range(taps[0]), range(taps[1]))
    )
    per_tap = 2 * spec.channels // spec.groups * spec.filters if is_conv else spec.channels
    assert spec.flops == spec.batch * met * per_tap


def test_dense_flops_are_two_per_product_and_bytes_count_every_array_once():
    spec = parse("dense", "3x4,u5")
    assert spec.flops == 2 * 3 * 4 * 5
    assert spec.bytes == 4 * (3 * 4 + 4 * 5 + 5 + 3 * 5)


def test_the_least_traffic_counts_the_arrays_of_the_direction():
    spec = parse("maxpool2d", "2x4x6x3,pool2x2,float64")
    pixels, windows = 2 * 4 * 6 * 3, 2 * 2 * 3 * 3
    assert traffic(spec, FORWARD) == 8 * (pixels + windows)
    assert traffic(spec, GRAD_INPUT) == 8 * (2 * pixels + 2 * windows)


@pytest.mark.parametrize(
    ("text", "direction", "values"),
    [
        ("conv2d:2x9x9x3,k1x1,f4,s3x3", FORWARD, 2 * 9 * 3 + 3 * 4 + 4 + 2 * 9 * 4),
        ("conv2d:2x9x9x3,k1x1,f4,s3x3", GRAD_WEIGHTS, 2 * 9 * 3 + 2 * 9 * 4 + 3 * 4 + 4),
        ("conv2d:2x9x9x3,k1x1,f4,s3x3", GRAD_INPUT, 2 * 9 * 4 + 3 * 4 + 2 * 81 * 3),
        ("conv2d:1x7x9x1,k2x2,f1,s3x3,d1x2,valid,nobias", FORWARD, 4 * 6 + 4 + 2 * 3),
        ("conv2d:1x1x1x1,k3x3,f1,nobias", FORWARD, 1 + 1 + 1),
        ("conv2d:1x1x1x1,k1x1,f1,p1:1:1:1,nobias", GRAD_WEIGHTS, 1 + 1 + 1),
        ("conv2d:1x1x1x1,k1x1,f1,p1:1:1:1", GRAD_WEIGHTS, 1 + 9 + 1 + 1),
        ("maxpool2d:2x7x7x3,pool2x2,s3x3", FORWARD, 2 * 16 * 3 + 2 * 4 * 3),
        ("maxpool2d:2x7x7x3,pool2x2,s3x3", GRAD_INPUT, 2 * 16 * 3 + 2 * 4 * 3 + 2 * 49 * 3),
        ("avgpool2d:2x5x5x3,pool2x2", FORWARD, 2 * 16 * 3 + 2 * 4 * 3),
        ("dense:3x4,u5", FORWARD, 12 + 20 + 5 + 15),
    ],
)
def test_what_no_result_depends_on_is_no_least_traffic(text, direction, values):
    """Pixels between windows, and taps and windows that lie on padding alone, need not be read; outputs are written."""
    case = parse_case(text)
    assert case.least_traffic(direction) == case.least_reads(direction) + case.least_writes(direction) == 4 * values


def test_terms_are_the_products_in_one_sum_of_each_direction():
    conv = parse("conv2d", "2x5x6x4,k3x2,f6,g2,valid")
    assert [conv.terms_of(d) for d in (FORWARD, GRAD_WEIGHTS, GRAD_INPUT)] == [3 * 2 * 2, 2 * 3 * 5, 3 * 2 * 3]
    dense = parse("dense", "3x4,u5")
    assert [dense.terms_of(d) for d in (FORWARD, GRAD_WEIGHTS, GRAD_INPUT)] == [4, 3, 5]
    pool = parse("maxpool2d", "2x7x5x3,pool3x3,s2x1")
    assert [pool.terms_of(d) for d in (FORWARD, GRAD_INPUT)] == [9, 2 * 3]


def test_arguments_come_in_the_order_of_the_contract_and_absent_ones_have_no_shape():
    spec = parse("dense", "3x4,u5,nobias")
    found = {d: [(a.name, a.shape, a.is_output) for a in arguments(spec, d)] for d in directions_of("dense")}
    assert found == {
        FORWARD: [("x", (3, 4), False), ("w", (4, 5), False), ("b", None, False), ("out", (3, 5), True)],
        GRAD_WEIGHTS: [("x", (3, 4), False), ("dy", (3, 5), False), ("dw", (4, 5), True), ("db", None, True)],
        GRAD_INPUT: [("dy", (3, 5), False), ("w", (4, 5), False), ("dx", (3, 4), True)],
    }


def test_pooling_has_no_weight_gradient():
    assert directions_of("maxpool2d") == directions_of("avgpool2d") == (FORWARD, GRAD_INPUT)
    with pytest.raises(KeyError, match=GRAD_WEIGHTS):
        arguments(PoolSpec(1, 2, 2, 1), GRAD_WEIGHTS)
