"""Keras records a reference model, and implementations are judged inside it: right ones pass, wrong ones are caught."""

from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from bench.check import definition
from bench.keras_model import (
    BIAS,
    CLASSES,
    LayerTrace,
    ModelError,
    Trace,
    initial_weights,
    parse_model,
    reference_models,
    trace,
)
from bench.model_check import AS_DEFINED, RECORDED, Failure, LayerRow, SwapRow, softmax_loss, verify_model
from impls import Unavailable
from impls.contract import FLOAT32, TF32
from impls.nn.structure import parse, steps
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, Case, parse_case
from reports.checks import layer_table, swap_table
from reports.formats import markdown_table

STRUCTURE = parse("C(3,4,r);M(2);DR(0.5);C(3,6,r)x2;F();D(12,r);DR(0.5);D(5,sm)")
IMAGE = (9, 7, 2)
BATCH = 16
EVERY_OP = ("conv2d", "maxpool2d", "dense")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Trace:
    """What Keras computes in a small model; odd sides, so that pooling drops a row and a column."""
    rng = np.random.default_rng(7)
    images = rng.uniform(-1, 1, (BATCH, *IMAGE)).astype(np.float32)
    return trace(
        STRUCTURE, images, rng.integers(0, 5, BATCH), seed=3, threads=1, folder=tmp_path_factory.mktemp("trace")
    )


def single(case, direction, inputs):
    """An independent float32 implementation: unrolled windows for convolution, else the rounded definition."""
    if case.op != "conv2d":
        return tuple(output.astype(np.float32) for output in definition(case, direction, inputs))
    if direction == GRAD_WEIGHTS:
        x, dy = inputs
        rows = windows(x, case.spec.kernel).reshape(-1, case.spec.terms)
        return (rows.T @ dy.reshape(len(rows), -1)).reshape(case.spec.w_shape), dy.sum(axis=(0, 1, 2))
    if direction == GRAD_INPUT:
        dy, w = inputs
        return (correlate(dy, w[::-1, ::-1].swapaxes(2, 3)),)
    x, w, b = inputs
    y = correlate(x, w) + b
    return (np.maximum(y, 0) if case.spec.activation == "relu" else y,)


