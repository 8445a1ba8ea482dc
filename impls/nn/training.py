"""Training: batches in a seeded order, a step, an epoch, early stopping; and prediction in batches of one size.

A Trainer is driven epoch by epoch, so that several networks can be trained in turns and timed from outside: nothing
here reads a clock. The loss of an epoch is the mean over its samples while the weights move, as Keras reports it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from impls.nn import losses
from impls.nn.adaptive.errors import AdaptiveLoss
from impls.nn.equalised import Response
from impls.nn.network import Network, Parameter, Pass
from impls.nn.optimizers import Adam, Optimizer, State
from impls.nn.schedules import rate_at
from impls.numba_setup import njit
from impls.specs import SpecError

Array = npt.NDArray[Any]
Record: TypeAlias = dict[str, float]
Callback: TypeAlias = Callable[["Trainer", Record], object]
"""Called after every epoch with the trainer and the epoch's record; True ends the training."""


PERMUTATION, INDEPENDENT = "permutation", "independent"
SAMPLINGS = (PERMUTATION, INDEPENDENT)


class TrainingError(RuntimeError):
    """The loss or the data is NaN or infinite: the message says where it began, and what was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopping:
    """Stop when ``monitor`` has not fallen by more than ``min_delta`` for ``patience`` epochs.

    A monitor whose name ends in "accuracy" must rise instead. ``restore_best`` brings the best epoch's weights back.
    """

    monitor: str = "val_loss"
    patience: int = 10
    min_delta: float = 0.0
    restore_best: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train. ``batches`` (a number of batches per epoch, sizes differing by one at most) goes before ``batch``.

    ``sampling``: with "permutation" every sample comes once an epoch, in a new order each time if ``shuffle``; with
    "independent" every batch is drawn by itself, without replacement, from all samples: some come twice, some not.

    Gradients are means over the batch; penalties are added before clipping, as in Keras. ``clip_norm`` limits the norm
    of each parameter's gradient, ``clip_global_norm`` that of all together; at most one way of clipping is allowed.
    ``weight_decay`` takes rate * weight_decay * w from every weight before its step. ``validation_split``: the fraction
    of the samples, taken from the end before shuffling as Keras does, that is held out.

    ``first_losses`` are descended before ``loss``, by which the network is judged: each until it stalls, which is when
    an epoch's loss has not fallen by a hundredth within ``loss_patience`` epochs, or until the last quarter begins.
    ``equalise``: the targets adapt to the network's answers by scale and location (impls/nn/equalised.py). Losses are
    recorded in the targets' unit all the same; the network answers in it when training has finished.
    """

    epochs: int = 100
    batch: int = 32
    batches: int | None = None
    loss: str = "categorical_crossentropy"
    optimizer: Optimizer = field(default_factory=Adam)
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None
    weight_decay: float = 0.0
    shuffle: bool = True
    sampling: str = PERMUTATION
    seed: int = 0
    validation_split: float = 0.0
    early_stopping: EarlyStopping | None = None
    first_losses: tuple[str, ...] = ()
    loss_patience: int = 10
    equalise: bool = False

    def __post_init__(self) -> None:
        """Raises SpecError for a setting outside its range, naming it."""
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batches is not None and self.batches < 1:
            raise SpecError(f"batches={self.batches} must be at least 1")
        for loss in self.loss_sequence:
            if loss not in losses.LOSSES:
                raise SpecError(f"unknown loss {loss!r}; known: {', '.join(losses.LOSSES)}")
        if self.sampling not in SAMPLINGS:
            raise SpecError(f"unknown sampling {self.sampling!r}; known: {', '.join(SAMPLINGS)}")
        if self.sampling == INDEPENDENT and not self.shuffle:
            raise SpecError("independent sampling has no order to keep: leave shuffle as it is")
        if not 0 <= self.validation_split < 1:
            raise SpecError(f"validation_split={self.validation_split} must be at least 0 and below 1")
        clips = [name for name in ("clip_value", "clip_norm", "clip_global_norm") if getattr(self, name) is not None]
        if len(clips) > 1:
            raise SpecError(f"{' and '.join(clips)} exclude each other; give one")
        for name in clips:
            if not getattr(self, name) > 0:
                raise SpecError(f"{name}={getattr(self, name)} must be above 0")
        if self.loss_patience < 1:
            raise SpecError(f"loss_patience={self.loss_patience} must be at least 1")
        if len(self.loss_sequence) > 1 and self.early_stopping and self.early_stopping.monitor == "loss":
            raise SpecError("early stopping cannot watch 'loss', which changes with first_losses; watch 'val_loss'")
        if self.equalise and self.loss_sequence != ("mean_squared_error",):
            raise SpecError(f"equalise is for the mean squared error alone, not {', '.join(self.loss_sequence)}")

    @property
    def loss_sequence(self) -> tuple[str, ...]:
        """The losses that are descended, one after the other; the last one judges."""
        return (*self.first_losses, self.loss)


