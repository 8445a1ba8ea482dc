"""The model: layers of parametric functions that add up, all their parameters in one vector between 0 and 1.

A point is that vector; models are evaluated at several points (m, parameters) at once. A function's parameters stand
together: its amplitude, with ghosts its ghost, then theta. Without ghosts its amplitude is what stands there, with them
2 / (1 + ghost) of it: the ghost is redundant, any other gives the same response with another amplitude beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.nn.adaptive.errors import Error
from impls.nn.adaptive.families import Family, family
from impls.nn.adaptive.scales import RECIPROCAL, Axis, Scales
from impls.nn.adaptive.tables import DIRECT, tabled
from impls.specs import SpecError

Array = npt.NDArray[Any]

AMPLITUDE = 4.0
"""The largest amplitude, in deviations of the response; with ghosts its factor (1 + ghost) / 2 leaves half of it."""

FIRST_WIDTHS = (0.03, 0.4)
"""Of kernels before the first epoch, in units of the data's extent."""


@dataclass(frozen=True, slots=True)
class Layer:
    """So many functions of one family."""

    family: Family
    functions: int
    scales: Scales
    start: int

    @property
    def width(self) -> int:
        """Parameters of a function."""
        return len(self.scales.axes)

    @property
    def span(self) -> slice:
        """Where the layer's parameters stand in a point."""
        return slice(self.start, self.start + self.functions * self.width)


class Model:
    """Layers for data between two corners. ``amplitude``: the largest, in units of the response."""

    def __init__(
        self,
        text: str,
        low: Array,
        high: Array,
        *,
        ghosts: bool = False,
        widths: str = RECIPROCAL,
        amplitude: float = AMPLITUDE,
        tables: bool = False,
    ) -> None:
        """``text``: "kernel(8);trigonometric(3)". ``tables``: functions are read from tables.

        Raises SpecError where the text does not parse.
        """
        self.ghosts, self.tables = ghosts, tables
        own = [Axis("amplitude", -amplitude, amplitude)]
        if ghosts:
            own.append(Axis("ghost", 0, 1))
        self._own = len(own)
        layers: list[Layer] = []
        start = 0
        for name, functions in parsed(text):
            made = family(name, low, high, widths)
            layers.append(Layer(made, functions, Scales([*own, *made.axes]), start))
            start = layers[-1].span.stop
        self.layers, self.parameters = tuple(layers), start
        self.low, self.high = low, high

    def natural(self, layer: Layer, points: Array) -> Array:
        """A layer's parameters (m, functions, width) in their own units, at points (m, parameters)."""
        return layer.scales.natural(self.block(layer, points))

    @staticmethod
    def block(layer: Layer, points: Array) -> Array:
        """A layer's parameters (m, functions, width) between 0 and 1: a view of points (m, parameters)."""
        return points[..., layer.span].reshape(*points.shape[:-1], layer.functions, layer.width)

    def amplitudes(self, natural: Array) -> Array:
        """What each function is multiplied by, of natural parameters (..., functions, width)."""
        amplitude = natural[..., 0]
        return amplitude * ((1 + natural[..., 1]) / 2) if self.ghosts else amplitude

    def functions(self, layer: Layer, x: Array, natural: Array) -> Array:
        """The functions' values (..., n, functions) without their amplitudes."""
        scalars = tabled() if self.tables else DIRECT
        return layer.family.values(x, natural[..., self._own :], scalars)

    def terms(self, layer: Layer, x: Array, natural: Array) -> Array:
        """What each function of a layer adds (..., n, functions)."""
        return self.functions(layer, x, natural) * self.amplitudes(natural)[..., None, :]

    def layer_response(self, layer: Layer, x: Array, points: Array) -> Array:
        """What a layer adds (m, n)."""
        return self.terms(layer, x, self.natural(layer, points)).sum(axis=-1)

    def response(self, x: Array, points: Array) -> Array:
        """The sum of all layers (m, n) for samples x (n, d) at points (m, parameters)."""
        return np.sum([self.layer_response(layer, x, points) for layer in self.layers], axis=0)

    def moved(self, layer: Layer, x: Array, points: Array, step: float) -> tuple[Array, Array]:
        """A layer's response (m, n), and its changes (m, n, functions, width) as each parameter moves by step.

        One pass over all perturbed parameters: of each function theta as it is, and moved along every axis. No formula
        for a derivative is needed.
        """
        u = self.block(layer, points)
        perturbed = u[None] + step * np.vstack([np.zeros(layer.width), np.eye(layer.width)])[:, None, None, :]
        natural = layer.scales.natural(perturbed)
        # The amplitude and the ghost move no function: their values are those of theta as it is.
        values = self.functions(layer, x, np.concatenate([natural[:1], natural[1 + self._own :]]))
        amplitudes = self.amplitudes(natural)[..., None, :]
        base = values[0] * amplitudes[0]
        own = values[:1] * amplitudes[1 : 1 + self._own]
        changes = np.concatenate([own, values[1:] * amplitudes[1 + self._own :]]) - base
        return base.sum(axis=-1), np.moveaxis(changes, 0, -1)

    def first_point(self, x: Array, y: Array, random: np.random.Generator) -> Array:
        """A point (parameters,) to begin from: centres on samples, amplitudes by least squares, all else at random.

        Widths are drawn from FIRST_WIDTHS times sqrt(d), as distances between samples grow with d variables.
        """
        point = random.uniform(size=self.parameters)
        for layer in self.layers:
            block = self.block(layer, point)
            chosen = x[random.integers(len(x), size=layer.functions)]
            natural = layer.scales.natural(block)
            for k, axis in enumerate(layer.scales.axes):
                if axis.name.startswith("centre"):
                    natural[:, k] = chosen[:, k - self._own]
                elif axis.name.startswith("width"):
                    natural[:, k] = random.uniform(*FIRST_WIDTHS, size=layer.functions) * np.sqrt(x.shape[1])
            point[layer.span] = layer.scales.normalised(natural).ravel()
        return self.with_amplitudes(x, y, point)

    def with_amplitudes(self, x: Array, y: Array, point: Array, ridge: float = 1e-3) -> Array:
        """The same point, its amplitudes those of a ridge regression of y (n,) on the functions."""
        values = np.concatenate([self.functions(layer, x, self.natural(layer, point)) for layer in self.layers], axis=1)
        penalty = ridge * len(x) * np.eye(values.shape[1])
        found = np.linalg.solve(values.T @ values + penalty, values.T @ y)
        point, done = point.copy(), 0
        for layer in self.layers:
            natural = self.natural(layer, point)
            factor = (1 + natural[:, 1]) / 2 if self.ghosts else 1
            natural[:, 0] = found[done : done + layer.functions] / factor
            point[layer.span] = layer.scales.normalised(natural).ravel()
            done += layer.functions
        return point

    def meaning(self) -> Iterator[tuple[int, int, str]]:
        """Of every parameter in turn: the layer's number, the function's, and the name."""
        for number, layer in enumerate(self.layers):
            for function in range(layer.functions):
                yield from ((number, function, axis.name) for axis in layer.scales.axes)


