"""Housing: a synthetic regression with one feature, price = SLOPE * area + INTERCEPT + noise.

Split s, 0 .. 9, is drawn with seed s. There are no classes: y is a float32 target, (rows,).
"""

from __future__ import annotations

import numpy as np

from datasets.contract import Dataset, Form, Found, Part

SLOPE = 2.5
"""Thousands per square metre."""
INTERCEPT = 40.0
"""Thousands."""
NOISE = 25.0
"""Standard deviation of the price around the line, in thousands."""
AREAS = (40.0, 240.0)
"""Square metres, uniformly distributed."""
TRAIN_ROWS = 400
TEST_ROWS = 100


def read(_found: Found, split: int) -> tuple[Part, Part]:
    """Areas (rows, 1) and prices (rows,)."""
    random = np.random.RandomState(split)  # its stream is promised for ever
    area = random.uniform(*AREAS, size=TRAIN_ROWS + TEST_ROWS)
    price = (SLOPE * area + INTERCEPT + random.normal(0, NOISE, len(area))).astype(np.float32)
    x = area[:, np.newaxis]
    return Part.of(x[:TRAIN_ROWS], price[:TRAIN_ROWS]), Part.of(x[TRAIN_ROWS:], price[TRAIN_ROWS:])


DATASET = Dataset(forms=(Form("computed", ()),), read=read, classes=(), splits=10)
