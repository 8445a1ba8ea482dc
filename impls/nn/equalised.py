"""Equalisation of a network in training: its targets adapt to its answers, epoch by epoch, and are brought back.

The network learns y' = location + scale y in place of y. At the end least squares find the map from its answers to y,
and its last layer, which is linear, takes that map in: nothing of it is left that a prediction would have to know.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from impls.nn.adaptive.equalisation import ScaleLocation, equalising, least_squares
from impls.nn.network import Network
from impls.nn.structure import Dense
from impls.specs import SpecError

Array = npt.NDArray[Any]


class Response:
    """The response y (n, 1) of a regression, and the map that it has been through: to mean 0 and deviation 1 at first.

    Raises SpecError for a network whose last layer cannot take a map in: it must be one linear unit that learns, and no
    parameter may have a penalty, which would be of weights in a unit that changes.
    """

    def __init__(self, network: Network, y: Array) -> None:
        """``y`` is kept, never written to."""
        if network.steps[-1].layer != Dense(1):
            raise SpecError(f"equalise takes a network that ends in one linear unit, D(1); this is {network.structure}")
        if any(parameter.l1 or parameter.l2 for parameter in network.parameters):
            raise SpecError("equalise and penalties exclude each other: their weights have no unit that stays")
        if not network.parameters[-1].trainable:
            raise SpecError(f"equalise changes the layer {network.parameters[-1].layer}; it must be trainable")
        self._network, self._y = network, y.T.astype(np.float64)
        deviation = float(self._y.std()) or 1.0
        self.map = ScaleLocation(-float(self._y.mean()) / deviation, 1 / deviation)

    def adapt(self, answers: Array) -> None:
        """Go a share of the way to where the response is easiest for answers (n, 1), if these are finite."""
        if np.isfinite(answers).all():
            self.map = self.map.then(equalising(self.map(self._y), answers.T.astype(np.float64)).of(0))

    def of(self, y: Array) -> Array:
        """Targets in y's unit, as the network learns them now."""
        return np.asarray(self.map(y), y.dtype)

    def in_unit_of_y(self, loss: float) -> float:
        """A mean squared error of the adapted response as one of y, through the map's inverse."""
        return loss / float(self.map.scale) ** 2

    def give_back(self, answers: Array) -> None:
        """Have the last layer answer y itself, by least squares from its answers (n, 1); the map is none then.

        Answers that are not finite have no least squares: the map is undone instead.
        """
        finite = np.isfinite(answers).all()
        found = least_squares(answers.T.astype(np.float64), self._y).of(0) if finite else self.map.inverse()
        kernel, bias = self._network.layer_weights(self._network.steps[-1].name)
        bias[...] = found(bias)
        kernel *= found.scale
        self.map = ScaleLocation()
