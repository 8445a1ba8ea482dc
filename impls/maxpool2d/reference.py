"""The definition of max pooling: the largest pixel of each window; the gradient goes to the first."""

from __future__ import annotations

import numpy as np

from impls.contract import DIRECT, FLOAT64, Implementation, Plan
from impls.specs import DIRECTIONS, PoolSpec
from impls.windows import inside, padded, taps


class Reference(Plan):
    """A NaN under a window makes its maximum NaN, and takes its gradient."""

    spec: PoolSpec
    offers = (DIRECTIONS[0], DIRECTIONS[2])

    def forward(self, x, out):
        xp = padded(self.spec, x, -np.inf)
        y = np.full(self.spec.y_shape, -np.inf)
        for rows, columns in taps(self.spec):
            y = np.maximum(y, xp[:, rows, columns])
        out[...] = y

    def grad_input(self, x, y, dy, dx):
        xp = padded(self.spec, x, -np.inf)
        border = padded(self.spec, np.zeros(self.spec.x_shape), 1.0) > 0
        dxp = np.zeros(xp.shape)
        open_windows = np.ones(self.spec.y_shape, bool)
        for rows, columns in taps(self.spec):
            seen = xp[:, rows, columns]
            hit = open_windows & ~border[:, rows, columns] & ((seen == y) | (np.isnan(seen) & np.isnan(y)))
            dxp[:, rows, columns] += np.where(hit, np.asarray(dy, np.float64), 0.0)
            open_windows &= ~hit
        dx[...] = inside(self.spec, dxp)


IMPL = Implementation(Reference, algorithm=DIRECT, arithmetic=FLOAT64, note="the definition, float64")
