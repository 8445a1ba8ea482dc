"""How sure parameters and predictions are: the covariance of the residuals carried back through the linearised model.

cov(u) = s^2 (J^T J)^+, J the response's difference quotients, s^2 the residuals' variance (Seber & Wild, Nonlinear
Regression, 5.1). It holds for independent errors of one variance and a fit near its minimum. What a response does not
depend on, ghosts above all, has no finite error. A parameter that ended at a bound has none either: its interval and
not the data's minimum keeps it there. It counts as fixed, and the errors of the others hold with it where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.nn.adaptive.equalisation import ScaleLocation
from impls.nn.adaptive.model import Model

Array = npt.NDArray[Any]

STEP = 1e-5
"""Of the central differences: their error is of the order of its square. Nearer to 0 or 1 is at a bound."""
NULL = 1e-10
"""Eigenvalues below this share of the largest one belong to directions in which the response does not change."""
OWN_SHARE = 1e-3
"""A parameter is undetermined if more than this share of its direction lies among them."""


@dataclass(frozen=True, slots=True)
class Confidence:
    """The covariance of (location, parameters) of y's unit, which parameters are at a bound, and which undetermined."""

    covariance: Array
    at_bound: Array
    undetermined: Array

    def of_responses(self, model: Model, x: Array, point: Array, output: ScaleLocation) -> Array:
        """The standard errors (n,) of predicted means for samples x (n, d)."""
        found = jacobian(model, x, point, output)
        return np.sqrt(np.maximum(np.einsum("np,pq,nq->n", found, self.covariance, found), 0))

    def of_parameters(self, model: Model, point: Array) -> Array:
        """The standard errors (parameters,) in natural units; infinite where undetermined, NaN at a bound."""
        errors = np.sqrt(np.maximum(np.diag(self.covariance)[1:], 0))
        slopes = np.concatenate([layer.scales.slopes(model.block(layer, point)).ravel() for layer in model.layers])
        return np.select([self.at_bound, self.undetermined], [np.nan, np.inf], errors * np.abs(slopes))


def confidence(model: Model, x: Array, y: Array, point: Array, output: ScaleLocation) -> Confidence:
    """From the residuals of a fit to y (n,) at x (n, d); NaN where there are no more samples than parameters."""
    at_bound = (point < STEP) | (point > 1 - STEP)
    found = jacobian(model, x, point, output)
    found[:, 1:][:, at_bound] = 0
    residuals = y - output(model.response(x, point[None])[0])
    lengths = np.linalg.norm(found, axis=0)
    lengths[lengths == 0] = 1
    eigenvalues, vectors = np.linalg.eigh((found / lengths).T @ (found / lengths))
    known = eigenvalues > NULL * max(eigenvalues[-1], np.finfo(float).tiny)
    freedom = len(x) - int(known.sum())
    variance = float(residuals @ residuals) / freedom if freedom > 0 else np.nan
    inverse = (vectors[:, known] / eigenvalues[known]) @ vectors[:, known].T
    undetermined = np.square(vectors[:, ~known]).sum(axis=1) > OWN_SHARE
    return Confidence(variance * inverse / np.outer(lengths, lengths), at_bound, undetermined[1:] & ~at_bound)


def jacobian(model: Model, x: Array, point: Array, output: ScaleLocation) -> Array:
    """d prediction / d (location, parameters), (n, 1 + parameters), by central differences."""
    columns = [np.ones((len(x), 1))]
    for layer in model.layers:
        _, up = model.moved(layer, x, point[None], STEP)
        _, down = model.moved(layer, x, point[None], -STEP)
        columns.append(output.scale * ((up - down) / (2 * STEP))[0].reshape(len(x), -1))
    return np.concatenate(columns, axis=1)