@dataclass(frozen=True, slots=True)
class Data:
    """Samples x (n, H, W, C) and what the network should answer, targets (n, units)."""

    x: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.x)


class Trainer:
    """A network in training: its optimizer's state, the number of steps taken, and the history of its epochs."""

    def __init__(
        self, network: Network, data: Data, settings: Settings | None = None, validation: Data | None = None
    ) -> None:
        """Raises SpecError where samples or targets do not fit the network, TrainingError for NaN or infinite ones."""
        self.network = network
        self.settings = settings or Settings()
        held_out = math.floor(len(data) * self.settings.validation_split) if validation is None else 0
        kept = len(data) - held_out
        self.data = _checked(network, Data(data.x[:kept], data.targets[:kept]), "training")
        if held_out:
            validation = Data(data.x[kept:], data.targets[kept:])
        self.validation = None if validation is None else _checked(network, validation, "validation")
        self._spans = tuple(_spans(network.parameters))
        self._passes: dict[int, Pass] = {}
        self._asked: Pass | None = None
        self.reset()

    def reset(self) -> None:
        """Forget every step: the optimizer's state, the order, the history. Weights and bound passes are kept."""
        self.history: list[Record] = []
        self.steps = 0
        self.stopped = False
        self.descended = AdaptiveLoss(self.settings.loss_sequence, self.settings.loss_patience)
        """By its ``name`` the loss that is descended now."""
        self.response = Response(self.network, self.data.targets) if self.settings.equalise else None
        self._rng = np.random.default_rng(self.settings.seed)
        self._states = [self.settings.optimizer.init(stop - start) for start, stop in self._spans]
        self._best: tuple[float, Array, int] | None = None

    def fit(self, callbacks: Sequence[Callback] = ()) -> list[Record]:
        """Train until the epochs are over or something ends it; returns the history.

        Raises TrainingError as ``epoch``; the network is finished then as well, with the weights that were kept.
        """
        try:
            while not self.stopped and len(self.history) < self.settings.epochs:
                record = self.epoch()
                for callback in callbacks:
                    if callback(self, record) is True:
                        self.stopped = True
        except TrainingError:
            self.finish()
            raise
        self.finish()
        return self.history

    def finish(self) -> None:
        """Bring the best weights back where early stopping asks for them, and an equalised network to its targets."""
        stopping = self.settings.early_stopping
        if stopping and stopping.restore_best and self._best:
            self.network.weights[...] = self._best[1]
        if self.response is not None:
            self.response.give_back(predict(self.network, self.data.x, self.settings.batch, self._asking()))

    def epoch(self) -> Record:
        """One pass over the data in new batches. Raises TrainingError where the loss stops being finite."""
        record = self.train(sampled(len(self.data), self.settings, self._rng))
        if self.validation is not None:
            judged = Data(self.validation.x, self.learned(self.validation.targets))
            found = evaluate(self.network, judged, self.settings.loss, self.settings.batch, self._asking())
            record |= {f"val_{name}": value for name, value in found.items()}
        if self.response is not None:
            record = {name: self.response.in_unit_of_y(value) for name, value in record.items()}
            self.response.adapt(predict(self.network, self.data.x, self.settings.batch, self._asking()))
        self.history.append(record)
        self.descended.watch(record["loss"], 1 - len(self.history) / self.settings.epochs)
        self._watch(record)
        return record

    def train(self, parts: Iterable[Array]) -> Record:
        """A step on each of these batches of samples; means over them while the weights moved. Raises as ``epoch``."""
        before, start = self.network.weights.copy(), self.steps
        total = right = count = 0.0
        for number, chosen in enumerate(parts):
            loss, hits = self.step(chosen)
            if not math.isfinite(loss):
                raise self._failure(start, number, len(chosen), loss, before)
            total, right, count = total + loss * len(chosen), right + hits, count + len(chosen)
        record: Record = {"loss": total / count}
        if has_accuracy(self.settings.loss):
            record["accuracy"] = right / count
        return record

    def step(self, chosen: Array) -> tuple[float, float]:
        """One step on these samples: (loss with penalties, samples answered right). NaN loss: nothing is changed."""
        bound = self.pass_for(len(chosen))
        return self.step_on(bound, self.gather(bound, chosen))

    def step_on(self, bound: Pass, targets: Array) -> tuple[float, float]:
        """One step on what lies in the pass's x."""
        bound.dropout_step = self.steps
        bound.forward()
        loss = self.loss_of(bound, targets)
        if not math.isfinite(loss):
            return loss, 0.0
        bound.backward()
        loss += self.update()
        return loss, _hits(bound.y, targets) if has_accuracy(self.settings.loss) else 0.0

    def gather(self, bound: Pass, chosen: Array) -> Array:
        """Bring these samples into the pass's x; returns their targets."""
        np.take(self.data.x, chosen, axis=0, out=bound.x, mode="clip")
        return self.learned(self.data.targets[chosen])

    def learned(self, targets: Array) -> Array:
        """What the network learns in place of these targets: they themselves, unless they are equalised."""
        return targets if self.response is None else self.response.of(targets)

    def loss_of(self, bound: Pass, targets: Array) -> float:
        """The loss of the pass's y, which the last activation is applied to; its gradient goes into the pass's dy."""
        return losses.evaluate(self.descended.name, self.network.activation, bound.y, targets, bound.dy)

    def update(self) -> float:
        """Move the weights by the network's gradients; returns the penalties at the weights before."""
        network, settings = self.network, self.settings
        penalty = _penalize(network)
        _clip(network, settings)
        rate = rate_at(settings.optimizer.learning_rate, self.steps)
        for (start, stop), state in zip(self._spans, self._states, strict=True):
            w, g = network.weights[start:stop], network.gradients[start:stop]
            if settings.weight_decay:
                w -= w * np.float32(settings.weight_decay) * np.float32(rate)
            settings.optimizer.update(w, g, state, rate, self.steps)
        self.steps += 1
        return penalty

    def pass_for(self, batch: int) -> Pass:
        """The training pass for a batch size, made once."""
        if batch not in self._passes:
            self._passes[batch] = Pass(self.network, batch, training=True)
        return self._passes[batch]

    def _asking(self) -> Pass:
        """The pass that asks for answers, made once: binding one takes as long as several steps of a small network."""
        self._asked = self._asked or Pass(self.network, self.settings.batch, training=False)
        return self._asked

    def optimizer_state(self) -> list[tuple[tuple[int, int], State]]:
        """The optimizer's arrays for every span (start, stop) of the flat weights that learns."""
        return list(zip(self._spans, self._states, strict=True))

    def _watch(self, record: Record) -> None:
        stopping = self.settings.early_stopping
        if stopping is None:
            return
        if stopping.monitor not in record:
            raise SpecError(f"early stopping watches {stopping.monitor!r}; an epoch has {', '.join(record)}")
        sign = -1.0 if stopping.monitor.endswith("accuracy") else 1.0
        value, epoch = sign * record[stopping.monitor], len(self.history)
        if self._best is None or value < self._best[0] - stopping.min_delta:
            self._best = value, self.network.weights.copy(), epoch
        self.stopped = epoch - self._best[2] >= stopping.patience

    def _failure(self, start: int, number: int, size: int, loss: float, before: Array) -> TrainingError:
        """Say where it began, ``number`` batches after ``start`` steps, and leave weights that are finite.

        The epoch follows from the steps: epochs may be trained several at once, or in parts.
        """
        epoch, batch = divmod(start + number, steps_per_epoch(len(self.data), self.settings))
        kept = "the weights before that batch were kept"
        if not np.isfinite(self.network.weights).all():
            self.network.weights[...] = before
            kept = f"the weights after {start} steps were kept"
        return TrainingError(
            f"the loss became {loss} in epoch {epoch + 1}, batch {batch + 1}, "
            f"first seen after {_first_bad(self._passes[size])}; {kept}. "
            "Try a lower learning rate, or clip the gradients"
        )


