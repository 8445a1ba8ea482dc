"""The estimators are scikit-learn's in every respect that scikit-learn can check."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

from impls.nn.estimators import NetworkClassifier, NetworkRegressor
from impls.specs import SpecError


@parametrize_with_checks([NetworkClassifier(epochs=60), NetworkRegressor(epochs=60)])
def test_scikit_learn_accepts_it(estimator, check):
    """No check is marked as one that may fail."""
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    """Images (n, 8, 8, 1) and labels that are words."""
    loaded = load_digits()
    words = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    return (loaded.images / 16).astype(np.float32)[..., None], words[loaded.target]


def test_a_convolutional_classifier_takes_images_or_rows_and_any_labels(digits):
    """The same answers for both."""
    x, words = digits
    classifier = NetworkClassifier("C(3,8,r);M(2);F();D(32,r)", image_shape=(8, 8, 1), epochs=25, random_state=0)
    classifier.fit(x[:1500], words[:1500])
    assert classifier.score(x[1500:], words[1500:]) > 0.9
    np.testing.assert_array_equal(classifier.predict(x[1500:]), classifier.predict(x[1500:].reshape(-1, 64)))
    assert set(classifier.classes_) == set(words)


def test_a_fitted_estimator_survives_clone_and_pickle(digits):
    """A clone has the parameters and nothing learned; a pickle answers alike."""
    x, words = digits
    classifier = NetworkClassifier("D(16,r)", epochs=2, random_state=0).fit(x[:200].reshape(200, -1), words[:200])
    back = pickle.loads(pickle.dumps(classifier))
    rows = x[200:300].reshape(100, -1)
    np.testing.assert_array_equal(classifier.predict_proba(rows), back.predict_proba(rows))
    assert not hasattr(clone(classifier), "network_")
    assert clone(classifier).get_params() == classifier.get_params()


def test_patience_ends_training_early(digits):
    """Of the validation loss."""
    x, words = digits
    classifier = NetworkClassifier(
        "D(16,r)", epochs=500, patience=2, validation_split=0.3, learning_rate=0.05, random_state=0
    )
    classifier.fit(x[:300].reshape(300, -1), words[:300])
    assert classifier.n_iter_ < 500


def test_a_regressor_predicts_several_targets():
    """In the units of the targets."""
    x = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32)
    y = np.stack([100 + 30 * x[:, 0], 1e-3 * (x[:, 1] - x[:, 2])], axis=1)
    regressor = NetworkRegressor("D(32,t)", epochs=80, random_state=0).fit(x[:300], y[:300])
    assert regressor.score(x[300:], y[300:]) > 0.95
    assert regressor.predict(x[300:]).shape == (100, 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"structure": "D(5,what)"}, "what"),
        ({"optimizer": "adamw"}, "nadam"),
        ({"image_shape": (9, 9, 1)}, "81"),
        ({"structure": "C(3,4)"}, "needs an image"),
    ],
)
def test_bad_settings_are_named_when_it_is_fitted(settings, words):
    """As scikit-learn wants it: not before."""
    with pytest.raises((SpecError, ValueError), match=words):
        NetworkClassifier(**settings).fit(np.eye(64, dtype=np.float32), np.arange(64) % 2)
