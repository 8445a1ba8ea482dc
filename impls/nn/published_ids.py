"""The ten-digit numbers under which the paper's experiments and tests are filed, recomputed from their settings.

P. Klęsk's system names an experiment by a 32-bit hash of the printed form of its data settings and of its layers'
constructor calls, hence the Python names of another program in the texts below: they are data, and must be exact.
h = 0; h = 31 h + code of each character; the number is h mod 2^32 in decimal, ten digits with leading zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from impls.nn.structure import Conv, Dense, Dropout, Flatten, Layer, MaxPool, Structure
from impls.specs import Shape, SpecError


def text_hash(text: str) -> str:
    """Ten digits."""
    h = 0
    for character in text:
        h = (31 * h + ord(character)) % 2**32
    return f"{h:010d}"


def experiment_id(
    dataset: str,
    structure: Structure,
    image_shape: Shape,
    *,
    batches: int,
    repetitions: int,
    epochs: int = 100,
    learning_rate: float = 0.001,
) -> str:
    """The number of a training experiment. ``dataset``: "olivetti", "mnist" or "cifar-10"; ``batches`` per epoch."""
    data = {
        "name": dataset,
        "m_train_per_class_limit": None,
        "m_test_per_class_limit": None,
        "uniform_scaling": True,
        "seed": 0,
        "n_repetitions": repetitions,
    }
    model = {
        "n_epochs": epochs,
        "n_batches": batches,
        "loss": "categorical_crossentropy",
        "learning_rate": learning_rate,
        "decay_rate": 0.0,
        "use_adam": True,
        "momentum_rate": 0.0,
        "gradient_clip": None,
    }
    layers = [_constructor(layer) for layer in structure.layers]
    layers[0] = layers[0][0], {"input_shape": image_shape} | layers[0][1]
    return text_hash(_settings(data) + "\n" + _list([("SequentialClassifier", model), *layers]))


def timing_test_id(
    implementations: Sequence[str],
    *,
    batch: int,
    kernels: Sequence[int],
    filters: Sequence[int],
    channels: Sequence[int],
    sides: Sequence[int],
    repetitions: int,
) -> str:
    """The number of a test of convolution times."""
    return text_hash(
        _settings(
            {
                "m": batch,
                "do_forward_impl": list(implementations),
                "kernel_size": list(kernels),
                "n_kernels": list(filters),
                "n_channels": list(channels),
                "img_side": list(sides),
                "n_repetitions": repetitions,
            }
        )
    )


def _constructor(layer: Layer) -> tuple[str, dict[str, Any]]:
    match layer:
        case Conv(kernel, filters, activation):
            return "Conv2D", {"kernel_size": kernel, "n_kernels": filters, "activation": activation}
        case MaxPool(pool):
            return "MaxPool2D", {"pool_size": pool}
        case Dropout(rate):
            return "Dropout", {"rate": rate}
        case Flatten():
            return "Flatten", {}
        case Dense(units, activation):
            return "Dense", {"n_neurons": units, "activation": activation}
    raise SpecError(f"the paper's system has no layer {layer}")


def _settings(values: Mapping[str, Any]) -> str:
    return "{" + ",\n ".join(f"{name}: {value}" for name, value in values.items()) + "}"


def _list(constructors: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    return "[" + ",\n ".join(f"(<class 'hmdl.{name}'>, {dict(settings)})" for name, settings in constructors) + "]"
