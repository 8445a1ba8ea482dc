"""Keras, whatever its backend: the layer itself, compiled, on resident tensors; and ``model.predict`` on NumPy arrays.

``keras``
    The layer as a compiled training step runs it: tf.function without XLA (Keras' own choice on a CPU), jax.jit, or
    eager PyTorch. Gradients are the backend's automatic differentiation of the layer before its activation, one at a
    time; ``_keras_tensorflow``, ``_keras_jax`` and ``_keras_torch`` say what of the forward pass they contain.
``keras_predict``
    ``model.predict`` of a model of this one layer: NumPy in, NumPy out, the whole batch in one step. Most of a small
    case's time is Keras' data pipeline. Setting the weights, which are new at each call, is part of it.

The backend is KERAS_BACKEND's, or that of Keras' configuration file, or TensorFlow. A call uses the contents that its
arrays had when it was bound: a backend's tensors are copies.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from impls.competitors._library import LibraryPlan, Run, missing, quiet, quiet_import
from impls.contract import DIRECT, FLOAT32, FLOAT64, GEMM, Implementation
from impls.specs import FORWARD, GRAD_WEIGHTS, ConvSpec, PoolSpec, Spec

BACKENDS = {
    "tensorflow": "tf.function without XLA",
    "jax": "jax.jit",
    "torch": "eager PyTorch",
}
"""What a compiled call is, for each backend that is offered."""

COMPILED = ""
PREDICT = "_predict"


def backend_name() -> str:
    """The backend that Keras uses, or will use once it is imported."""
    if "KERAS_BACKEND" in os.environ:
        return os.environ["KERAS_BACKEND"]
    config = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "keras.json"
    return json.loads(config.read_text()).get("backend", "tensorflow") if config.exists() else "tensorflow"


def set_threads(count: int) -> None:
    """Let the backend compute with ``count`` threads. Raises RuntimeError if it has started with another count."""
    _backend().set_threads(count)


def threads() -> dict[str, int]:
    """The numbers of threads in force, by the backend's names for them."""
    return _backend().threads()


def _backend() -> Any:
    """The module beside this one that compiles for the backend."""
    return importlib.import_module(f"impls.competitors._keras_{backend_name()}")


class KerasPlan(LibraryPlan):
    """A plan for one operation; it imports Keras when it is made."""

    op: str
    spec: Any

    def prepare(self):
        self.backend = _backend()
        self.backend.start()
        self.keras = quiet_import("keras")

    def get(self, direction, result, out):
        """Copy one result; Keras' layouts are ours."""
        with quiet():
            np.copyto(out, self.keras.ops.convert_to_numpy(result))

    def layer(self, activation: str | None) -> Any:
        """The Keras layer of this problem, built, with weights of its own."""
        spec, layers = self.spec, self.keras.layers
        if self.op == "conv2d":
            layer = layers.Conv2D(
                spec.filters,
                spec.kernel,
                strides=spec.stride,
                padding=_padding(spec),
                data_format="channels_last",
                dilation_rate=spec.dilation,
                groups=spec.groups,
                activation=activation,
                use_bias=spec.bias,
                dtype=spec.dtype,
            )
        elif self.op == "dense":
            layer = layers.Dense(spec.units, activation=activation, use_bias=spec.bias, dtype=spec.dtype)
        else:
            pooling = layers.MaxPooling2D if self.op == "maxpool2d" else layers.AveragePooling2D
            layer = pooling(spec.pool, spec.step, _padding(spec), data_format="channels_last", dtype=spec.dtype)
        layer.build(spec.x_shape)
        return layer


