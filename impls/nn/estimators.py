"""Networks for scikit-learn: a classifier and a regressor that take rows, or NHWC images through ``image_shape``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from impls.nn.network import EVERY, Network, Options
from impls.nn.optimizers import Optimizer, named
from impls.nn.structure import Dense, Flatten, Structure, parse
from impls.nn.training import Data, EarlyStopping, Settings, Trainer, predict

Array = npt.NDArray[Any]

PREDICTION_BATCH = 64


class _NetworkEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """What both estimators share."""

    def __init__(
        self,
        structure: str = "D(100,r)",
        *,
        image_shape: tuple[int, int, int] | None = None,
        options: dict[str, Options] | None = None,
        optimizer: str | Optimizer = "adam",
        learning_rate: float | None = None,
        epochs: int = 100,
        batch: int = 32,
        l2: float = 0.0,
        validation_split: float = 0.0,
        patience: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.structure = structure
        self.image_shape = image_shape
        self.options = options
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch = batch
        self.l2 = l2
        self.validation_split = validation_split
        self.patience = patience
        self.random_state = random_state

    def _train(self, x: Array, targets: Array, last: Dense, loss: str) -> None:
        seed = int(check_random_state(self.random_state).randint(2**31))
        images = self._images(x)
        options = {EVERY: Options(l2_kernel=self.l2)} | (self.options or {})
        network = Network(self._layers(last), images.shape[1:], options=options, seed=seed)
        stopping = None
        if self.patience is not None:
            monitor = "val_loss" if self.validation_split else "loss"
            stopping = EarlyStopping(monitor=monitor, patience=self.patience)
        settings = Settings(
            epochs=self.epochs,
            batch=min(self.batch, len(x)),
            loss=loss,
            optimizer=self._optimizer(),
            seed=seed,
            validation_split=self.validation_split,
            early_stopping=stopping,
        )
        self.history_ = Trainer(network, Data(images, targets), settings).fit()
        self.n_iter_ = len(self.history_)
        self.network_ = network

    def _layers(self, last: Dense) -> Structure:
        """The hidden layers, rows flattened first, and the layer that gives the answer."""
        hidden = parse(self.structure).layers if self.structure else ()
        return Structure((*(() if self.image_shape else (Flatten(),)), *hidden, last))

    def _optimizer(self) -> Optimizer:
        """The optimizer that was asked for, by name or as it is."""
        if isinstance(self.optimizer, Optimizer):
            return self.optimizer
        return named(self.optimizer, **({} if self.learning_rate is None else {"learning_rate": self.learning_rate}))

    def _images(self, x: Array) -> Array:
        """Rows as images of ``image_shape``, or of one pixel whose channels are the features."""
        shape = self.image_shape or (1, 1, x.shape[1])
        if math.prod(shape) != x.shape[1]:
            raise ValueError(f"image_shape={shape} has {math.prod(shape)} values; the samples have {x.shape[1]}")
        return x.reshape(-1, *shape)

    def _rows(self, x: Any) -> Any:
        """Images (n, H, W, C) as rows; anything else as it is, for scikit-learn to judge."""
        is_image = self.image_shape is not None and getattr(x, "ndim", 2) == 4
        return x.reshape(len(x), -1) if is_image else x

    def _answers(self, x: Any) -> Array:
        check_is_fitted(self)
        rows = validate_data(self, self._rows(x), reset=False, dtype=np.float32)
        return predict(self.network_, self._images(rows), PREDICTION_BATCH)


class NetworkClassifier(ClassifierMixin, _NetworkEstimator):  # type: ignore[misc]
    """A network that tells classes apart: hidden layers by ``structure``, then softmax units, one per class.

    ``structure``: the hidden layers as text; on images it must end in a row (F(), then dense layers). ``image_shape``:
    (H, W, C); X may then be images or rows. ``options``: by layer name, as Network takes them. ``optimizer``: a name or
    an Optimizer. ``l2``: penalty of every kernel. ``patience``: epochs without progress after which training stops,
    of the validation loss if ``validation_split`` is above 0. Labels may be of any type.
    """

    def fit(self, X: Any, y: Any) -> NetworkClassifier:
        """Train on samples X and labels y. Raises ValueError for data that do not fit, as scikit-learn's do."""
        rows, labels = validate_data(self, self._rows(X), y, dtype=np.float32)
        check_classification_targets(labels)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: {self.classes_[0]!r}")
        targets = np.eye(len(self.classes_), dtype=np.float32)[numbers]
        self._train(rows, targets, Dense(len(self.classes_), "softmax"), "categorical_crossentropy")
        return self

    def predict_proba(self, X: Any) -> Array:
        """The probability of every class (n, classes), in the order of ``classes_``."""
        return self._answers(X)

    def predict(self, X: Any) -> Array:
        """The most probable class of every sample."""
        chosen = self.predict_proba(X).argmax(axis=1)
        labels: Array = self.classes_[chosen]
        return labels


class NetworkRegressor(RegressorMixin, _NetworkEstimator):  # type: ignore[misc]
    """A network that predicts numbers: hidden layers by ``structure``, then linear units, one per target.

    Targets are brought to mean 0 and deviation 1 while training. Parameters as NetworkClassifier's.
    """

    def __sklearn_tags__(self) -> Any:
        """Several targets at once are fine."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> NetworkRegressor:
        """Train on samples X and targets y (n,) or (n, targets)."""
        rows, y = validate_data(self, self._rows(X), y, dtype=np.float32, multi_output=True, y_numeric=True)
        targets = np.asarray(y, np.float64).reshape(len(rows), -1)
        self._is_row = np.ndim(y) == 1
        self.mean_, self.scale_ = targets.mean(axis=0), targets.std(axis=0)
        self.scale_[self.scale_ == 0] = 1
        scaled = ((targets - self.mean_) / self.scale_).astype(np.float32)
        self._train(rows, scaled, Dense(targets.shape[1], "linear"), "mean_squared_error")
        return self

    def predict(self, X: Any) -> Array:
        """The predicted targets, in the shape that y had."""
        answers: Array = self._answers(X) * self.scale_ + self.mean_
        return answers[:, 0] if self._is_row else answers