def sampled(count: int, settings: Settings, rng: np.random.Generator) -> Iterator[Array]:
    """The samples, of so many, of each step of an epoch: what ``sampling`` says, drawn from ``rng``.

    Independent batches all have one size.
    """
    if settings.sampling == PERMUTATION:
        return batches(rng.permutation(count) if settings.shuffle else np.arange(count), settings)
    size = min(settings.batch, count) if settings.batches is None else math.ceil(count / settings.batches)
    return (rng.choice(count, size, replace=False) for _ in range(steps_per_epoch(count, settings)))


def steps_per_epoch(count: int, settings: Settings) -> int:
    """Batches of an epoch over so many samples; independent ones are ceil(count / size)."""
    if settings.batches is None:
        return math.ceil(count / settings.batch)
    if settings.sampling == PERMUTATION:
        return min(settings.batches, count)
    return math.ceil(count / math.ceil(count / settings.batches))


def batches(order: Array, settings: Settings) -> Iterator[Array]:
    """The samples of each step: ``batches`` parts whose sizes differ by one at most, or parts of ``batch``."""
    if settings.batches is not None:
        yield from (part for part in np.array_split(order, settings.batches) if len(part))
        return
    for start in range(0, len(order), settings.batch):
        yield order[start : start + settings.batch]


