"""The last steps to a minimum: Levenberg and Marquardt's method on difference quotients, from where a swarm has ended.

Swarms find the valley; along its floor, where two parameters make up for each other, they are slow. The errors that
``confidence`` gives hold at the minimum only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from impls.nn.adaptive.confidence import jacobian
from impls.nn.adaptive.equalisation import ScaleLocation
from impls.nn.adaptive.model import Model

Array = npt.NDArray[Any]

STEPS = 40
DAMPING, LARGEST_DAMPING = 1e-3, 1e8


def polish(
    model: Model, x: Array, y: Array, point: Array, output: ScaleLocation, steps: int = STEPS
) -> tuple[Array, ScaleLocation]:
    """A point (parameters,) and an output map whose sum of squared residuals is no larger than those given have.

    Parameters stay between 0 and 1.
    """
    damping = DAMPING
    residuals = y - output(model.response(x, point[None])[0])
    for _ in range(steps):
        slopes = jacobian(model, x, point, output)
        normal, right = slopes.T @ slopes, slopes.T @ residuals
        improved = False
        while not improved and damping < LARGEST_DAMPING:
            diagonal = np.maximum(np.diag(normal), 1e-12 * max(normal.max(), 1e-300))
            move = np.linalg.solve(normal + damping * np.diag(diagonal), right)
            new_point = np.clip(point + move[1:], 0, 1)
            new_output = ScaleLocation(output.location + move[0], output.scale)
            new_residuals = y - new_output(model.response(x, new_point[None])[0])
            improved = bool(new_residuals @ new_residuals < residuals @ residuals)
            damping = damping / 3 if improved else damping * 4
        if not improved:
            break
        point, output, residuals = new_point, new_output, new_residuals
    return point, output
