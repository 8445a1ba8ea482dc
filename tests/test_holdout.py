"""What is held out: a share of every class, drawn by the seed, and never the test data."""

from __future__ import annotations

import numpy as np
import pytest

import datasets
from bench.holdout import hold_out
from impls.specs import SpecError


def test_every_class_gives_its_share_and_no_sample_is_in_two_parts():
    found = hold_out("digits", seed=3)
    split = datasets.load("digits")
    counts = [part.targets.sum(axis=0) for part in (found.train, found.validation)]
    np.testing.assert_allclose(counts[1] / (counts[0] + counts[1]), 0.2, atol=0.005)
    rows = [np.column_stack([part.x.reshape(len(part), -1), part.targets.argmax(1)]) for part in (found.given,)]
    given = np.column_stack([split.x_train.reshape(len(split.x_train), -1), split.y_train])
    np.testing.assert_array_equal(
        *(each[np.lexsort(each.T)] for each in (rows[0].astype(np.float32), given.astype(np.float32)))
    )
    np.testing.assert_array_equal(
        found.test.x.reshape(len(split.x_test), -1), split.x_test.reshape(len(split.x_test), -1)
    )
    assert (found.image_shape, found.classes) == ((8, 8, 1), 10)


def test_the_seed_decides_who_is_held_out():
    first, again, other = (hold_out("digits", seed=seed).validation.x for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == other.shape
    assert (first != other).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense",), "unknown data set 'nonsense'; known: digits"),
        (("housing",), "housing has no classes"),
        (("digits", 0, 0.001), "0.001 of the [0-9]+ samples of class 0 cannot be held out"),
    ],
)
def test_what_cannot_be_held_out_is_said(arguments, words):
    with pytest.raises(SpecError, match=words):
        hold_out(*arguments)
