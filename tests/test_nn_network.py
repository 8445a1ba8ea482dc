"""Networks: gradients of every kind of layer against finite differences, options, weights, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from impls.nn import losses
from impls.nn.initializers import Initializer
from impls.nn.network import EVERY, Network, Options, Pass
from impls.specs import SpecError

STEP = 1e-6
STRUCTURES = {
    "dense only": "2x2x3->F();D(5,t);D(4,s);D(3,sm)",
    "convolutions, pooling, dropout": "8x9x2->C(3,4,r);M(2);C(3,5,s);DR(0.25);F();D(7,t);DR(0.5);D(6,r);D(3,sm)",
    "maxima of a tanh": "7x6x2->C(3,4,t);M(3);C(3,3,s);M(2);F();D(3,sm)",
    "softmax inside": "4x4x1->C(3,2,t);F();D(5,sm);D(3,sm)",
    "average pooling": "6x7x2->C(3,3,t);A(2);F();D(3,sm)",
    "dropout first": "4x4x1->DR(0.5);C(3,2,l);F();D(3,sm)",
    "convolution last but one, no hidden dense": "5x4x2->C(5,3,r);M(2);F();D(3,sm)",
}


def slope_test(network: Network, batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(gradients, finite differences) at up to 60 parameters."""
    rng = np.random.default_rng(0)
    bound = Pass(network, batch, training=True)
    bound.x[...] = rng.standard_normal(bound.x.shape)
    wanted = np.eye(3)[rng.integers(0, 3, batch)]

    def loss() -> float:
        bound.forward()
        return losses.evaluate("categorical_crossentropy", network.activation, bound.y, wanted, bound.dy)

    loss()
    bound.backward()
    found, slopes = [], []
    gradients = network.gradients.copy()
    places = np.concatenate([np.arange(p.start, p.stop) for p in network.parameters if p.trainable])
    for place in rng.choice(places, min(60, len(places)), replace=False):
        sides = []
        kept = network.weights[place]
        for step in (STEP, -STEP):
            network.weights[place] = kept + step
            sides.append(loss())
        network.weights[place] = kept
        found.append(gradients[place])
        slopes.append((sides[0] - sides[1]) / (2 * STEP))
    return np.array(found), np.array(slopes)


@pytest.mark.parametrize("text", STRUCTURES.values(), ids=STRUCTURES)
def test_gradients_are_the_slopes_of_the_loss(text):
    """Every layer, in float64, dropout included: the same step drops the same values."""
    found, slopes = slope_test(Network(text, dtype="float64", seed=5))
    assert np.abs(found).max() > 1e-3
    np.testing.assert_allclose(found, slopes, atol=1e-8)


def test_float32_gradients_are_the_float64_ones_rounded():
    """The registry's fast implementations compute what the reference computes."""
    text = "8x9x2->C(3,4,r);M(2);F();D(7,t);D(3,sm)"
    networks = [Network(text, dtype=dtype, seed=5) for dtype in ("float32", "float64")]
    networks[1].load_weights(networks[0].named_weights())
    found = []
    for network in networks:
        bound = Pass(network, 4, training=True)
        bound.x[...] = np.random.default_rng(1).standard_normal(bound.x.shape).astype(np.float32)
        bound.forward()
        losses.evaluate(
            "categorical_crossentropy",
            network.activation,
            bound.y,
            np.eye(3, dtype=network.dtype)[[0, 1, 2, 0]],
            bound.dy,
        )
        bound.backward()
        found.append({p.name: p.of(network.gradients) for p in network.parameters})
    for name, exact in found[1].items():
        assert np.linalg.norm(found[0][name] - exact) <= 1e-5 * np.linalg.norm(exact), name


@pytest.mark.parametrize("name", ["numba_jit_direct", "numba_jit_gemm", "numpy_gemm"])
def test_any_layer_may_name_its_implementation_per_direction(name):
    """The pass says which implementation it calls, and the loss is the same."""
    options = {"c0": Options(implementations={"forward": name, "grad_weights": "numpy_gemm"})}
    network = Network("6x6x1->C(3,4,r);F();D(3,sm)", options=options)
    bound = Pass(network, 2, training=True)
    used = {(o.layer, o.direction): o.implementation for o in (*bound.forward_operations, *bound.backward_operations)}
    assert used["c0", "forward"] == name
    assert used["c0", "grad_weights"] == "numpy_gemm"
    assert used["d2", "forward"] == "numba_jit"
    assert ("c0", "grad_input") not in used


