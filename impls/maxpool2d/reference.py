"""The definition of max pooling: the largest pixel of each window; the gradient goes to the first."""

from __future__ import annotations

import numpy as np

from impls.arrays import array_module
from impls.contract import DIRECT, FLOAT64, Implementation, Plan
from impls.specs import DIRECTIONS, PoolSpec
from impls.windows import inside, padded, taps


class Reference(Plan):
    """A NaN under a window makes its maximum NaN, and takes its gradient."""

    converts = True
    spec: PoolSpec
    offers = (DIRECTIONS[0], DIRECTIONS[2])

    def forward(self, x, out):
        xp, image = array_module(x), padded(self.spec, x, -np.inf)
        y = xp.full(self.spec.y_shape, -np.inf)
        for rows, columns in taps(self.spec):
            y = xp.maximum(y, image[:, rows, columns])
        out[...] = y

    def grad_input(self, x, y, dy, dx):
        xp, image = array_module(x), padded(self.spec, x, -np.inf)
        border = padded(self.spec, xp.zeros(self.spec.x_shape), 1.0) > 0
        dxp = xp.zeros(image.shape)
        open_windows = xp.ones(self.spec.y_shape, bool)
        for rows, columns in taps(self.spec):
            seen = image[:, rows, columns]
            hit = open_windows & ~border[:, rows, columns] & ((seen == y) | (xp.isnan(seen) & xp.isnan(y)))
            dxp[:, rows, columns] += xp.where(hit, dy.astype(np.float64), 0.0)
            open_windows &= ~hit
        dx[...] = inside(self.spec, dxp)


IMPL = Implementation(Reference, algorithm=DIRECT, arithmetic=FLOAT64, note="the definition, float64")
