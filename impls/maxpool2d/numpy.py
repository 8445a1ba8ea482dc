"""The maximum of strided views: first over the rows of all windows, then over their columns.

Memory: the maxima over rows of one block of samples; in the gradient, ten bytes per window of a block.
"""

from __future__ import annotations

import math

import numpy as np

from impls.contract import DIRECT, Implementation, Plan, float32_only
from impls.specs import FORWARD, GRAD_INPUT, PoolSpec
from impls.windows import block_size, blocks, column_taps, pixel_taps, row_taps


class NumpyMax(Plan):
    """Forward: a ufunc call per row and per column of the window; gradient: a few per tap; both block by block."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    @classmethod
    def scratch_bytes(cls, spec, directions):
        _, out_h, out_w, channels = spec.y_shape
        row_values = block_size(spec) * out_h * channels
        needed = {FORWARD: 4 * row_values * spec.width, GRAD_INPUT: 10 * row_values * out_w}
        return max(needed[direction] for direction in directions)

    def prepare(self):
        self.blocks = blocks(self.spec)
        self.rows, self.columns, self.taps = row_taps(self.spec), column_taps(self.spec), pixel_taps(self.spec)

    def forward(self, x, out):
        _, out_h, _, channels = self.spec.y_shape
        for samples in self.blocks:
            seen, y = x[samples], out[samples]
            over_rows = self.scratch((len(y), out_h, self.spec.width, channels))
            over_rows.fill(-np.inf)
            for outputs, pixels in self.rows:
                np.maximum(over_rows[outputs], seen[pixels], out=over_rows[outputs])
            y.fill(-np.inf)
            for outputs, pixels in self.columns:
                np.maximum(y[outputs], over_rows[pixels], out=y[outputs])

    def grad_input(self, x, y, dy, dx):
        """Scratch ``left`` is the gradient that has not met its maximum yet; the first hit leaves 0 of it.

        Shares are cut out with bit masks, not products: 0 * inf would be NaN.
        """
        for samples in self.blocks:
            seen, largest, gained = x[samples], y[samples], dx[samples]
            shape, count = largest.shape, math.prod(largest.shape)
            left, share = self.scratch(shape), self.scratch(shape, offset=4 * count)
            hit, nan = (self.scratch(shape, "bool", offset=o * count) for o in (8, 9))
            left_bits, share_bits = left.view(np.int32), share.view(np.int32)
            np.copyto(left, dy[samples])
            gained.fill(0)
            for outputs, pixels in self.taps:
                np.equal(seen[pixels], largest[outputs], out=hit[outputs])
                np.not_equal(seen[pixels], seen[pixels], out=nan[outputs])
                np.logical_or(hit[outputs], nan[outputs], out=hit[outputs])
                np.negative(hit[outputs].view(np.int8), out=share_bits[outputs], dtype=np.int32)
                np.bitwise_and(share_bits[outputs], left_bits[outputs], out=share_bits[outputs])
                np.bitwise_xor(left_bits[outputs], share_bits[outputs], out=left_bits[outputs])
                np.add(gained[pixels], share[outputs], out=gained[pixels])


IMPL = Implementation(NumpyMax, algorithm=DIRECT, why_not=float32_only, note="strided views, one thread")
