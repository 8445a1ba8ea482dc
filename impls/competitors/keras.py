"""Keras on each of its backends: the layer itself, compiled, on resident tensors; ``model.predict`` on NumPy arrays.

``keras``
    The layer as a compiled training step runs it: tf.function without XLA (Keras' own choice on a CPU), jax.jit, or
    eager PyTorch. Gradients are the backend's automatic differentiation of the layer before its activation, one at a
    time; ``_keras_tensorflow``, ``_keras_jax`` and ``_keras_torch`` say what of the forward pass they contain.
``keras_reuse``
    The same, and the C library keeps what is freed: results lie in pages that are there already.
``keras_predict``
    ``model.predict`` of a model of this one layer: NumPy in, NumPy out, the whole batch in one step. Most of a small
    case's time is Keras' data pipeline. Setting the weights, which are new at each call, is part of it.

    Of these three the backend is KERAS_BACKEND's, or that of Keras' configuration file, or TensorFlow.
``keras_jax_cuda``, ``keras_tensorflow_cuda``, ``keras_torch_cuda``, and each with ``_tf32``
    The same as ``keras`` on a GPU, in float32 or TF32, on the backend of its name: Keras has one backend in a process,
    so each needs a process of its own. tf.function compiles with XLA, as Keras does where there is a GPU. A call
    enqueues and does not wait.

A call uses the contents that its arrays had when it was bound: a backend's tensors are copies.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from impls.competitors._devices import cuda_of
from impls.competitors._library import (
    REUSE,
    LibraryPlan,
    Run,
    arithmetic_of,
    keep_memory,
    missing,
    missing_reuse,
    quiet,
    quiet_import,
    why_not_tf32,
)
from impls.contract import DIRECT, FLOAT32, GEMM, TF32, Implementation
from impls.specs import FORWARD, GRAD_WEIGHTS, ConvSpec, PoolSpec, Spec

BACKENDS = {
    "tensorflow": "tf.function without XLA",
    "jax": "jax.jit",
    "torch": "eager PyTorch",
}
"""What a compiled call is on a CPU, for each backend that is offered."""
ON_GPU = BACKENDS | {"tensorflow": "tf.function with XLA"}
"""And on a GPU."""

CPU = "cpu:0"
GPU = "gpu:0"
"""Keras' words for where tensors are."""


def backend_name() -> str:
    """The backend that Keras uses, or will use once it is imported, where nothing else is chosen."""
    if "KERAS_BACKEND" in os.environ:
        return os.environ["KERAS_BACKEND"]
    config = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "keras.json"
    return json.loads(config.read_text()).get("backend", "tensorflow") if config.exists() else "tensorflow"


def _backend(name: str) -> Any:
    """The module beside this one that compiles for the backend."""
    return importlib.import_module(f"impls.competitors._keras_{name}")


class KerasPlan(LibraryPlan):
    """A plan for one operation; it imports Keras when it is made."""

    op: str
    spec: Any
    chosen: ClassVar[str | None] = None
    """The backend that the figure names; None where it is Keras' own choice."""
    place: ClassVar[str] = CPU
    as_on_gpu: ClassVar[bool] = False
    """Whether the arithmetic is set, and calls are compiled and enqueued as for a GPU."""

    @classmethod
    def set_threads(cls, count: int) -> None:
        """Let the backend compute with ``count`` threads. Raises RuntimeError if it has started with another count."""
        _backend(cls.chosen or backend_name()).set_threads(count)

    @classmethod
    def threads(cls) -> dict[str, int]:
        """The numbers of threads in force, by the backend's names for them."""
        return _backend(cls.chosen or backend_name()).threads()

    def prepare(self):
        if self.reuses_memory:
            keep_memory()
        name = self.chosen or backend_name()
        self.backend = _backend(name)
        if self.place == GPU:
            self.backend.start_on_gpu()
        else:
            self.backend.start()
        if self.chosen:
            os.environ["KERAS_BACKEND"] = self.chosen
        self.keras = quiet_import("keras")

    def get(self, direction, result, out):
        """Copy one result, which waits for it; Keras' layouts are ours."""
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
    """The layer as a function of (x, w, b), compiled by the backend for each bound call.

    On a GPU the arithmetic of the plan bound last holds for the whole process; JAX compiles it in at the first call.
    """

    def bound(self, direction: str, inputs: Mapping[str, Any]) -> Run:
        if self.as_on_gpu:
            self.backend.set_precision(self.arithmetic)
        with self.keras.device(self.place):
            layer = self.layer(_activation(self.spec) if direction == FORWARD else None)

        def function(x, *weights):
            with self.keras.device(self.place):  # eager PyTorch calls this at each call
                return layer.stateless_call(weights, [], x)[0]

        with self.keras.device(self.place):
            tensors = [self.backend.tensor(array, self.place) for array in self._operands(inputs)]
            if direction == FORWARD:
                return self.backend.forward(function, tensors, on_gpu=self.as_on_gpu)
            wanted = slice(1, None) if direction == GRAD_WEIGHTS else slice(0, 1)
            dy = self.backend.tensor(inputs["dy"], self.place)
            return self.backend.gradient(function, tensors, wanted, dy, on_gpu=self.as_on_gpu)

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
        with self.keras.device(self.place):
            layer = self.layer(_activation(spec))
            self.model = self.keras.Sequential([self.keras.Input(batch_shape=spec.x_shape, dtype=spec.dtype), layer])

    def bound(self, direction: str, inputs: Mapping[str, Any]) -> Run:
        x, *weights = (array for array in inputs.values() if array is not None)

        def run():
            with quiet(), self.keras.device(self.place):
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