@dataclass(frozen=True, slots=True)
class Fit:
    """How far some layers of a model, the others fixed, are from targets (m, n), one row for every point.

    ``others``: the response of the layers that do not move (m, n). The loss is in deviations of the targets.
    """

    model: Model
    layers: tuple[Layer, ...]
    x: Array
    targets: Array
    error: Error
    others: Array | float = 0.0

    @property
    def unit(self) -> Array:
        """The targets' deviations (m,), 1 where they do not vary."""
        deviations = self.targets.std(axis=-1)
        return np.where(deviations > 0, deviations, 1)

    def values(self, points: Array) -> Array:
        """The loss (m,) at points (m, parameters)."""
        own = np.sum([self.model.layer_response(layer, self.x, points) for layer in self.layers], axis=0)
        return self.error(own + self.others - self.targets, -1) / self.unit

    def slopes(self, points: Array, step: float) -> tuple[Array, Array]:
        """The loss (m,) and its difference quotients (m, parameters), 0 where a layer does not move."""
        moved = [self.model.moved(layer, self.x, points, step) for layer in self.layers]
        residuals = np.sum([base for base, _ in moved], axis=0) + self.others - self.targets
        losses = self.error(residuals, -1)
        slopes = np.zeros_like(points)
        for layer, (_, changes) in zip(self.layers, moved, strict=True):
            after = self.error(residuals[:, :, None, None] + changes, 1)
            slopes[:, layer.span] = ((after - losses[:, None, None]) / step).reshape(len(points), -1)
        unit = self.unit
        return losses / unit, slopes / unit[:, None]


def parsed(text: str) -> list[tuple[str, int]]:
    """Families and numbers of functions of "kernel(8);zeta(3)". Raises SpecError naming what it cannot read."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        match = re.fullmatch(r"(\w+)\((\d+)\)", part)
        if not match or not int(match[2]):
            raise SpecError(f"cannot read the layer {part!r}; write for example kernel(8);trigonometric(3)")
        found.append((match[1], int(match[2])))
    if not found:
        raise SpecError("there are no layers; write for example kernel(8)")
    return found