class Compiled(KerasPlan):
    """The layer as a function of (x, w, b), compiled by the backend for each bound call."""

    def bound(self, direction: str, inputs: Mapping[str, Any]) -> Run:
        layer = self.layer(_activation(self.spec) if direction == FORWARD else None)

        def function(x, *weights):
            return layer.stateless_call(weights, [], x)[0]

        with self.keras.device("cpu"):
            tensors = [self.backend.tensor(array) for array in self._operands(inputs)]
            if direction == FORWARD:
                return self.backend.forward(function, tensors)
            wanted = slice(1, None) if direction == GRAD_WEIGHTS else slice(0, 1)
            return self.backend.gradient(function, tensors, wanted, self.backend.tensor(inputs["dy"]))

    def _operands(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        """x, w and b as far as they exist; zeros for what a linear layer's gradient does not depend on."""
        spec = self.spec
        shapes = {"x": spec.x_shape, "w": spec.w_shape, "b": spec.b_shape}
        return [
            inputs[name] if name in inputs else np.zeros(shape, spec.dtype)
            for name, shape in shapes.items()
            if shape is not None
        ]


class Predict(KerasPlan):
    """``model.predict`` of a model of one layer; the model is made and traced once."""

    offers = (FORWARD,)

    def prepare(self):
        super().prepare()
        spec = self.spec
        with self.keras.device("cpu"):
            layer = self.layer(_activation(spec))
            self.model = self.keras.Sequential([self.keras.Input(batch_shape=spec.x_shape, dtype=spec.dtype), layer])

    def bound(self, direction: str, inputs: Mapping[str, Any]) -> Run:
        x, *weights = (array for array in inputs.values() if array is not None)

        def run():
            with quiet(), self.keras.device("cpu"):
                self.model.set_weights(weights)
                return (self.model.predict(x, batch_size=self.spec.batch, verbose=0),)

        return run


def _activation(spec: Spec) -> str | None:
    return getattr(spec, "activation", None)


def _padding(spec: ConvSpec | PoolSpec) -> str | None:
    """Keras' word for the padding, or None. Explicit padding that comes to the same as a word is that word."""
    if spec.pads == ((0, 0), (0, 0)):
        return "valid"
    return "same" if spec.pads == replace(spec, padding="same").pads else None


def _requires() -> str | None:
    """A missing Keras or backend, or a backend without gradients."""
    backend = backend_name()
    if backend not in BACKENDS:
        return f"Keras' {backend!r} backend is not offered; set KERAS_BACKEND to one of {', '.join(BACKENDS)}"
    return missing("keras") or missing(backend)


def _why_not(op: str, spec: Any, direction: str) -> str | None:
    """What Keras' layers cannot express, or compute as something else."""
    if isinstance(spec, ConvSpec) and max(spec.stride) > 1 and max(spec.dilation) > 1:
        return "Keras refuses a stride above 1 together with a dilation above 1"
    if isinstance(spec, ConvSpec | PoolSpec) and _padding(spec) is None:
        return f"Keras' layers pad 'same' or 'valid', not by {spec.pads}"
    if op == "avgpool2d" and backend_name() == "torch" and any(before != after for before, after in spec.pads):
        return "on PyTorch Keras averages repeated border pixels where 'same' pads opposite sides differently"
    return None


PLANS: dict[tuple[str, str], type[KerasPlan]] = {
    (op, suffix): type(f"{op.capitalize()}{base.__name__}", (base,), {"op": op})
    for op in ("conv2d", "maxpool2d", "avgpool2d", "dense")
    for suffix, base in ((COMPILED, Compiled), (PREDICT, Predict))
}
FIGURES = {op: tuple(suffix for other, suffix in PLANS if other == op) for op, _ in PLANS}


def implementation(op: str, suffix: str) -> Implementation:
    """The record of an operation's figure. The backend chooses its algorithm; direct (dense: gemm) is declared."""
    backend = backend_name()
    contents = {
        COMPILED: f"the layer as a compiled step on resident tensors ({BACKENDS.get(backend, 'not offered')})",
        PREDICT: "model.predict, NumPy in and out, the data pipeline and setting the weights included",
    }
    return Implementation(
        PLANS[op, suffix],
        algorithm=GEMM if op == "dense" else DIRECT,
        arithmetic=lambda spec, direction: FLOAT64 if spec.dtype == "float64" else FLOAT32,
        why_not=partial(_why_not, op),
        requires=_requires,
        competitor=True,
        repeatable=False,
        note=f"Keras on {backend}: {contents[suffix]}",
    )
