"""A Keras twin of a network in training: in a process of its own, one step at a time, everything it computes sent back.

The twin is given weights, batches and dropout masks, and draws nothing itself. Its loss is Keras' categorical
cross-entropy of a softmax layer; the step is written out (differentiate, then the optimizer's ``apply``), so that
gradients can be seen. TensorFlow computes that loss from the logits; the other backends take the logarithm of
probabilities kept within 1e-7 of 0 and 1, where the gradient of a sample whose probability is cut vanishes.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench.keras_model import Array, ModelError, build, environment, output_name, start_backend
from bench.keras_state import ITERATION, PRODUCT
from impls.nn.structure import Structure, steps
from impls.specs import Shape

EPSILON = 1e-7
"""How near to 0 and 1 Keras lets a probability come before its logarithm is taken."""

ANSWER_SECONDS = 300.0
"""A step's answer comes within this time; the first one after importing the backend."""


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """What the twin is made of: weights by name (c0/kernel), optimizer as (class name, arguments), and its state.

    Without ``state`` the optimizer begins anew.
    """

    structure: Structure
    image_shape: Shape
    weights: Mapping[str, Array]
    optimizer: tuple[str, Mapping[str, Any]]
    state: Mapping[str, Array] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """The twin between two steps: its weights by name (c0/kernel), its optimizer's state by Keras' names."""

    weights: Mapping[str, Array]
    state: Mapping[str, Array]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a step is computed from: x (N, H, W, C), targets (N, units), the mask of every dropout layer, the rate."""

    x: Array
    targets: Array
    masks: Mapping[str, Array]
    rate: float


@dataclass(frozen=True, slots=True, eq=False)
class TwinStep:
    """What Keras computed in a step. ``outputs``: what each layer handed on, of the last one the logits.

    ``cut`` (N,): samples whose probability for their class Keras cut off, so that they have no gradient.
    """

    loss: float
    outputs: Mapping[str, Array]
    cut: Array
    gradients: Mapping[str, Array]
    after: Moment


class KerasProcess:
    """A fresh process that runs Keras on the CPU, by the backend that KERAS_BACKEND names, one twin at a time."""

    def __init__(self, threads: int) -> None:
        """Start it; does not wait. Use it in a ``with`` statement."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self._process.start()
        theirs.close()
        self.threads = threads
        self.backend = ""
        """Names and versions of what computes; known once there is a twin."""

    def __enter__(self) -> KerasProcess:
        return self

    def __exit__(self, *unused: object) -> None:
        self._connection.close()  # it ends when there is nobody to answer
        self._process.kill()
        self._process.join()
        self._process.close()

    def start(self, twin: Twin) -> Moment:
        """Make this twin in the place of the last one. Raises ModelError with Keras' own words."""
        moment: Moment
        self.backend, moment = self._ask(twin)
        return moment

    def step(self, batch: Batch) -> TwinStep:
        """Train the twin on one batch. Raises ModelError with Keras' own words."""
        taken: TwinStep = self._ask(batch)
        return taken

    def _ask(self, request: Twin | Batch) -> Any:
        try:
            self._connection.send(request)
            if not self._connection.poll(ANSWER_SECONDS):
                raise ModelError(f"Keras gave no answer in {ANSWER_SECONDS:g} s")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ModelError("the process of Keras ended without an answer") from error
        if isinstance(answer, str):
            raise ModelError(f"Keras could not train the twin: {answer}")
        return answer


def _serve(connection: Connection, threads: int) -> None:
    """The process: answers until the other end closes; what goes wrong is answered as text."""
    os.environ.update(environment(threads))
    trained: _Trained | None = None
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            if isinstance(request, Twin):
                trained = _Trained(request, threads)
                answer: Any = (trained.backend, trained.moment())
            else:
                assert trained is not None, "there is no twin yet"
                answer = trained.step(request)
        except Exception as error:  # it is the other process that can tell somebody
            answer = f"{type(error).__name__}: {error}"
        connection.send(answer)


class _Trained:
    """A Keras model with its optimizer."""

    def __init__(self, twin: Twin, threads: int) -> None:
        self.keras: Any = importlib.import_module("keras")
        self.differentiate, self.backend = start_backend(self.keras, threads)
        self.chain = steps(twin.structure, twin.image_shape)
        weights = {
            step.name: tuple(twin.weights[f"{step.name}/{kind}"] for kind in step.parameter_shapes)
            for step in self.chain
            if step.parameters
        }
        self.model = build(self.keras, self.chain, weights, masks_given=True)
        name, settings = twin.optimizer
        self.optimizer = getattr(self.keras.optimizers, name)(**settings)
        self.optimizer.build(self.model.trainable_variables)
        for variable, values in (twin.state or {}).items():
            self._state()[variable].assign(values)

    def moment(self) -> Moment:
        weights = {variable.path: self._array(variable) for variable in self.model.weights}
        return Moment(weights, {name: self._array(variable) for name, variable in self._state().items()})

    def step(self, batch: Batch) -> TwinStep:
        ops = self.keras.ops
        masks = [ops.convert_to_tensor(batch.masks[step.name]) for step in self.chain if step.name in batch.masks]
        found: list[Any] = []

        def run(x: Any) -> tuple[Any, dict[str, Any]]:
            outputs = self.model([x, *masks], training=True)
            found.append(self.keras.activations.softmax(outputs[self.chain[-1].name]))
            return self.keras.losses.CategoricalCrossentropy()(batch.targets, found[-1]), outputs

        variables = {variable.path: variable for variable in self.model.trainable_variables}
        parameters = {path: variable.value for path, variable in variables.items()}
        loss, outputs, gradients = self.differentiate(run, batch.x, parameters)
        handed_on = {step.name: self._array(outputs[output_name(step)]) for step in self.chain}
        own = {path: self._array(gradients[path]) for path in variables}
        self.optimizer.learning_rate = batch.rate
        self.optimizer.apply([gradients[path] for path in variables], list(variables.values()))
        return TwinStep(float(self._array(loss)), handed_on, self._cut(found[-1], batch.targets), own, self.moment())

    def _cut(self, probabilities: Any, targets: Array) -> Array:
        """TensorFlow's loss finds the logits on the probabilities that softmax gave, and cuts nothing."""
        if self.keras.backend.backend() == "tensorflow":
            return np.zeros(len(targets), bool)
        of_class: Array = (self._array(probabilities) * targets).sum(axis=1)
        return (of_class < EPSILON) | (of_class > 1 - EPSILON)

    def _state(self) -> dict[str, Any]:
        """The optimizer's variables by name; the one that Keras leaves without a name is Nadam's product."""
        named = {v.name: v for v in self.optimizer.variables if v.name != "learning_rate"}
        known = {name for name in named if name == ITERATION or len(named[name].shape)}
        return {name if name in known else PRODUCT: variable for name, variable in named.items()}

    def _array(self, tensor: Any) -> Array:
        # A copy: on the CPU PyTorch's arrays share memory with tensors that later steps overwrite.
        return np.array(self.keras.ops.convert_to_numpy(tensor))
