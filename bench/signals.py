"""What signals do on their way through a deep network before its first step: variances layer by layer.

Weights that are too large blow a signal up with every layer, weights that are too small let it vanish; with variance
1 / inputs a linear layer keeps a signal's variance, with 2 / inputs one of relu does (K. He et al., ICCV 2015).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from bench.holdout import Holdout
from impls.nn.initializers import Initializer
from impls.nn.network import EVERY, Network, Options, Pass
from impls.nn.structure import Dense, Flatten, Structure
from impls.nn.training import Settings, Trainer

NAME = "signals"
"""What the study is called."""

LAYERS, UNITS, SAMPLES = 10, 64, 256
PROBED = ("sigmoid", "tanh", "relu")
INITIALIZERS: Mapping[str, Initializer] = MappingProxyType(
    {
        "zeros": Initializer("zeros"),
        "normal, deviation 0.05": Initializer("normal"),
        "normal, deviation 1": Initializer("normal", stddev=1),
        "Glorot normal": Initializer("glorot_normal"),
        "He normal": Initializer("he_normal"),
    }
)

PRODUCTS, SIDE, VECTORS = 100, 512, 16
"""Of a stack: its products, the side of their matrices, and the vectors that go through it together."""
STACKS: Mapping[str, float] = MappingProxyType(
    {"standard normal": 1.0, "too small": 0.01, "scaled by 1 / sqrt(512)": 1 / math.sqrt(SIDE)}
)
"""Deviations of the weights of the three demonstrations."""


@dataclass(frozen=True, slots=True)
class Signals:
    """Variances by hidden layer, the first one first: of what it gives, and of the gradient of its kernel."""

    activation: str
    initializer: str
    outputs: tuple[float, ...]
    gradients: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """Standard normal vectors after each of many products with random matrices, in float32.

    ``deviations``: of all values, infinite or NaN where one of them is. ``not_finite``: the first product, from 1,
    after which a value is infinite or NaN; ``not_a_number``: one is NaN; ``vanished``: all are zero.
    """

    label: str
    stddev: float
    deviations: tuple[float, ...]
    not_finite: int | None
    not_a_number: int | None
    vanished: int | None


def signals(data: Holdout, seed: int = 0) -> tuple[Signals, ...]:
    """LAYERS layers of UNITS units on real samples, for every activation and initializer."""
    return tuple(_probe(data, activation, name, seed) for activation in PROBED for name in INITIALIZERS)


def _probe(data: Holdout, activation: str, name: str, seed: int) -> Signals:
    hidden = (Dense(UNITS, activation),) * LAYERS
    structure = Structure((Flatten(), *hidden, Dense(data.classes, "softmax")))
    options = {EVERY: Options(initializer=INITIALIZERS[name])}
    network = Network(structure, data.image_shape, options=options, seed=seed)
    trainer = Trainer(network, data.train, Settings())
    bound = trainer.pass_for(min(SAMPLES, len(data.train)))
    targets = trainer.gather(bound, np.arange(bound.batch))
    bound.forward()
    trainer.loss_of(bound, targets)
    bound.backward()
    names = [step.name for step in network.steps if isinstance(step.layer, Dense)][:LAYERS]
    outputs = (float(bound.output_of(layer).var(dtype=np.float64)) for layer in names)
    kernels = (network.layer_weights(layer, network.gradients)[0] for layer in names)
    return Signals(activation, name, tuple(outputs), tuple(float(g.var(dtype=np.float64)) for g in kernels))


def stacks(products: int = PRODUCTS, seed: int = 0) -> tuple[Stack, ...]:
    """The three demonstrations. A linear layer of the network computes each product, with weights drawn anew."""
    return tuple(_stack(label, stddev, products, seed) for label, stddev in STACKS.items())


def _stack(label: str, stddev: float, products: int, seed: int) -> Stack:
    options = {EVERY: Options(initializer=Initializer("normal", stddev=stddev))}
    network = Network(Structure((Flatten(), Dense(SIDE))), (1, 1, SIDE), options=options)
    bound = Pass(network, VECTORS, training=False)
    bound.x[...] = np.random.default_rng(seed).standard_normal(bound.x.shape)
    deviations: list[float] = []
    events: dict[str, int | None] = dict.fromkeys(("not_finite", "not_a_number", "vanished"))
    for number in range(1, products + 1):
        network.initialize(seed + number)
        bound.forward()
        bound.x[...] = bound.y.reshape(bound.x.shape)
        with np.errstate(invalid="ignore"):  # infinity less infinity is what is shown
            deviations.append(float(bound.y.std(dtype=np.float64)))
        seen = (not np.isfinite(bound.y).all(), np.isnan(bound.y).any(), not bound.y.any())
        for event, happens in zip(events, seen, strict=True):
            if happens and events[event] is None:
                events[event] = number
    return Stack(label, stddev, tuple(deviations), **events)
