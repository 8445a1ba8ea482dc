"""The same network in Keras 3, on any backend: its model, its weights both ways, and its training batch by batch.

Layers, shapes and layouts are Keras' own, so that weights are copied and never rearranged. Dropout is Keras': a mask
for each sample, from its own random numbers.

A batch is trained on by ``train_on_batch``. An order that is given anew for each epoch could go through ``fit`` with
``shuffle=False`` too, but every such call makes a data pipeline: for ten batches of 28 images it took 115 ms, and
``train_on_batch`` 30 ms (TensorFlow 2.21 on two cores; one ``fit`` over all epochs took 77 ms an epoch). It also takes
batches whose sizes differ by one, as no ``fit`` on arrays does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.keras_state import keras_optimizer
from impls.competitors._library import quiet, quiet_import
from impls.nn.network import activation_of
from impls.nn.structure import AveragePool, BatchNorm, Conv, Dense, Dropout, MaxPool, Step, Structure, steps
from impls.nn.training import Settings, has_accuracy
from impls.specs import Shape

Array = npt.NDArray[Any]


def build(structure: Structure, image_shape: Shape) -> Any:
    """The model, its layers under the names of the structure's steps."""
    keras = quiet_import("keras")
    layers = [keras_layer(keras, step, activation_of(step)) for step in steps(structure, image_shape)]
    return keras.Sequential([keras.Input(image_shape), *layers])


def set_weights(model: Any, weights: Mapping[str, Array]) -> None:
    """Give the model a network's parameters, by their names there (c0/kernel). Raises KeyError for a missing one."""
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([weights[f"{layer.name}/{weight.name}"] for weight in layer.weights])


def get_weights(model: Any) -> dict[str, Array]:
    """The model's parameters by a network's names."""
    pairs = ((layer.name, zip(layer.weights, layer.get_weights(), strict=True)) for layer in model.layers)
    return {f"{name}/{weight.name}": array for name, arrays in pairs for weight, array in arrays}


class KerasTrainee:
    """A Keras model in training, driven batch by batch."""

    def __init__(self, beta_2: float | None = None) -> None:
        """``beta_2``: Adam's, in place of its own; all 66 stored models of the paper have 0.9."""
        self.beta_2 = beta_2
        self.keras = quiet_import("keras")

    def begin(
        self, structure: Structure, image_shape: Shape, x: Array, targets: Array, settings: Settings, seed: int
    ) -> None:
        """A new model, compiled for the settings' loss and optimizer, which will learn from (x, targets)."""
        self.keras.utils.clear_session()
        self.keras.utils.set_random_seed(seed)
        self.x, self.targets = x, targets
        name, values = keras_optimizer(settings.optimizer)
        if self.beta_2 is not None:
            values["beta_2"] = self.beta_2
        with quiet():
            self.model = build(structure, image_shape)
            optimizer = getattr(self.keras.optimizers, name)(**values)
            metrics = ["accuracy"] if has_accuracy(settings.loss) else []
            self.model.compile(optimizer, loss=settings.loss, metrics=metrics)
            optimizer.build(self.model.trainable_variables)
            self._fresh = [self.keras.ops.convert_to_numpy(v.value).copy() for v in optimizer.variables]

    def restart(self, weights: Mapping[str, Array]) -> None:
        """These weights, and an optimizer that has taken no step; what was traced or compiled is kept."""
        with quiet():
            set_weights(self.model, weights)
            for variable, value in zip(self.model.optimizer.variables, self._fresh, strict=True):
                variable.assign(value)

    def train(self, parts: Iterable[Array]) -> tuple[float, float | None]:
        """A step on each of these batches of samples; mean loss and accuracy while the weights moved."""
        sums: dict[str, float] = defaultdict(float)
        count = 0
        with quiet():
            for chosen in parts:
                found = self.model.train_on_batch(self.x[chosen], self.targets[chosen], return_dict=True)
                for name, value in found.items():
                    sums[name] += float(value) * len(chosen)
                count += len(chosen)
        return sums["loss"] / count, sums["accuracy"] / count if "accuracy" in sums else None

    def predict(self, x: Array, batch: int) -> Array:
        """The answers (n, units)."""
        with quiet():
            answers: Array = np.asarray(self.model.predict(x, batch_size=batch, verbose=0))
        return answers

    def weights(self) -> dict[str, Array]:
        """By a network's names."""
        with quiet():
            return get_weights(self.model)


def keras_layer(keras: Any, step: Step, activation: str) -> Any:
    """Keras' layer of a step, under its name; ``activation`` is applied where the layer has weights."""
    layers, layer, name = keras.layers, step.layer, step.name
    match layer:
        case Conv(kernel, filters):
            return layers.Conv2D(filters, kernel, padding="same", activation=activation, name=name)
        case MaxPool(pool):
            return layers.MaxPooling2D(pool, name=name)
        case AveragePool(pool):
            return layers.AveragePooling2D(pool, name=name)
        case Dropout(rate):
            return layers.Dropout(rate, name=name)
        case BatchNorm():
            return layers.BatchNormalization(name=name)
        case Dense(units):
            return layers.Dense(units, activation=activation, name=name)
    return layers.Flatten(name=name)