def windows(x, kernel):
    """Every window of an image padded to give as many windows as pixels: (N, H, W, KH, KW, C)."""
    (top, left), (bottom, right) = (tuple((k - 1) // 2 for k in kernel), tuple(k // 2 for k in kernel))
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    return np.moveaxis(sliding_window_view(padded, kernel, axis=(1, 2)), 3, -1)


def correlate(x, w):
    """Cross-correlation with an odd kernel and "same" padding, in x's own precision."""
    rows = windows(x, w.shape[:2])
    return rows.reshape(*rows.shape[:3], -1) @ w.reshape(-1, w.shape[-1])


def flipped_kernel(case, direction, inputs):
    """Convolution as mathematics has it."""
    x, w, b = inputs
    return single(case, direction, (x, w[::-1, ::-1], b))


def forgot_bias(case, direction, inputs):
    """y = x * w."""
    x, w, b = inputs
    return single(case, direction, (x, w, np.zeros_like(b)))


def forgot_relu(case, direction, inputs):
    """Negative values pass."""
    return single(Case(case.op, replace(case.spec, activation=None)), direction, inputs)


def half_precision(case, direction, inputs):
    """Inputs rounded to float16."""
    return single(case, direction, tuple(i.astype(np.float16).astype(np.float32) for i in inputs))


def mean_over_the_batch(case, direction, inputs):
    """Gradients averaged, where the contract says summed."""
    return tuple(output / case.spec.batch for output in single(case, direction, inputs))


def all_zeros(case, direction, inputs):
    """Nothing computed."""
    return tuple(np.zeros_like(output) for output in single(case, direction, inputs))


def one_sample_is_late(case, direction, inputs):
    """The batch is shifted by one."""
    return tuple(np.roll(output, 1, axis=0) for output in single(case, direction, inputs))


def one_bad_value(case, direction, inputs):
    """A single value is not a number."""
    outputs = tuple(output.copy() for output in single(case, direction, inputs))
    outputs[0].flat[0] = np.nan
    return outputs


def gradient_to_every_pixel(case, direction, inputs):
    """Pooling's gradient goes to the whole window."""
    _, _, dy = inputs
    dx = np.zeros(case.spec.x_shape, np.float32)
    height, width = (side * 2 for side in dy.shape[1:3])
    dx[:, :height, :width] = dy.repeat(2, axis=1).repeat(2, axis=2)
    return (dx,)


WRONG = [
    ("conv2d", FORWARD, flipped_kernel),
    ("conv2d", FORWARD, forgot_bias),
    ("conv2d", FORWARD, forgot_relu),
    ("conv2d", FORWARD, half_precision),
    ("conv2d", FORWARD, one_bad_value),
    ("conv2d", GRAD_WEIGHTS, all_zeros),
    ("conv2d", GRAD_WEIGHTS, half_precision),
    ("conv2d", GRAD_WEIGHTS, mean_over_the_batch),
    ("conv2d", GRAD_INPUT, one_sample_is_late),
    ("conv2d", GRAD_INPUT, one_bad_value),
    ("maxpool2d", FORWARD, half_precision),
    ("maxpool2d", FORWARD, one_sample_is_late),
    ("maxpool2d", GRAD_INPUT, gradient_to_every_pixel),
    ("dense", FORWARD, forgot_bias),
    ("dense", FORWARD, forgot_relu),
    ("dense", GRAD_WEIGHTS, all_zeros),
    ("dense", GRAD_INPUT, one_sample_is_late),
]


def computing(**planted):
    """A ``compute`` by name: the definition, ours in float32 (also for Keras), and planted (direction, function)."""

    def compute(name, case, direction, inputs):
        if name == "reference":
            return definition(case, direction, inputs)
        at, function = planted.get(name, (None, single))
        return function(case, direction, inputs) if at in (direction, "any") else single(case, direction, inputs)

    return compute


def judged(recorded, compute, ops, name, declared=AS_DEFINED):
    """(layer rows, swap rows) of one implementation."""
    found = verify_model(recorded, dict.fromkeys(ops, (name,)), compute, declared=lambda *_: declared)
    rows = [r for r in found if r.implementation == name]
    return [r for r in rows if isinstance(r, LayerRow)], [r for r in rows if isinstance(r, SwapRow)]


def test_keras_runs_in_inference_mode_and_its_values_chain(recorded):
    """Each layer's input is the output before it: nothing was dropped."""
    assert [layer.name for layer in recorded.layers] == ["c0", "m1", "c3", "c4", "d6", "d8"]
    assert recorded.backend.partition(" ")[0] in ("tensorflow", "torch")
    for layer in recorded.layers:
        (out,) = definition(layer.case, FORWARD, (layer.x,) if layer.w is None else (layer.x, layer.w, layer.b))
        np.testing.assert_allclose(layer.out, out, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_keras_on_torch_is_a_witness_too(recorded, monkeypatch, tmp_path):
    """Another backend records the same model: its values are within the same bounds."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    other = trace(STRUCTURE, recorded.images, recorded.labels, seed=3, threads=1, folder=tmp_path)
    assert other.backend.startswith("torch ")
    assert other.loss == pytest.approx(recorded.loss, rel=1e-6)
    np.testing.assert_allclose(other.logits, recorded.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.layers[0].dw, recorded.layers[0].dw, rtol=1e-4, atol=1e-6)
    assert {row.status for row in verify_model(other, {}, computing())} == {"OK"}


def test_the_gradients_that_keras_recorded_chain(recorded):
    """What leaves a layer arrives at the one before, less what its relu has masked."""
    for before, after in pairwise(recorded.layers):
        arriving = after.dx.reshape(before.out.shape)
        masked = arriving * (before.out > 0) if "relu" in str(before.case) else arriving
        np.testing.assert_array_equal(before.dy, masked)


def test_a_record_that_contradicts_float64_is_wrong(recorded):
    """Keras is judged at every layer; a record with another layer's sign does not pass."""
    layers = (replace(recorded.layers[0], dw=-recorded.layers[0].dw), *recorded.layers[1:])
    rows = list(verify_model(replace(recorded, layers=layers), {}, computing()))
    assert {row.implementation for row in rows} == {RECORDED}
    assert [(row.layer, row.direction) for row in rows if row.status != "OK"] == [("c0", GRAD_WEIGHTS)]


@pytest.mark.parametrize(("algorithm", "status"), [("direct", "WRONG"), ("winograd(4, 3)", "OK"), ("fft", "OK")])
def test_a_declared_transform_is_held_to_its_own_bound(recorded, algorithm, status):
    """It leaves a rest where every product is zero: here x has one column, dy another, further away than the kernel."""
    [layer] = [layer for layer in recorded.layers if layer.name == "c3"]
    x, dy = np.zeros_like(layer.x), np.zeros_like(layer.dy)
    x[:, :, 0], dy[:, :, 2] = 1, 1

    def rest(case, direction, inputs):
        return tuple(output + np.float32(1e-9) for output in single(case, direction, inputs))

    one = replace(recorded, layers=(replace(layer, x=x, dy=dy),))
    how = algorithm, FLOAT32
    rows = verify_model(one, {"conv2d": ("w",)}, computing(w=(GRAD_WEIGHTS, rest)), declared=lambda *_: how)
    found = next(r for r in rows if (r.implementation, r.direction) == ("w", GRAD_WEIGHTS))
    assert found.status == status, found.reason


@pytest.mark.parametrize(("bits", "arithmetic", "right"), [(11, TF32, True), (11, FLOAT32, False), (8, TF32, False)])
def test_arithmetic_that_cuts_factors_is_held_to_what_it_declares(recorded, bits, arithmetic, right):
    """At every layer with weights. 11 bits are what a tensor core reads of a TF32 factor, bfloat16 has 8."""
    mask = np.uint32(0xFFFFFFFF << (24 - bits) & 0xFFFFFFFF)

    def cut(case, direction, inputs):
        factors = tuple((factor.view(np.uint32) & mask).view(np.float32) for factor in inputs[:2])
        return single(case, direction, (*factors, *inputs[2:]))

    layers, swaps = judged(recorded, computing(t=("any", cut)), ("conv2d", "dense"), "t", ("direct", arithmetic))
    assert {row.status for row in layers} == {"OK" if right else "WRONG"}
    assert right <= all(row.status == "OK" for row in swaps)


def test_arithmetic_without_a_bound_is_an_error_and_the_others_are_judged(recorded):
    layers, swaps = judged(recorded, computing(), EVERY_OP, "b", ("direct", "bfloat16"))
    assert {row.status for row in layers + swaps} == {"ERROR"}
    assert "it cannot be judged: ValueError: no bound is known for bfloat16 arithmetic" in layers[0].reason


def test_keras_loss_and_its_gradient_are_those_of_softmax_and_cross_entropy(recorded):
    """The gradient that Keras propagates back is of the mean loss, at the logits."""
    loss, gradient = softmax_loss(recorded.logits, recorded.labels)
    assert recorded.loss == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(recorded.layers[-1].dy, gradient, atol=1e-7)


def test_the_loss_gradient_is_its_finite_difference():
    """Central differences of the loss in float64."""
    rng = np.random.default_rng(0)
    logits, labels, step = rng.standard_normal((3, 4)), np.array([0, 3, 1]), 1e-5
    _, gradient = softmax_loss(logits, labels)
    for index in np.ndindex(logits.shape):
        nudge = np.zeros_like(logits)
        nudge[index] = step
        difference = softmax_loss(logits + nudge, labels)[0] - softmax_loss(logits - nudge, labels)[0]
        assert gradient[index] == pytest.approx(difference / (2 * step), abs=1e-9)


@pytest.mark.parametrize("name", ["reference", "single"])
def test_right_implementations_are_ok_everywhere(recorded, name):
    """Every layer, direction and swap: inside both bounds, no prediction flips."""
    layers, swaps = judged(recorded, computing(), EVERY_OP, name)
    assert len(layers) == 5 * 3 + 2
    assert [row.swapped for row in swaps] == ["c0", "c3", "c4", "all conv2d", "m1", "d6", "d8", "all dense"]
    assert {row.status for row in layers + swaps} == {"OK"}
    assert all(row.of_bound <= 1 and row.of_allowance <= 1 for row in layers)
    assert {row.flips for row in swaps} == {0}
    assert {len(row.gradients) for row in swaps} == {10}
    assert {row.left_to_keras for row in swaps} == {()}


@pytest.mark.parametrize(
    ("op", "direction", "wrong"), WRONG, ids=[f"{op}-{direction}-{wrong.__name__}" for op, direction, wrong in WRONG]
)
def test_wrong_implementations_are_caught_at_the_layer_and_in_the_network(recorded, op, direction, wrong):
    """Wrong in its direction and right in the others; in the network wherever the direction matters."""
    layers, swaps = judged(recorded, computing(planted=(direction, wrong)), (op,), "planted")
    hits = [r for r in layers if r.direction == direction and not (wrong is forgot_relu and "relu" not in str(r.case))]
    assert {row.status for row in hits} == {"WRONG"}
    assert all(row.reason for row in hits)
    assert {row.status for row in layers if row.direction != direction} == {"OK"}
    unused = direction == GRAD_INPUT  # nothing asks for the gradient of the images
    unharmed = {"c0"} if unused else {"d8"} if wrong is forgot_relu else set()
    assert {row.swapped for row in swaps if row.status == "WRONG"} == {row.swapped for row in swaps} - unharmed


def test_what_is_not_supported_is_left_to_keras_and_named(recorded):
    """One direction at one layer is refused: the swap goes on without it."""

    def refuse(case, direction, inputs):
        if case.spec.channels == 2:
            raise Unavailable("only three channels and more")
        return single(case, direction, inputs)

    layers, swaps = judged(recorded, computing(partial=(GRAD_WEIGHTS, refuse)), ("conv2d",), "partial")
    (refused,) = (row for row in layers if row.status != "OK")
    assert (refused.status, refused.layer, refused.reason) == ("UNSUPPORTED", "c0", "only three channels and more")
    assert {row.swapped: row.left_to_keras for row in swaps} == {
        "c0": ("c0 grad_weights",),
        "c3": (),
        "c4": (),
        "all conv2d": ("c0 grad_weights",),
    }
    assert {row.status for row in swaps} == {"OK"}


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Unavailable("no library"), "UNSUPPORTED", "no library"),
        (NotImplementedError("not offered"), "UNSUPPORTED", "not offered"),
        (ValueError("bad"), "ERROR", "broken: ValueError: bad"),
        (Failure("TIMEOUT", "60 s"), "TIMEOUT", "60 s"),
    ],
)
def test_a_failure_is_a_row_with_its_reason_and_is_not_repeated(recorded, error, status, reason):
    """Once per layer and direction, never again in the swaps."""
    calls = []

    def fail(case, direction, inputs):
        calls.append(direction)
        raise error

    layers, swaps = judged(recorded, computing(broken=("any", fail)), ("maxpool2d",), "broken")
    assert {(row.status, row.reason) for row in layers + swaps} == {(status, reason)}
    assert calls == [FORWARD, GRAD_INPUT]