def _requires(plan_type: type[KerasPlan]) -> str | None:
    """A missing Keras or backend, a backend without gradients, or a process that has Keras on another one."""
    backend = plan_type.chosen or backend_name()
    if plan_type.reuses_memory and (reason := missing_reuse()):
        return reason
    if backend not in BACKENDS:
        return f"Keras' {backend!r} backend is not offered; set KERAS_BACKEND to one of {', '.join(BACKENDS)}"
    if reason := missing("keras") or missing(backend):
        return reason
    running = sys.modules["keras"].backend.backend() if "keras" in sys.modules else backend
    return None if running == backend else f"Keras runs on {running} in this process; {backend} needs one of its own"


def _why_not(plan_type: type[KerasPlan], spec: Any, direction: str) -> str | None:
    """What Keras' layers cannot express, or compute as something else, or not in this arithmetic."""
    if isinstance(spec, ConvSpec) and max(spec.stride) > 1 and max(spec.dilation) > 1:
        return "Keras refuses a stride above 1 together with a dilation above 1"
    if isinstance(spec, ConvSpec | PoolSpec) and _padding(spec) is None:
        return f"Keras' layers pad 'same' or 'valid', not by {spec.pads}"
    on_torch = (plan_type.chosen or backend_name()) == "torch"
    if plan_type.op == "avgpool2d" and on_torch and any(before != after for before, after in spec.pads):
        return "on PyTorch Keras averages repeated border pixels where 'same' pads opposite sides differently"
    return why_not_tf32(plan_type, spec)


def _on_cuda(backend: str, arithmetic: str) -> dict[str, Any]:
    """What a plan on CUDA has beyond one on the CPU."""
    return {
        "device": cuda_of(
            lambda: _backend(backend).wait(),
            arithmetic,
            on_default_stream=backend == "torch",
            trim=lambda: _backend(backend).trim(),
        ),
        "chosen": backend,
        "place": GPU,
        "as_on_gpu": True,
        "arithmetic": arithmetic,
    }


FIGURE: dict[str, tuple[type[KerasPlan], Mapping[str, Any]]] = {
    "": (Compiled, {}),
    "_reuse": (Compiled, REUSE),
    "_predict": (Predict, {}),
    **{
        f"_{backend}_cuda{ending}": (Compiled, _on_cuda(backend, arithmetic))
        for backend in sorted(BACKENDS)
        for ending, arithmetic in (("", FLOAT32), ("_tf32", TF32))
    },
}
"""What makes each figure's plans of the plans above."""

PLANS: dict[tuple[str, str], type[KerasPlan]] = {
    (op, suffix): type(f"{op.capitalize()}{base.__name__}{suffix}", (base,), {"op": op, **attributes})
    for op in ("conv2d", "maxpool2d", "avgpool2d", "dense")
    for suffix, (base, attributes) in FIGURE.items()
}
FIGURES = {op: tuple(FIGURE) for op, _ in PLANS}


def implementation(op: str, suffix: str) -> Implementation:
    """The record of an operation's figure. The backend chooses its algorithm; direct (dense: gemm) is declared."""
    plan_type = PLANS[op, suffix]
    return Implementation(
        plan_type,
        algorithm=GEMM if op == "dense" else DIRECT,
        arithmetic=arithmetic_of(plan_type),
        why_not=partial(_why_not, plan_type),
        requires=partial(_requires, plan_type),
        competitor=True,
        alone=plan_type.reuses_memory,
        repeatable=False,
        note=_note(plan_type),
    )


def _note(plan_type: type[KerasPlan]) -> str:
    backend = plan_type.chosen or backend_name()
    if issubclass(plan_type, Predict):
        return (
            f"Keras on {backend}: model.predict, NumPy in and out, the data pipeline and setting the weights included"
        )
    if plan_type.place == CPU:
        how = BACKENDS.get(backend, "not offered")
        pages = ", results in pages that the C library kept" if plan_type.reuses_memory else ""
        return f"Keras on {backend}: the layer as a compiled step on resident tensors ({how}){pages}"
    how = f"{ON_GPU[backend]}, {plan_type.arithmetic} set for convolutions and products"
    step = f"the layer as a compiled step on resident channels-last tensors ({how})"
    return f"Keras on {backend} on CUDA: {step}; a call enqueues, no copies between host and device"
