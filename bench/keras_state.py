"""Our optimizers in Keras' terms, both ways: class and settings, and the state's arrays by the names Keras gives them.

Nothing here imports Keras. Its variables are called LAYER_KIND_SLOT, as in c0_kernel_momentum, and "iteration" counts
the steps. Nadam's running product of momenta has no name there; here it is PRODUCT. For us it follows from the number
of steps. Every other value is copied bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.nn.optimizers import SGD, AdaGrad, Adam, AdaMax, Nadam, Optimizer, RMSProp
from impls.nn.schedules import rate_at
from impls.nn.training import Trainer
from impls.specs import SpecError

Array = npt.NDArray[Any]

ITERATION, PRODUCT = "iteration", "product"

SLOTS: Mapping[type[Optimizer], tuple[str, ...]] = {
    SGD: ("momentum",),
    AdaGrad: ("accumulator",),
    RMSProp: ("velocity", "average_gradient", "momentum"),
    Adam: ("momentum", "velocity", "velocity_hat"),
    AdaMax: ("momentum", "norm"),
    Nadam: ("momentum", "velocity"),
}
"""What Keras calls the arrays of our states, in our order."""

_CLASSES = {AdaGrad: "Adagrad", RMSProp: "RMSprop", AdaMax: "Adamax"}
"""Keras' classes that are spelled otherwise."""

_SETTINGS = {"initial_accumulator": "initial_accumulator_value"}


def keras_optimizer(optimizer: Optimizer) -> tuple[str, dict[str, Any]]:
    """(class name, arguments) of the same optimizer in Keras; of a schedule the rate of the first step."""
    settings = {_SETTINGS.get(f.name, f.name): getattr(optimizer, f.name) for f in fields(optimizer)}
    settings["learning_rate"] = rate_at(optimizer.learning_rate, 0)
    return _CLASSES.get(type(optimizer), type(optimizer).__name__), settings


def to_keras(trainer: Trainer) -> dict[str, Array]:
    """Copies of the optimizer's state after the steps taken so far, by Keras' names."""
    state = {name: array.copy() for name, array in _views(trainer)}
    state[ITERATION] = np.array(trainer.steps)
    optimizer = trainer.settings.optimizer
    if isinstance(optimizer, Nadam):
        state[PRODUCT] = np.asarray(optimizer.momentum_product(trainer.steps))
    return state


def from_keras(trainer: Trainer, state: Mapping[str, Array]) -> None:
    """Overwrite the optimizer's state and the number of steps. Raises SpecError for a missing or misshapen array."""
    views = dict(_views(trainer))
    for name, view in views.items():
        if name not in state or state[name].shape != view.shape:
            found = "missing" if name not in state else f"of shape {state[name].shape}"
            raise SpecError(f"the optimizer's state {name} must have shape {view.shape}; it is {found}")
    for name, view in views.items():
        view[...] = state[name]
    trainer.steps = int(state[ITERATION])


def _views(trainer: Trainer) -> Iterator[tuple[str, Array]]:
    """The state of every parameter that learns, by Keras' name and in the parameter's shape."""
    slots = SLOTS[type(trainer.settings.optimizer)]
    for (start, stop), arrays in trainer.optimizer_state():
        for slot, array in zip(slots, arrays, strict=True):
            for parameter in trainer.network.parameters:
                if len(array) and start <= parameter.start and parameter.stop <= stop:
                    values = array[parameter.start - start : parameter.stop - start]
                    yield f"{parameter.layer}_{parameter.kind}_{slot}", values.reshape(parameter.shape)