def test_outputs_of_the_wrong_shape_are_an_error(recorded):
    """A shape that broadcasts is not good enough."""
    layers, _ = judged(
        recorded, computing(thin=(FORWARD, lambda c, d, i: (single(c, d, i)[0][:1],))), ("dense",), "thin"
    )
    assert {row.status for row in layers if row.direction == FORWARD} == {"ERROR"}
    assert "instead of" in layers[0].reason


def test_a_failure_of_keras_at_the_other_layers_is_named(recorded):
    """The row says who failed."""

    def compute(name, case, direction, inputs):
        if name == "keras":
            raise Unavailable("keras is not installed")
        return single(case, direction, inputs)

    _, swaps = judged(recorded, compute, ("maxpool2d",), "single")
    assert [row.status for row in swaps] == ["ERROR"]
    assert swaps[0].reason == "at layer c3, left to keras: keras is not installed"


def two_logits(gap):
    """A one-layer trace of one sample whose two logits differ by about this much, and its labels."""
    structure, case = parse("F();D(2,sm)"), parse_case("dense:1x4,u2")
    x, b = np.ones((1, 4), np.float32), np.zeros(2, np.float32)
    w = np.full((4, 2), 0.25, np.float32) + np.array([gap / 4, 0], np.float32)
    (out,) = single(case, FORWARD, (x, w, b))
    labels = np.array([0])
    loss, dy = softmax_loss(out, labels)
    dw, db = single(case, GRAD_WEIGHTS, (x, dy))
    (dx,) = single(case, GRAD_INPUT, (dy, w))
    return Trace(
        structure, x, labels, (LayerTrace("d1", case, x, out, dy.astype("f4"), dx, w, b, dw, db),), loss, "by hand"
    )