def test_frozen_layers_get_no_gradient_and_what_lies_before_them_no_error():
    """Only the layers that learn are computed backwards."""
    network = Network("6x6x1->C(3,4,r);C(3,4,r);F();D(3,sm)", options={"c0": Options(trainable=False)}, dtype="float64")
    bound = Pass(network, 2, training=True)
    backward = [(o.layer, o.direction) for o in bound.backward_operations]
    assert ("c0", "grad_weights") not in backward
    assert ("c1", "grad_input") not in backward
    assert ("c1", "grad_weights") in backward
    found, slopes = slope_test(network)
    np.testing.assert_allclose(found, slopes, atol=1e-8)


def test_inference_drops_nothing_and_training_drops_the_rate():
    """Inverted dropout: what is kept is scaled up, so the mean stays."""
    network = Network("100x100x1->DR(0.3);F();D(1)")
    training, inference = (Pass(network, 4, training=is_training) for is_training in (True, False))
    for bound in (training, inference):
        bound.x.fill(1)
        bound.forward()
    dropped = training.output_of("dr0")
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.7)}
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.015)
    assert len({sample.tobytes() for sample in dropped}) == 4
    assert (inference.output_of("dr0") == 1).all()


def test_every_step_drops_other_values_and_the_same_step_the_same():
    """Masks are a function of seed, layer, step and position."""
    bound = Pass(Network("8x8x1->DR(0.5);F();D(1)", seed=3), 2, training=True)
    bound.x.fill(1)
    masks = []
    for step in (0, 1, 0):
        bound.dropout_step = step
        bound.forward()
        masks.append(bound.output_of("dr0").copy())
    assert (masks[0] != masks[1]).any()
    np.testing.assert_array_equal(masks[0], masks[2])


def test_initializers_are_chosen_per_layer_and_by_seed():
    """A layer's own option goes before that of all."""
    options = {EVERY: Options(initializer=Initializer("zeros")), "d1": Options(initializer=Initializer("normal"))}
    network = Network("2x2x1->F();D(50,r);D(3)", options=options, seed=1)
    kernel, bias = network.layer_weights("d1")
    assert kernel.std() == pytest.approx(0.05, rel=0.2)
    assert not bias.any()
    assert not network.layer_weights("d2")[0].any()
    other = Network("2x2x1->F();D(50,r);D(3)", options=options, seed=2)
    assert (other.layer_weights("d1")[0] != kernel).any()


def test_weights_of_one_network_fit_another_of_the_same_layers():
    """Names and shapes decide."""
    first, second = (Network("4x4x1->C(3,2,r);F();D(3,sm)", seed=seed) for seed in (1, 2))
    second.load_weights(first.named_weights())
    np.testing.assert_array_equal(first.weights, second.weights)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Network("F();D(3)"), "image_shape"),
        (lambda: Network("4x4x1->F();D(3)", options={"d7": Options()}), "f0, d1"),
        (lambda: Network("4x4x1->C(3,2);D(3)"), r"put F\(\) before it"),
        (lambda: Network("4x4x1->F();D(3)").load_weights({}), "d1/kernel"),
        (
            lambda: Network("4x4x1->F();D(3)").load_weights({"d1/kernel": np.zeros((2, 3)), "d1/bias": np.zeros(3)}),
            "16",
        ),
        (
            lambda: Pass(
                Network("4x4x1->C(3,2)", options={"c0": Options(implementations={"forward": "fastest"})}),
                1,
                training=False,
            ),
            "layer c0.*fastest.*numba_jit_direct",
        ),
    ],
    ids=["no shape", "options of no layer", "shapes do not chain", "missing weights", "misshapen", "implementation"],
)
def test_bad_input_is_named(make, words):
    """The message says which layer, and what there is."""
    with pytest.raises(SpecError, match=words):
        make()
