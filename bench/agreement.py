"""Training judged against Keras step by step: gradients by their distance to float64, optimizers by their updates.

Free-running trajectories part: relu's kinks, pooling's ties and Adam's division make much of a rounding. So a Keras
twin runs freely, and at each of its steps ours starts from its weights, its optimizer's state, its batch and our
dropout masks, which the twin is given. The float64 network, with the same of everything, is the truth for both.

Gradients, for every kernel and bias: d = |g - truth| / |truth|, Euclidean norms.

    d(ours) / (4 d(Keras) + 8 * 2^-23), in the median over the steps, at most 1;      d(ours) at most 1e-3 at any step

At a kink the gradient jumps: with N pre-activations in a layer, one that rounds to the other side of zero is worth
about 1 / sqrt(N) of the gradient, 3 % in a small dense layer, and says nothing about who computed it. Therefore the
truth takes the branches of whom it is compared with: the same sides of relu, the same maxima in pooling's windows. Its
own value there is exchanged for one on the other side, which must be a matter of rounding: at most TIE of the layer's
largest value (float32 sums of a thousand terms, through ten layers, are off by some 1e-6 of it). The third kink is in
Keras' loss: TensorFlow computes it from logits, as we do; PyTorch's is cut off where a probability comes within 1e-7
of 0 or 1, and such a sample has no gradient in the truth for Keras either.

Updates: our optimizer, from Keras' state and with Keras' gradient, must give Keras' weights within 8 units in the last
place, of the largest number that enters an element's update: see ``update_ulps``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from threadpoolctl import threadpool_limits

import datasets
from bench.keras_model import Array, ReferenceModel
from bench.keras_state import from_keras, keras_optimizer
from bench.keras_training import Batch, KerasProcess, Moment, Twin, TwinStep
from impls.nn import dropout, losses
from impls.nn.network import Network, Parameter, Pass, activation_of
from impls.nn.optimizers import Adam, AdaMax, Nadam, Optimizer
from impls.nn.schedules import rate_at
from impls.nn.structure import Dropout, MaxPool
from impls.nn.training import Data, Settings, Trainer, batches
from impls.numba_setup import numba
from impls.specs import FORWARD

Outputs: TypeAlias = Mapping[str, Array]
"""What every layer handed on, by its name."""

STEPS = 20

KERAS_TIMES, ULPS, ULP = 4.0, 8.0, 2.0**-23
LARGEST = 1e-3
TIE = 2.0**-15

LOSS = "categorical_crossentropy"


@dataclass(frozen=True, slots=True)
class GradientRow:
    """The gradient of a kernel, a bias, ...: relative distances to float64 at every step, ours and Keras'.

    Of a moving average, which has no gradient, its values after the step.
    """

    model: str
    parameter: str
    ours: tuple[float, ...]
    keras: tuple[float, ...]

    @property
    def of_allowance(self) -> float:
        """The median over the steps of our distance in units of what is allowed."""
        allowed = KERAS_TIMES * np.array(self.keras) + ULPS * ULP
        return float(np.median(np.array(self.ours) / allowed))

    @property
    def reason(self) -> str:
        """What is wrong, empty if nothing is."""
        wrong = [] if self.of_allowance <= 1 else [f"{self.of_allowance:.3g} of the allowed distance to float64"]
        wrong += [] if max(self.ours) <= LARGEST else [f"{max(self.ours):.3g} of the gradient's norm at one step"]
        return " and ".join(wrong)

    @property
    def status(self) -> str:
        """OK or WRONG."""
        return "WRONG" if self.reason else "OK"


@dataclass(frozen=True, slots=True)
class Agreement:
    """A network's steps beside its twin's. ``updates``: the optimizer's largest difference at every step, in ulps.

    ``kinks`` counts the values at which the truth had to change sides, ``tie`` is the largest such change in units of
    its layer's largest value. ``losses`` and ``keras_losses`` are of the free-running networks, for information.
    """

    model: str
    backend: str
    gradients: tuple[GradientRow, ...]
    updates: tuple[float, ...]
    kinks: int
    tie: float
    losses: tuple[float, ...]
    keras_losses: tuple[float, ...]

    @property
    def reason(self) -> str:
        """What is wrong, empty if nothing is."""
        wrong = [f"{row.parameter}: {row.reason}" for row in self.gradients if row.reason]
        wrong += [] if max(self.updates) <= ULPS else [f"updates differ by {max(self.updates):.3g} units"]
        wrong += [] if self.tie <= TIE else [f"a branch was taken {self.tie:.2g} of the largest value off"]
        return "; ".join(wrong)

    @property
    def status(self) -> str:
        """OK or WRONG."""
        return "WRONG" if self.reason else "OK"


def verify_training(
    keras: KerasProcess, model: ReferenceModel, batch: int, seed: int, optimizer: Optimizer | None = None
) -> Agreement:
    """STEPS steps on real training images, drawn by ``seed``, with Adam unless another optimizer is given.

    Raises datasets.DatasetError if the images cannot be had, bench.keras_model.ModelError if Keras cannot train.
    """
    needed = STEPS * batch
    data = datasets.load(model.dataset, limit_per_class=needed)
    order = np.random.default_rng(seed).permutation(len(data.y_train))
    chosen = np.resize(order, needed)  # from the beginning again where there are fewer
    network = Network(model.structure, model.image_shape, seed=seed)
    (units,) = network.output_shape
    targets = np.eye(units, dtype=np.float32)[data.y_train[chosen]]
    with _threads(keras.threads):
        return agreement(keras, network, Data(data.x_train[chosen], targets), batch, optimizer or Adam(), model.name)


def agreement(
    keras: KerasProcess, network: Network, data: Data, batch: int, optimizer: Optimizer, name: str = ""
) -> Agreement:
    """Train the twin of a float32 network on the data in their order, ours beside it, which is left at its weights."""
    settings = Settings(optimizer=optimizer, batch=batch, loss=LOSS, shuffle=False)
    trainer, free = Trainer(network, data, settings), Trainer(_copy(network), data, settings)
    truth = _Truth(network, batch)
    twin = Twin(network.structure, network.image_shape, network.named_weights(), keras_optimizer(optimizer))
    moment = keras.start(twin)
    distances: dict[str, list[tuple[float, float]]] = {parameter.name: [] for parameter in network.parameters}
    updates, free_losses, keras_losses = [], [], []
    for number, chosen in enumerate(batches(np.arange(len(data)), settings)):
        x, targets = data.x[chosen], data.targets[chosen]
        rate = rate_at(optimizer.learning_rate, number)
        taken = keras.step(Batch(x, targets, masks(network, batch, number), rate))
        network.load_weights(moment.weights)
        from_keras(trainer, moment.state)
        ours, outputs = _our_gradients(trainer, x, targets)
        exact = exact_keras = truth.gradients(moment, number, x, targets, outputs)
        if taken.cut.any() or not _same_branches(network, outputs, taken.outputs):
            exact_keras = truth.gradients(moment, number, x, targets, taken.outputs, taken.cut)
        for parameter, found in distances.items():
            mine, theirs = ours[parameter], taken.gradients.get(parameter, taken.after.weights[parameter])
            found.append((relative(mine, exact[parameter]), relative(theirs, exact_keras[parameter])))
        updates.append(_update(trainer, moment, taken))
        free_losses.append(free.step(chosen)[0])
        keras_losses.append(taken.loss)
        moment = taken.after
    rows = tuple(GradientRow(name, key, *zip(*found, strict=True)) for key, found in distances.items())
    figures = (tuple(updates), truth.kinks, truth.tie, tuple(free_losses), tuple(keras_losses))
    return Agreement(name, keras.backend, rows, *figures)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many for our kernels; one for BLAS, by which float64 is computed: its threads would spin while ours work."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        numba.set_num_threads(before)


def masks(network: Network, batch: int, step: int) -> dict[str, Array]:
    """What every dropout layer of a network multiplies its input by in this step of a training run."""
    found = {}
    for index, layer in enumerate(network.steps):
        if isinstance(layer.layer, Dropout):
            mask = np.ones((batch, *layer.input_shape), np.float32)
            dropout.drop(mask, layer.layer.rate, dropout.seed_of(network.seed, index, step), mask)
            found[layer.name] = mask
    return found


def relative(found: Array, truth: Array) -> float:
    """|found - truth| / |truth|; where the truth is zero, 0 or infinite."""
    distance, size = (float(np.linalg.norm(np.ravel(a).astype(np.float64))) for a in (found - truth, truth))
    if not size:
        return 0.0 if distance == 0 else float("inf")
    return distance / size


def update_ulps(optimizer: Optimizer, before: Moment, after: Moment, parameter: Parameter, found: Array) -> float:
    """The largest difference of a parameter's weights after a step, in units in the last place.

    The unit is that of the largest number that enters an element's update: its weight, its step, and its momentum. The
    moving average of Adam and AdaMax counts as the step that it alone would have made: where the new gradient takes
    most of it away, what is left has the rounding of what was there. For Nadam it is the learning rate, near which lie
    both of its terms, of momentum and of gradient, where they cancel.
    """
    weights, expected = before.weights[parameter.name], after.weights[parameter.name]
    step = np.abs(expected - weights)
    scale = np.maximum(np.abs(weights), step)
    slot = f"{parameter.layer}_{parameter.kind}_momentum"
    if isinstance(optimizer, Nadam):
        scale = np.maximum(scale, np.float32(rate_at(optimizer.learning_rate, 0)))
    elif slot in before.state:
        old, new = np.abs(before.state[slot]), np.abs(after.state[slot])
        moves = np.divide(step, new, out=np.zeros_like(step), where=new > 0)  # the weight per unit of the average
        scale = np.maximum(scale, old * moves if isinstance(optimizer, Adam | AdaMax) else old)
    return float((np.abs(found - expected) / np.spacing(scale)).max())


class _Truth:
    """The float64 network on the branches that a float32 one took; how many were not its own, and how far off."""

    def __init__(self, network: Network, batch: int) -> None:
        self.network = _copy(network, "float64")
        self.bound = Pass(self.network, batch, training=True)
        self.kinks = 0
        self.tie = 0.0

    def gradients(
        self, moment: Moment, number: int, x: Array, targets: Array, outputs: Outputs, cut: Array | None = None
    ) -> Outputs:
        """By parameter name; samples that are ``cut`` have none."""
        self.network.load_weights(moment.weights)
        self.bound.x[...] = x
        self.bound.dropout_step = number
        self._forward(outputs)
        exact = targets.astype(np.float64)
        losses.evaluate(LOSS, self.network.activation, self.bound.y, exact, self.bound.dy)
        if cut is not None:
            self.bound.dy[cut] = 0
        self.bound.backward()
        return _named_gradients(self.network)

    def _forward(self, outputs: Outputs) -> None:
        names = [step.name for step in self.network.steps]
        for operation in self.bound.forward_operations:
            index = names.index(operation.layer)
            step = self.network.steps[index]
            if isinstance(step.layer, MaxPool) and index:
                before = names[index - 1]
                self._note(*same_maxima(self.bound.output_of(before), outputs[before], step.layer.pool))
            operation.run()
            if operation.direction == FORWARD and activation_of(step) == "relu":
                self._note(*same_signs(self.bound.output_of(step.name), outputs[step.name]))

    def _note(self, kinks: int, tie: float) -> None:
        self.kinks += kinks
        self.tie = max(self.tie, tie)


def same_signs(y: Array, theirs: Array) -> tuple[int, float]:
    """Bring y (after relu) to the other side of zero where theirs is; (how many, largest change / largest value)."""
    other = (y > 0) != (theirs > 0)
    size = float(y.max())
    change = float(np.abs(y - theirs)[other].max(initial=0))
    y[other] = theirs[other]
    return int(other.sum()), _of_size(change, size)


def same_maxima(x: Array, theirs: Array, pool: int) -> tuple[int, float]:
    """Exchange values of x within pooling's windows where the first maximum of theirs lies elsewhere; as above."""
    own, here, there = _windows(x, pool), _maxima(x, pool), _maxima(theirs, pool)
    places = np.nonzero(here != there)
    first, second = ((*places, at[places] // pool, at[places] % pool) for at in (here, there))
    change = float(np.abs(own[first] - own[second]).max(initial=0))
    own[first], own[second] = own[second], own[first]
    return len(places[0]), _of_size(change, float(np.abs(x).max()))


def _same_branches(network: Network, ours: Outputs, theirs: Outputs) -> bool:
    """Whether two runs took the same sides of every relu, and the same maxima in every pooling's windows."""
    before = ""
    for step in network.steps:
        if activation_of(step) == "relu" and ((ours[step.name] > 0) != (theirs[step.name] > 0)).any():
            return False
        if isinstance(step.layer, MaxPool) and before:
            mine, other = (_maxima(outputs[before], step.layer.pool) for outputs in (ours, theirs))
            if (mine != other).any():
                return False
        before = step.name
    return True


def _maxima(x: Array, pool: int) -> Array:
    """(N, H / pool, W / pool, C): where in its window, counted row by row, the first maximum is."""
    windows = _windows(x, pool)
    places: Array = windows.reshape(*windows.shape[:4], -1).argmax(axis=-1)
    return places


def _windows(x: Array, pool: int) -> Array:
    """A view (N, H / pool, W / pool, C, pool, pool)."""
    n, height, width, channels = x.shape
    rows, columns = height // pool, width // pool
    whole = x[:, : rows * pool, : columns * pool]
    return whole.reshape(n, rows, pool, columns, pool, channels).transpose(0, 1, 3, 5, 2, 4)


def _of_size(change: float, size: float) -> float:
    return change / size if size else (0.0 if change == 0 else float("inf"))


def _our_gradients(trainer: Trainer, x: Array, targets: Array) -> tuple[Outputs, Outputs]:
    """Gradients by parameter name and outputs by layer name, from the trainer's weights at its step."""
    bound = trainer.pass_for(len(x))
    bound.x[...] = x
    bound.dropout_step = trainer.steps
    bound.forward()
    losses.evaluate(LOSS, trainer.network.activation, bound.y, targets, bound.dy)
    bound.backward()
    return _named_gradients(trainer.network), {s.name: bound.output_of(s.name) for s in trainer.network.steps}


def _update(trainer: Trainer, moment: Moment, taken: TwinStep) -> float:
    """Our optimizer's step with Keras' gradient, from its weights and state: the difference in ulps."""
    network, optimizer = trainer.network, trainer.settings.optimizer
    learning = [parameter for parameter in network.parameters if parameter.trainable]
    for parameter in learning:
        parameter.of(network.gradients)[...] = taken.gradients[parameter.name]
    trainer.update()
    return max(update_ulps(optimizer, moment, taken.after, p, p.of(network.weights)) for p in learning)


def _named_gradients(network: Network) -> dict[str, Array]:
    """By parameter name after a backward pass; of what has no gradient, the values that it was moved to."""
    return {p.name: p.of(network.gradients if p.trainable else network.weights).copy() for p in network.parameters}


def _copy(network: Network, dtype: str = "float32") -> Network:
    """Another network with the same seed, hence the same weights and masks."""
    return Network(network.structure, network.image_shape, options=network.options, seed=network.seed, dtype=dtype)