@pytest.mark.parametrize(("gap", "ties", "status"), [(2e-7, 1, "OK"), (1e-2, 0, "WRONG")])
def test_a_flip_between_logits_nearer_than_the_allowed_error_is_a_tie(gap, ties, status):
    """Swapping the two logits flips the prediction; only the near ones are excused."""

    def swap(case, direction, inputs):
        return (single(case, direction, inputs)[0][:, ::-1],)

    _, (row,) = judged(two_logits(gap), computing(swap=(FORWARD, swap)), ("dense",), "swap")
    assert (row.flips, row.ties, row.status) == (1, ties, status)


def test_the_tables_show_what_is_right_and_what_failed(recorded):
    compute = computing(broken=("any", lambda *_: 1 / 0))
    for name, status in (("single", "OK"), ("broken", "ERROR")):
        layers, swaps = judged(recorded, compute, EVERY_OP, name)
        for table, rows in ((layer_table(layers), layers), (swap_table(swaps), swaps)):
            assert list(table.frame.status) == [status] * len(rows)
            assert markdown_table(table).count(f"| {name} | {status} |") == len(rows)


@pytest.mark.parametrize("dataset", CLASSES)
def test_every_data_set_has_a_small_and_a_deep_reference_model(dataset):
    """At least two, of different depth, that fit the images and end in its classes."""
    models = reference_models(dataset)
    depths = [sum(step.layer.code == "C" for step in steps(m.structure, m.image_shape)) for m in models]
    assert depths[0] == 1
    assert depths[-1] >= 4
    assert {m.structure.layers[-1].units for m in models} == {CLASSES[dataset]}
    assert parse_model(dataset) == models


