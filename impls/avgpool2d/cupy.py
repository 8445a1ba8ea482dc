"""Sums of strided views, one call per tap of the window, and one division by the real pixels, through CuPy."""

from __future__ import annotations

import math

import numpy as np

from impls.contract import DIRECT
from impls.cupy_setup import CupyPlan, blocks, byte_count, implementation, samples_per_block
from impls.specs import FORWARD, GRAD_INPUT, ITEMSIZE, PoolSpec
from impls.windows import counts, pixel_taps


class CupyAverage(CupyPlan):
    """Forward needs no scratch; the gradient's blocks of samples bound it."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    @classmethod
    def scratch_bytes(cls, spec, directions):
        return byte_count((cls.samples(spec), *spec.y_shape[1:])) if GRAD_INPUT in directions else 0

    @staticmethod
    def samples(spec: PoolSpec) -> int:
        """Samples of one block of the gradient."""
        return samples_per_block(spec, ITEMSIZE[spec.dtype] * math.prod(spec.y_shape[1:]))

    def prepare(self):
        super().prepare()
        self.taps = pixel_taps(self.spec)
        self.counts = self.xp.asarray(counts(self.spec).astype(np.float32))

    def forward(self, x, out):
        out.fill(0)
        for outputs, pixels in self.taps:
            total = out[outputs]
            self.xp.add(total, x[pixels], out=total)
        self.xp.divide(out, self.counts, out=out)

    def grad_input(self, x, y, dy, dx):
        """The transpose: every window gives each of its pixels the same share."""
        for samples in blocks(self.spec.batch, self.samples(self.spec)):
            gained = dx[samples]
            share = self.scratch((len(gained), *self.spec.y_shape[1:]))
            self.xp.divide(dy[samples], self.counts, out=share)
            gained.fill(0)
            for outputs, pixels in self.taps:
                total = gained[pixels]
                self.xp.add(total, share[outputs], out=total)


IMPL = implementation(CupyAverage, DIRECT, note="CuPy: a call per tap on strided views")
