"""Presets: three multilayer perceptrons with the settings of the small NumPy and CuPy system that they come from.

mlp-housing        one feature, a line by 50 steps of gradient descent on the mean squared error of all samples
mlp-titanic-sgd    7-15-1, who survived: SGD, 1,000 epochs in batches of 150
mlp-titanic-adam   the same by Adam, in batches of 100
mlp-mnist          784-512-128-64-10, digits: Adam, 10 epochs in batches of 1,000

Minibatches are independent draws without replacement. Weights are drawn as in Glorot's normal form, not truncated.
What its author does not say is chosen here: the scaling of the data (mean 0 and deviation 1; pixels to [-1, 1]), the
rate of the line, the number of epochs with Adam on Titanic, and that all networks start alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.contest import PLAIN_OPTIONS
from bench.contestant import PLAIN
from bench.experiments import OF_NUMBERS, OF_TWO, Experiment
from datasets.housing import TRAIN_ROWS
from impls.nn.initializers import Initializer
from impls.nn.optimizers import SGD, Adam
from impls.nn.structure import parse
from impls.nn.training import INDEPENDENT
from impls.specs import SpecError

HOUSING, TITANIC, MNIST = "mlp-housing", "mlp-titanic", "mlp-mnist"

CONTESTANTS = ("numba_jit", "numpy", PLAIN)
"""Who computes where nobody says. The plain perceptron computes as the system that the presets come from does."""

ON_CUDA = tuple(name for name in PLAIN_OPTIONS if name != PLAIN)
"""Who takes part besides on a GPU."""

SWEEP = (1, 8, 64, 512, 4096)
"""Batch sizes among which the one is looked for from which on a contestant pays."""
SWEEP_STEPS = 30

_GLOROT = Initializer("glorot_normal", truncated=False)

_TITANIC = Experiment(
    id=f"{TITANIC}-sgd",
    dataset="titanic",
    structure=parse("F();D(15,r);D(1,s);"),
    image_shape=(1, 1, 7),
    epochs=1000,
    repetitions=20,
    batch=150,
    turn_epochs=50,
    loss=OF_TWO,
    optimizer=SGD(learning_rate=0.001),
    sampling=INDEPENDENT,
    scaling="standard",
    initializer=_GLOROT,
)

PRESETS = (
    Experiment(
        id=HOUSING,
        dataset="housing",
        structure=parse("F();D(1);"),
        image_shape=(1, 1, 1),
        epochs=50,
        repetitions=1,
        batch=TRAIN_ROWS,
        loss=OF_NUMBERS,
        optimizer=SGD(learning_rate=0.1),
        scaling="standard",
        initializer=_GLOROT,
    ),
    _TITANIC,
    replace(_TITANIC, id=f"{TITANIC}-adam", batch=100, optimizer=Adam(learning_rate=0.02, epsilon=1e-8)),
    Experiment(
        id=MNIST,
        dataset="mnist",
        structure=parse("F();D(512,r);D(128,r);D(64,r);D(10,sm);"),
        image_shape=(28, 28, 1),
        epochs=10,
        repetitions=1,
        batch=1000,
        optimizer=Adam(learning_rate=0.01),
        sampling=INDEPENDENT,
        initializer=_GLOROT,
    ),
)


def select(names: Sequence[str]) -> tuple[Experiment, ...]:
    """The presets of these names; mlp-titanic are both of its. Raises SpecError for an unknown one, listing all."""
    for name in names:
        if not any(_is_called(preset, name) for preset in PRESETS):
            known = ", ".join(preset.id for preset in PRESETS)
            raise SpecError(f"unknown preset {name!r}; known: {known}, and {TITANIC} for both of Titanic")
    return tuple(preset for preset in PRESETS if any(_is_called(preset, name) for name in names))


def sweep(experiment: Experiment, samples: int) -> tuple[Experiment, ...]:
    """The same training for some steps each at the batch sizes of SWEEP, as far as there are samples."""
    steps = experiment.steps or SWEEP_STEPS
    return tuple(replace(experiment, batch=size, batches=None, steps=steps) for size in SWEEP if size <= samples)


def _is_called(preset: Experiment, name: str) -> bool:
    return name in (preset.id, f"mlp-{preset.dataset}")
