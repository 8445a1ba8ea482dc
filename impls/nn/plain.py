"""A perceptron as a textbook writes it: dense layers, backpropagation and a step of SGD or Adam, in array arithmetic.

No registry, no fused passes, new arrays at every step: the second opinion of the network's tests, and the yardstick of
its speed. It computes with an array module that is given, NumPy or CuPy, in the precision of the weights it is given.

    z = a w + b,  y = f(z)        forwards, layer by layer
    dz = dy f'(z)                 backwards; where a cross-entropy meets its own activation dz = (y - t) / n
    dw = a^T dz,  db = sum dz,  da = dz w^T

I. Goodfellow, Y. Bengio, A. Courville, Deep Learning (2016), algorithms 6.3 and 6.4. Adam is the form at the end of
section 2 of D. Kingma, J. Ba, ICLR 2015, as Keras has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from impls.nn.losses import EPSILON, FUSED
from impls.nn.network import activation_of
from impls.nn.optimizers import SGD, Adam, Optimizer
from impls.nn.schedules import rate_at
from impls.nn.structure import Dense, Flatten, Structure, steps
from impls.specs import Shape, SpecError


class Perceptron:
    """Dense layers with their weights, ``{"d1/kernel": (inputs, units), "d1/bias": (units,), ...}``.

    ``xp``: the array module. Arrays given and returned are its own.
    """

    def __init__(self, structure: Structure, image_shape: Shape, loss: str, weights: Mapping[str, Any], xp: Any):
        """Raises SpecError for layers other than dense ones, and for a cross-entropy without its own activation."""
        chain = [step for step in steps(structure, image_shape) if not isinstance(step.layer, Flatten)]
        for step in chain:
            if not isinstance(step.layer, Dense):
                raise SpecError(f"the plain perceptron has dense layers only, not {step.layer} of {structure}")
        self.layers = [(step.name, activation_of(step)) for step in chain]
        self.loss = loss
        self.is_fused = (loss, self.layers[-1][1]) in FUSED
        if "crossentropy" in loss and not self.is_fused:
            raise SpecError(f"the plain perceptron has {loss} with its own activation only, not {chain[-1].layer}")
        self.xp = xp
        self.weights = {name: xp.array(array) for name, array in weights.items()}

    def forward(self, x: Any) -> list[Any]:
        """What each layer gives for x (n, ...): first x itself, as rows, last the answers (n, units)."""
        values = [x.reshape(len(x), -1)]
        for name, activation in self.layers:
            z = values[-1] @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]
            values.append(ACTIVATIONS[activation](self.xp, z))
        return values

    def loss_of(self, y: Any, targets: Any) -> Any:
        """The mean loss of answers y (n, units), an array of one; probabilities are kept within EPSILON of 0 and 1."""
        if self.loss == "mean_squared_error":
            return self.xp.square(y - targets).mean()
        p = self.xp.clip(y, EPSILON, 1 - EPSILON)
        if self.loss == "binary_crossentropy":
            return -(targets * self.xp.log(p) + (1 - targets) * self.xp.log(1 - p)).mean()
        return -(targets * self.xp.log(p)).sum(axis=1).mean()

    def gradients(self, values: list[Any], targets: Any) -> dict[str, Any]:
        """The loss's gradient for every weight, by its name, from what ``forward`` gave."""
        found = {}
        y = values[-1]
        size = len(y) * (1 if self.loss == "categorical_crossentropy" else y.shape[1])
        dy = (y - targets) * (1 if self.is_fused else 2) / size
        for index, (name, activation) in reversed(list(enumerate(self.layers))):
            is_last = index == len(self.layers) - 1
            dz = dy if is_last and self.is_fused else dy * SLOPES[activation](values[index + 1])
            found[f"{name}/kernel"] = values[index].T @ dz
            found[f"{name}/bias"] = dz.sum(axis=0)
            dy = dz @ self.weights[f"{name}/kernel"].T
        return found


class Descent:
    """An optimizer's steps on a perceptron: plain SGD, or Adam without AMSGrad."""

    def __init__(self, optimizer: Optimizer, perceptron: Perceptron) -> None:
        """Raises SpecError for another optimizer."""
        is_plain = isinstance(optimizer, SGD) and not optimizer.momentum
        if not is_plain and not (isinstance(optimizer, Adam) and not optimizer.amsgrad):
            raise SpecError(f"the plain perceptron has SGD without momentum and Adam, not {optimizer}")
        self.optimizer, self.weights, self.steps = optimizer, perceptron.weights, 0
        zeros = perceptron.xp.zeros_like
        self.means = {name: (zeros(w), zeros(w)) for name, w in self.weights.items()}
        self.sqrt = perceptron.xp.sqrt

    def step(self, gradients: Mapping[str, Any]) -> None:
        """Move the weights by their gradients."""
        rate = rate_at(self.optimizer.learning_rate, self.steps)
        self.steps += 1
        if not isinstance(self.optimizer, Adam):
            for name, g in gradients.items():
                self.weights[name] -= rate * g
            return
        beta_1, beta_2 = self.optimizer.beta_1, self.optimizer.beta_2
        rate *= math.sqrt(1 - beta_2**self.steps) / (1 - beta_1**self.steps)
        for name, g in gradients.items():
            m, v = self.means[name]
            m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g * g
            self.means[name] = m, v
            self.weights[name] -= rate * m / (self.sqrt(v) + self.optimizer.epsilon)


def _softmax(xp: Any, z: Any) -> Any:
    e = xp.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


ACTIVATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "linear": lambda xp, z: z,
    "relu": lambda xp, z: xp.maximum(z, 0),
    "sigmoid": lambda xp, z: 0.5 + 0.5 * xp.tanh(0.5 * z),  # 1 / (1 + exp(-z)), which overflows
    "softmax": _softmax,
    "tanh": lambda xp, z: xp.tanh(z),
}
"""Every activation by its name."""

SLOPES: Mapping[str, Callable[[Any], Any]] = {
    "linear": lambda y: 1,
    "relu": lambda y: y > 0,
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
}
"""Derivatives, by the activation's value. Softmax has none here: it comes last, with its own loss."""