def predict(network: Network, x: Array, batch: int = 32, bound: Pass | None = None) -> Array:
    """The network's answers (n, units) for samples (n, H, W, C).

    Every pass has the same batch size, the last one filled up, so that a sample's answer does not depend on which
    others come with it. ``bound``: an inference pass of the network at this batch size, where there is one already.
    """
    answers = np.empty((len(x), *network.output_shape), network.dtype)
    bound = bound or Pass(network, batch, training=False)
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        bound.x[: len(part)] = part
        bound.x[len(part) :] = 0
        bound.forward()
        bound.finish()
        answers[start : start + len(part)] = bound.y[: len(part)]
    return answers


def evaluate(network: Network, data: Data, loss: str, batch: int = 32, bound: Pass | None = None) -> Record:
    """Loss (penalties included), and accuracy where the loss is of classes; ``bound`` as for ``predict``."""
    answers = predict(network, data.x, batch, bound)
    # The activation has been applied: what is asked for is the loss of probabilities.
    value = losses.evaluate(loss, "linear", answers, data.targets.astype(answers.dtype), np.empty_like(answers))
    record: Record = {"loss": value + penalty_of(network)}
    if has_accuracy(loss):
        record["accuracy"] = _hits(answers, data.targets) / len(data)
    return record


def penalty_of(network: Network) -> float:
    """l1 sum |w| + l2 sum w^2 over all parameters."""
    total = 0.0
    for parameter in network.parameters:
        if parameter.l1 or parameter.l2:
            w = parameter.of(network.weights).astype(np.float64)
            total += parameter.l1 * float(np.abs(w).sum()) + parameter.l2 * float(np.square(w).sum())
    return total


