"""The same network in PyTorch: its own layers and optimizer in a plain loop, images in channels_last memory.

PyTorch keeps kernels as (F, C, KH, KW) and dense weights as (units, inputs), and flattens channels first: weights are
rearranged on the way in and back, and images are brought to our order before they are flattened. The moving variance of
its batch normalisation averages sample variances (n - 1); Keras' and ours average the population's (n).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.competitors._library import quiet_import
from impls.nn.normalization import EPSILON, MOMENTUM
from impls.nn.optimizers import SGD, Adam
from impls.nn.structure import AveragePool, BatchNorm, Conv, Dropout, Flatten, MaxPool, Step, Structure, steps
from impls.nn.training import Settings
from impls.specs import Shape, SpecError

Array = npt.NDArray[Any]

KERNEL_THERE = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
"""Ours as PyTorch's, by the number of axes."""
KERNEL_HERE = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}

TENSORS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
"""What PyTorch calls a parameter of ours."""


@dataclass(frozen=True, slots=True)
class _Head:
    """What a loss makes of the last layer's logits: its class, answers, and which are right (None: of no classes)."""

    loss: str
    answers: Callable[[Any], Any]
    right: Callable[[Any, Any], Any] | None = None


_HEADS = {
    "categorical_crossentropy": _Head(
        "CrossEntropyLoss", lambda z: z.softmax(dim=1), lambda z, labels: z.argmax(dim=1) == labels
    ),
    "binary_crossentropy": _Head("BCEWithLogitsLoss", lambda z: z.sigmoid(), lambda z, t: (z > 0) == (t > 0.5)),
    "mean_squared_error": _Head("MSELoss", lambda z: z),
}


class TorchTrainee:
    """A PyTorch model in training, driven batch by batch."""

    def __init__(self) -> None:
        """Import PyTorch."""
        self.torch = quiet_import("torch")

    def begin(
        self, structure: Structure, image_shape: Shape, x: Array, targets: Array, settings: Settings, seed: int
    ) -> None:
        """A new model, which will learn from (x, targets): the last layer gives logits, which the loss is of."""
        self.torch.manual_seed(seed)
        self.head = _HEADS[settings.loss]
        self.x, self.optimizer_settings = x, settings.optimizer
        self.targets = targets.argmax(axis=1) if settings.loss == "categorical_crossentropy" else targets
        self.chain = chain = steps(structure, image_shape)
        self.modules = {step.name: self._module(step) for step in chain if not isinstance(step.layer, Flatten)}
        self.stages: list[Callable[[Any], Any]] = []
        for step in chain:
            self.stages.append(self.modules.get(step.name, _flattened))
            if step is not chain[-1]:
                self.stages.append(self._activation(step))
        self.model = self.torch.nn.ModuleDict(self.modules).to(memory_format=self.torch.channels_last)
        self.loss = getattr(self.torch.nn, self.head.loss)()

    def restart(self, weights: Mapping[str, Array]) -> None:
        """These weights, and an optimizer that has taken no step."""
        with self.torch.no_grad():
            for name, tensor in self._parameters().items():
                source = weights[name].transpose(KERNEL_THERE[tensor.dim()])
                tensor.copy_(self.torch.from_numpy(source.copy()))
        self.optimizer = self._optimizer()

    def train(self, parts: Iterable[Array]) -> tuple[float, float | None]:
        """A step on each of these batches of samples; mean loss and accuracy while the weights moved."""
        loss = right = count = 0.0
        self.model.train()
        for chosen in parts:
            targets = self.torch.from_numpy(self.targets[chosen])
            self.optimizer.zero_grad()
            logits = self._logits(self.x[chosen])
            value = self.loss(logits, targets)
            value.backward()
            self.optimizer.step()
            loss += value.item() * len(chosen)
            right += float(self.head.right(logits, targets).sum().item()) if self.head.right else 0.0
            count += len(chosen)
        return loss / count, right / count if self.head.right else None

    def predict(self, x: Array, batch: int) -> Array:
        """The answers (n, units)."""
        self.model.eval()
        with self.torch.no_grad():
            parts = [self.head.answers(self._logits(x[i : i + batch])).numpy() for i in range(0, len(x), batch)]
        return np.concatenate(parts)

    def weights(self) -> dict[str, Array]:
        """By a network's names, in our layout."""
        return {
            name: tensor.detach().numpy().transpose(KERNEL_HERE[tensor.dim()]).copy()
            for name, tensor in self._parameters().items()
        }

    def _optimizer(self) -> Any:
        """The same optimizer in PyTorch. Raises SpecError for one that it defines in another way."""
        parameters, optimizers = self.model.parameters(), self.torch.optim
        match self.optimizer_settings:
            case Adam(learning_rate=rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, amsgrad=amsgrad):
                return optimizers.Adam(parameters, rate, (beta_1, beta_2), epsilon, amsgrad=amsgrad)
            case SGD(learning_rate=rate, momentum=momentum, nesterov=nesterov):
                return optimizers.SGD(parameters, rate, momentum, nesterov=nesterov)
        raise SpecError(f"PyTorch has SGD and Adam as Keras defines them, not {self.optimizer_settings}")

    def _logits(self, images: Array) -> Any:
        """An array (N, H, W, C) seen as (N, C, H, W) is what PyTorch calls channels_last."""
        tensor = self.torch.from_numpy(images).permute(0, 3, 1, 2)
        for stage in self.stages:
            tensor = stage(tensor)
        return tensor

    def _parameters(self) -> dict[str, Any]:
        """PyTorch's tensors by a network's names."""
        return {
            f"{step.name}/{kind}": getattr(self.modules[step.name], TENSORS[kind])
            for step in self.chain
            for kind in step.parameter_shapes
        }

    def _module(self, step: Step) -> Any:
        nn = self.torch.nn
        match step.layer:
            case Conv(kernel, filters, _):
                return nn.Conv2d(step.input_shape[-1], filters, kernel, padding="same")
            case MaxPool(pool):
                return nn.MaxPool2d(pool)
            case AveragePool(pool):
                return nn.AvgPool2d(pool)
            case Dropout(rate):
                return nn.Dropout(rate)
            case BatchNorm():
                kind = nn.BatchNorm2d if len(step.input_shape) == 3 else nn.BatchNorm1d
                return kind(step.input_shape[-1], eps=EPSILON, momentum=1 - MOMENTUM)
        return nn.Linear(step.input_shape[0], step.output_shape[0])

    def _activation(self, step: Step) -> Callable[[Any], Any]:
        name = getattr(step.layer, "activation", "linear")
        special: dict[str, Callable[[Any], Any]] = {
            "linear": self.torch.nn.Identity(),
            "softmax": self.torch.nn.Softmax(dim=1),
        }
        return special.get(name) or getattr(self.torch, name)


def _flattened(images: Any) -> Any:
    """(N, C, H, W) as rows in the order of our memory, which is that of channels_last."""
    return images.permute(0, 2, 3, 1).flatten(1)
