"""The maximum of strided views, one call per tap of the window, through CuPy.

The gradient takes seven calls per tap and reads every array as often: right, and no match for a kernel of its own.
"""

from __future__ import annotations

import math

from impls.contract import DIRECT
from impls.cupy_setup import CupyPlan, blocks, byte_count, implementation, samples_per_block
from impls.specs import FORWARD, GRAD_INPUT, ITEMSIZE, PoolSpec
from impls.windows import pixel_taps


class CupyMax(CupyPlan):
    """Forward needs no scratch; the gradient's blocks of samples bound it."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    @classmethod
    def scratch_bytes(cls, spec, directions):
        shape = (cls.samples(spec), *spec.y_shape[1:])
        return 4 * byte_count(shape) if GRAD_INPUT in directions else 0

    @staticmethod
    def samples(spec: PoolSpec) -> int:
        """Samples of one block of the gradient."""
        return samples_per_block(spec, ITEMSIZE[spec.dtype] * math.prod(spec.y_shape[1:]))

    def prepare(self):
        super().prepare()
        self.taps = pixel_taps(self.spec)

    def forward(self, x, out):
        out.fill(-math.inf)
        for outputs, pixels in self.taps:
            largest = out[outputs]
            self.xp.maximum(largest, x[pixels], out=largest)

    def grad_input(self, x, y, dy, dx):
        """Scratch ``left`` is the gradient that has not met its maximum yet: the first in row-major order takes it.

        The maximum of a window with NaN is NaN, and its first NaN takes the gradient.
        """
        for samples in blocks(self.spec.batch, self.samples(self.spec)):
            gained, shape, step = dx[samples], y[samples].shape, byte_count(y[samples].shape)
            left, share = self.scratch(shape), self.scratch(shape, offset=step)
            hit, nan = self.scratch(shape, "bool", 2 * step), self.scratch(shape, "bool", 3 * step)
            self.xp.copyto(left, dy[samples])
            gained.fill(0)
            for outputs, pixels in self.taps:
                seen, is_hit, is_nan, given = x[samples][pixels], hit[outputs], nan[outputs], share[outputs]
                self.xp.equal(seen, y[samples][outputs], out=is_hit)
                self.xp.not_equal(seen, seen, out=is_nan)
                self.xp.logical_or(is_hit, is_nan, out=is_hit)
                given.fill(0)
                self.xp.copyto(given, left[outputs], where=is_hit)
                self.xp.copyto(left[outputs], 0, where=is_hit)
                total = gained[pixels]
                self.xp.add(total, given, out=total)


IMPL = implementation(CupyMax, DIRECT, note="CuPy: a few calls per tap on strided views")
