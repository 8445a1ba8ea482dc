"""The straightforward perceptron as a contestant: on NumPy's arrays, or on CuPy's where there is a GPU.

On the GPU the data lie on the device, or with ``copies`` on the host: then every batch is copied over. Either way a
step ends with reading its loss and the number of right answers, which waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import registry
from impls.nn.plain import Descent, Perceptron
from impls.nn.structure import Structure
from impls.nn.training import Settings, has_accuracy
from impls.specs import Shape

Array = npt.NDArray[Any]

NUMPY, CUPY = "numpy", "cupy"
CUPY_ENTRY = "dense", "cupy_gemm"
"""What knows CuPy, and why it cannot be used."""


def missing(library: str = NUMPY, copies: bool = False) -> str | None:
    """The reason why it cannot train here, or None."""
    return registry.get(*CUPY_ENTRY).missing() if library == CUPY else None


class PlainTrainee:
    """A plain perceptron in training, driven batch by batch. ``library``: "numpy" or "cupy"."""

    def __init__(self, library: str = NUMPY, copies: bool = False) -> None:
        """Import the library."""
        self.xp = _module(library)
        self.copies = copies

    def begin(
        self, structure: Structure, image_shape: Shape, x: Array, targets: Array, settings: Settings, seed: int
    ) -> None:
        """Keep the data where they will be read from."""
        self.structure, self.image_shape, self.settings = structure, image_shape, settings
        keep = np.asarray if self.copies else self.xp.asarray
        self.x, self.targets = keep(x), keep(targets)

    def restart(self, weights: Mapping[str, Array]) -> None:
        """These weights, and an optimizer that has taken no step. Raises SpecError for what is not plain."""
        self.perceptron = Perceptron(self.structure, self.image_shape, self.settings.loss, weights, self.xp)
        self.descent = Descent(self.settings.optimizer, self.perceptron)

    def train(self, parts: Iterable[Array]) -> tuple[float, float | None]:
        """A step on each of these batches of samples; mean loss and accuracy while the weights moved."""
        loss = right = count = 0.0
        judged = has_accuracy(self.settings.loss)
        for chosen in parts:
            x, targets = self._batch(chosen)
            values = self.perceptron.forward(x)
            self.descent.step(self.perceptron.gradients(values, targets))
            loss += float(self.perceptron.loss_of(values[-1], targets)) * len(chosen)
            right += float(_right(values[-1], targets).sum()) if judged else 0.0
            count += len(chosen)
        return loss / count, right / count if judged else None

    def predict(self, x: Array, batch: int) -> Array:
        """The answers (n, units)."""
        starts = range(0, len(x), batch)
        return np.concatenate(
            [_on_host(self.perceptron.forward(self.xp.asarray(x[i : i + batch]))[-1]) for i in starts]
        )

    def weights(self) -> dict[str, Array]:
        """By a network's names."""
        return {name: _on_host(array).copy() for name, array in self.perceptron.weights.items()}

    def _batch(self, chosen: Array) -> tuple[Any, Any]:
        """Samples and targets on the device."""
        asarray = self.xp.asarray
        if self.copies:
            return asarray(self.x[chosen]), asarray(self.targets[chosen])
        index = asarray(chosen)
        return self.x[index], self.targets[index]


def _module(library: str) -> Any:
    if library == NUMPY:
        return np
    cupy: Any = registry.get(*CUPY_ENTRY).plan_type
    return cupy.module()


def _right(y: Any, targets: Any) -> Any:
    """Which answers are right: the largest unit, or of one unit its side of one half."""
    if y.shape[1] == 1:
        return (y > 0.5) == (targets > 0.5)
    return y.argmax(axis=1) == targets.argmax(axis=1)


def _on_host(array: Any) -> Array:
    found: Array = array.get() if hasattr(array, "get") else array
    return found
