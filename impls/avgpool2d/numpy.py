"""Sums of strided views, first over the rows of all windows, then over their columns; one division at the end.

Memory: the sums over rows of one block of samples, and the shares of a block in the gradient.
"""

from __future__ import annotations

import numpy as np

from impls.contract import DIRECT, Implementation, Plan, float32_only
from impls.specs import FORWARD, GRAD_INPUT, PoolSpec
from impls.windows import block_size, blocks, column_taps, counts, row_taps


class NumpyAverage(Plan):
    """A ufunc call per row and per column of the window and block of samples."""

    spec: PoolSpec
    offers = (FORWARD, GRAD_INPUT)

    @classmethod
    def scratch_bytes(cls, spec, directions):
        _, out_h, out_w, channels = spec.y_shape
        columns = spec.width + out_w * (GRAD_INPUT in directions)
        return 4 * block_size(spec) * out_h * columns * channels

    def prepare(self):
        self.blocks = blocks(self.spec)
        self.rows, self.columns = row_taps(self.spec), column_taps(self.spec)
        self.counts = counts(self.spec).astype(np.float32)

    def forward(self, x, out):
        for samples in self.blocks:
            seen, y = x[samples], out[samples]
            over_rows = self._rows_scratch(len(y))
            over_rows.fill(0)
            for outputs, pixels in self.rows:
                np.add(over_rows[outputs], seen[pixels], out=over_rows[outputs])
            y.fill(0)
            for outputs, pixels in self.columns:
                np.add(y[outputs], over_rows[pixels], out=y[outputs])
            np.divide(y, self.counts, out=y)

    def grad_input(self, x, y, dy, dx):
        """The transpose: shares spread over the columns of their windows, then over the rows."""
        for samples in self.blocks:
            gained = dx[samples]
            over_rows = self._rows_scratch(len(gained))
            share = self.scratch((len(gained), *self.spec.y_shape[1:]), offset=over_rows.nbytes)
            np.divide(dy[samples], self.counts, out=share)
            over_rows.fill(0)
            for outputs, pixels in self.columns:
                np.add(over_rows[pixels], share[outputs], out=over_rows[pixels])
            gained.fill(0)
            for outputs, pixels in self.rows:
                np.add(gained[pixels], over_rows[outputs], out=gained[pixels])

    def _rows_scratch(self, samples):
        _, out_h, _, channels = self.spec.y_shape
        return self.scratch((samples, out_h, self.spec.width, channels))


IMPL = Implementation(NumpyAverage, algorithm=DIRECT, why_not=float32_only, note="strided views, one thread")
