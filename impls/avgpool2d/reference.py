"""The definition of average pooling in float64: the sum of each window over the pixels really under it."""

from __future__ import annotations

import numpy as np

from impls.arrays import array_module
from impls.contract import DIRECT, FLOAT64, Implementation, Plan
from impls.specs import DIRECTIONS, PoolSpec
from impls.windows import counts, inside, padded, taps


class Reference(Plan):
    """Computes in float64 whatever the dtype of its arrays."""

    converts = True
    spec: PoolSpec
    offers = (DIRECTIONS[0], DIRECTIONS[2])

    def forward(self, x, out):
        xp, image = array_module(x), padded(self.spec, x, 0.0)
        y = xp.zeros(self.spec.y_shape)
        for rows, columns in taps(self.spec):
            y += image[:, rows, columns]
        out[...] = y / xp.asarray(counts(self.spec))

    def grad_input(self, x, y, dy, dx):
        xp = array_module(dy)
        share = dy.astype(np.float64) / xp.asarray(counts(self.spec))
        dxp = padded(self.spec, xp.zeros(self.spec.x_shape), 0.0)
        for rows, columns in taps(self.spec):
            dxp[:, rows, columns] += share
        dx[...] = inside(self.spec, dxp)


IMPL = Implementation(Reference, algorithm=DIRECT, arithmetic=FLOAT64, note="the definition, float64")