def _penalize(network: Network) -> float:
    """Add the penalties' gradients; returns the penalties."""
    total = 0.0
    for parameter in network.parameters:
        if parameter.l1 or parameter.l2:
            span = slice(parameter.start, parameter.stop)
            total += _add_penalty(network.weights[span], network.gradients[span], parameter.l1, parameter.l2)
    return total


@njit
def _add_penalty(w, g, l1, l2):
    total = 0.0
    for i in range(len(w)):
        total += l1 * abs(w[i]) + l2 * w[i] * w[i]
        g[i] += l1 * np.sign(w[i]) + 2 * l2 * w[i]
    return total


def _clip(network: Network, settings: Settings) -> None:
    g = network.gradients
    if settings.clip_value is not None:
        np.clip(g, -settings.clip_value, settings.clip_value, out=g)
    learning = [p for p in network.parameters if p.trainable]
    if settings.clip_norm is not None:
        for parameter in learning:
            _shrink([parameter.of(g)], settings.clip_norm)
    if settings.clip_global_norm is not None:
        _shrink([parameter.of(g) for parameter in learning], settings.clip_global_norm)


def norm_of(arrays: Iterable[Array]) -> float:
    """The Euclidean norm of all together, summed in float64: in float32 the square of 1.9e19 is infinite."""
    return math.hypot(*(float(np.linalg.norm(array.astype(np.float64))) for array in arrays))


def _shrink(gradients: Sequence[Array], limit: float) -> None:
    """Scale gradients so that the norm of all together is at most ``limit``."""
    norm = norm_of(gradients)
    if norm > limit:
        for g in gradients:
            g *= g.dtype.type(limit / norm)


def _spans(parameters: Sequence[Parameter]) -> Iterator[tuple[int, int]]:
    """(start, stop) of every run of parameters that learn."""
    start = stop = None
    for parameter in parameters:
        if parameter.trainable:
            start, stop = parameter.start if start is None else start, parameter.stop
        elif start is not None and stop is not None:
            yield start, stop
            start = None
    if start is not None and stop is not None:
        yield start, stop


def _checked(network: Network, data: Data, what: str) -> Data:
    """The same data as C-contiguous arrays of the network's dtype."""
    x, targets = (np.ascontiguousarray(a, network.dtype) for a in (data.x, data.targets))
    if x.shape[1:] != network.image_shape:
        raise SpecError(f"the network takes images of {network.image_shape}; the {what} data have {x.shape[1:]}")
    if targets.shape != (len(x), *network.output_shape):
        expected = (len(x), *network.output_shape)
        raise SpecError(f"the {what} targets have shape {targets.shape}; the network's answers have {expected}")
    if not len(x):
        raise SpecError(f"there are no {what} samples")
    for name, array in (("samples", x), ("targets", targets)):
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            raise TrainingError(f"the {what} {name} hold NaN or infinity, first in number {int(bad.argmax())}")
    return Data(x, targets)


def has_accuracy(loss: str) -> bool:
    """Whether answers are right or wrong, and not near or far."""
    return loss != "mean_squared_error"


def _hits(answers: Array, targets: Array) -> float:
    """How many samples are answered right: the largest unit, or the side of one half where there is one unit."""
    if answers.shape[1] == 1:
        return float(((answers > 0.5) == (targets > 0.5)).sum())
    return float((answers.argmax(axis=1) == targets.argmax(axis=1)).sum())


def _first_bad(bound: Pass) -> str:
    """The first layer whose result or parameters are not finite."""
    for step in bound.network.steps:
        for array in bound.network.layer_weights(step.name):
            if not np.isfinite(array).all():
                return f"the weights of layer {step.name}"
        if not np.isfinite(bound.output_of(step.name)).all():
            return f"layer {step.name}"
    return "the loss"