def test_a_model_is_named_by_its_number_or_its_structure():
    """As published, or as written."""
    (published,) = parse_model("mnist:4")
    assert (published.name, str(published.structure)[:8]) == ("mnist:4", "C(7,64,r")
    assert parse_model("digits:1") == reference_models("digits")[:1]
    (written,) = parse_model("digits:F();D(10,sm)")
    assert written.structure == parse("F();D(10,sm)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titanic", "no reference model for 'titanic'"),
        ("mnist:99", "mnist has no model number 99"),
        ("digits:3", "digits has no model number 3"),
        ("digits:F();D(10)", r"must end with D\(10,sm\)"),
        ("digits:F();D(9,sm)", r"must end with D\(10,sm\)"),
        ("digits:F();D(3,t);D(10,sm)", r"relu or no activation before its last layer, not D\(3,t\)"),
        ("digits:M(9);F();D(10,sm)", "layer m0"),
        ("digits:F();X", "at character 5"),
    ],
)
def test_a_model_that_does_not_exist_or_fit_is_refused(text, message):
    """The message says what to give instead."""
    with pytest.raises(ModelError, match=message):
        parse_model(text)


def test_weights_are_seeded_and_biases_are_not_zero():
    """Same seed, same weights; He's limit before relu, Glorot's before softmax."""
    chain = steps(STRUCTURE, IMAGE)
    weights, again, other = (initial_weights(chain, seed) for seed in (1, 1, 2))
    for name, (w, b) in weights.items():
        assert np.array_equal(w, again[name][0])
        assert not np.array_equal(w, other[name][0])
        assert 0 < np.abs(b).min() <= np.abs(b).max() <= BIAS
    he, glorot = (6 / 18) ** 0.5, (6 / (12 + 5)) ** 0.5
    assert 0.8 * he < np.abs(weights["c0"][0]).max() <= he
    assert 0.8 * glorot < np.abs(weights["d8"][0]).max() <= glorot


def test_the_error_of_the_process_that_runs_keras_is_passed_on(tmp_path, monkeypatch):
    """Its last words are in the message, and no file is left."""
    monkeypatch.setenv("KERAS_BACKEND", "abacus")
    with pytest.raises(ModelError, match=r"(?s)could not run .*abacus"):
        trace(parse("F();D(2,sm)"), np.zeros((2, 2, 2, 1)), np.array([0, 1]), seed=0, threads=1, folder=tmp_path)
    assert not list(tmp_path.iterdir())
