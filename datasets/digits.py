"""Digits: 1,797 handwritten digits of 8 x 8 pixels, values 0 .. 16, bundled with scikit-learn: the offline default.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its
test part); CC BY 4.0. Split s, 0 .. 9: a fifth of every class, drawn with seed s, is the test part.
"""

from __future__ import annotations

import numpy as np

from datasets.contract import Dataset, Form, Found, Part
from datasets.prepare import stratified

TEST_SHARE = 0.2


def read(_found: Found, split: int) -> tuple[Part, Part]:
    """Images (N, 8, 8, 1)."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    images, labels = bundled.images[..., np.newaxis], bundled.target
    train, test = stratified(labels, TEST_SHARE, seed=split)
    return Part.of(images[train], labels[train]), Part.of(images[test], labels[test])


DATASET = Dataset(forms=(Form("bundled with scikit-learn", ()),), read=read, classes=tuple("0123456789"), splits=10)
