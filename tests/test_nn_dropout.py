"""Dropout: what is dropped is zero, whatever it was; where it is written to must be what was given."""

from __future__ import annotations

import numpy as np
import pytest

from impls.nn.dropout import drop


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.0], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_dropped_is_zero_whatever_it_was(value, dtype):
    """Infinity times zero would be NaN."""
    values, out = np.full(1000, value, dtype), np.ones(1000, dtype)
    drop(values, 0.5, 7, out)
    dropped = out == 0
    assert 400 < dropped.sum() < 600
    np.testing.assert_array_equal(out[~dropped], values[~dropped] * 2)


def test_an_output_whose_values_lie_apart_is_refused():
    """It would be a copy that is filled."""
    values = np.ones((4, 4), np.float32)
    with pytest.raises(ValueError, match="out is not C-contiguous"):
        drop(values, 0.5, 7, np.ones((4, 8), np.float32)[:, ::2])
