"""Reference models: published networks in Keras, and everything Keras computes in them for a batch of real images.

A model has seeded weights and runs in inference mode (dropout does nothing). Recorded are the weights, the output of
every layer, the loss, and the gradients at every layer, all of them taken by the backend's own differentiation of the
Keras model. Keras runs in a fresh process on the CPU; this module imports it only there:

    python -m bench.keras_model --structure TEXT --seed N --threads N --data FILE.npz --out FILE.npz

The backend is Keras' own choice (the variable KERAS_BACKEND): TensorFlow or PyTorch. JAX differentiates functions,
not recorded tensors, and so cannot say what arrived at the inner layers of a model.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.keras_network import keras_layer
from impls.nn.initializers import default_for
from impls.nn.structure import (
    PUBLISHED,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Step,
    Structure,
    parse,
    steps,
)
from impls.specs import Case, Shape, SpecError

Array: TypeAlias = npt.NDArray[Any]

CLASSES = {"digits": 10, "olivetti": 40, "mnist": 10, "cifar10": 10}
"""The data sets that have reference models, and how many classes each has."""

_IMAGES: Mapping[str, Shape] = {"digits": (8, 8, 1)} | {p.dataset: p.image_shape for p in PUBLISHED}

_DIGITS = ("C(3,8,r);M(2);DR(0.25);F();D(32,r);DR(0.25);D(10,sm);", "C(3,8,r)x2;M(2);C(3,16,r)x2;M(2);F();D(10,sm);")
"""Not published: the same style for 8x8 images."""

_CHOSEN = {"olivetti": (4, 10), "mnist": (4, 8), "cifar10": (3, 9)}
"""Numbers of the published structures: one convolution, and several; mnist 8 pools a side of 7, which drops a row."""

PUBLISHED_MODELS = "published"
"""The name of all published structures together."""

BIAS = 0.1
"""Biases are uniform in (-BIAS, BIAS): with the customary zeros, a forgotten bias would go unseen."""

_TIMEOUT_S = 300.0


class ModelError(RuntimeError):
    """A reference model cannot be read, built or run; the message says why."""


@dataclass(frozen=True, slots=True)
class ReferenceModel:
    """A network for the images of a data set; ``name`` is DATASET:NUMBER, or DATASET:STRUCTURE if not in the list."""

    name: str
    dataset: str
    structure: Structure
    image_shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class LayerTrace:
    """What Keras computed at one layer: shapes and meanings as in the contract of an implementation.

    ``out`` is the output of the layer's problem: after relu, before any other activation. ``dy`` is the gradient at the
    pre-activation. Pooling has neither weights nor their gradients.
    """

    name: str
    case: Case
    x: Array
    out: Array
    dy: Array
    dx: Array
    w: Array | None = None
    b: Array | None = None
    dw: Array | None = None
    db: Array | None = None

    @property
    def y(self) -> Array:
        """``out``, under the name that the input gradient of pooling has for it."""
        return self.out


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A reference model's run on a batch: images (N, H, W, C), integer labels (N,), and the layers with a problem."""

    structure: Structure
    images: Array
    labels: Array
    layers: tuple[LayerTrace, ...]
    loss: float
    """Mean categorical cross-entropy of the softmax of the logits."""
    backend: str
    """Names and versions of what computed it."""

    @property
    def logits(self) -> Array:
        """(N, classes), before softmax."""
        return self.layers[-1].out


def reference_models(dataset: str) -> tuple[ReferenceModel, ...]:
    """A small and a deeper model for a data set. Raises ModelError for a data set without any."""
    if dataset == "digits":
        return tuple(_model(dataset, str(n), parse(text)) for n, text in enumerate(_DIGITS, start=1))
    if dataset not in _CHOSEN:
        raise ModelError(f"no reference model for {dataset!r}; there are some for {', '.join(CLASSES)}")
    return tuple(_published(dataset, number) for number in _CHOSEN[dataset])


def parse_model(text: str) -> tuple[ReferenceModel, ...]:
    """Read DATASET (all its reference models), DATASET:NUMBER (as published), DATASET:STRUCTURE, or PUBLISHED_MODELS.

    Raises ModelError for a data set, number or structure that does not exist or does not fit the images.
    """
    if text == PUBLISHED_MODELS:
        return tuple(_published(p.dataset, p.number) for p in PUBLISHED)
    dataset, _, which = text.partition(":")
    listed = reference_models(dataset)
    if not which:
        return listed
    if not which.isdigit():
        try:
            return (_model(dataset, which, parse(which)),)
        except SpecError as error:
            raise ModelError(str(error)) from error
    if dataset == "digits":
        found = tuple(model for model in listed if model.name == text)
    else:
        found = tuple(
            _published(dataset, p.number) for p in PUBLISHED if (p.dataset, str(p.number)) == (dataset, which)
        )
    if not found:
        raise ModelError(f"{dataset} has no model number {which}")
    return found


def _published(dataset: str, number: int) -> ReferenceModel:
    (structure,) = (p.structure for p in PUBLISHED if (p.dataset, p.number) == (dataset, number))
    return _model(dataset, str(number), structure)


def _model(dataset: str, which: str, structure: Structure) -> ReferenceModel:
    image_shape = _IMAGES[dataset]
    _require_classifier(structure, image_shape, CLASSES[dataset])
    return ReferenceModel(f"{dataset}:{which}", dataset, structure, image_shape)


def _require_classifier(structure: Structure, image_shape: Shape, classes: int) -> None:
    """Relu or nothing inside, softmax at the end and only there: then logits and gradients at them are defined."""
    *inner, last = structure.layers
    if not isinstance(last, Dense) or last.activation != "softmax" or last.units < classes:
        raise ModelError(f"a reference model must end with D({classes},sm), or more units, not with {last}")
    for layer in inner:
        if isinstance(layer, Conv | Dense) and layer.activation not in ("relu", "linear"):
            raise ModelError(f"a reference model has relu or no activation before its last layer, not {layer}")
    steps(structure, image_shape)


def trace(structure: Structure, x: Array, y: Array, seed: int, threads: int, folder: Path) -> Trace:
    """Run the reference model in a process of its own on images x (N, H, W, C) with integer labels y (N,).

    Files are written to and removed from ``folder``. Raises ModelError with the other process' last words, and
    SpecError for a structure that does not fit the images.
    """
    _require_classifier(structure, x.shape[1:], int(y.max()) + 1)
    if BatchNorm() in structure.layers:
        raise ModelError(f"BN() is no problem of the registry: check {structure} with --training")
    data, out = folder / "keras_model_data.npz", folder / "keras_model_trace.npz"
    command = [sys.executable, "-m", "bench.keras_model", "--structure", str(structure), "--seed", str(seed)]
    command += ["--threads", str(threads), "--data", str(data), "--out", str(out)]
    try:
        np.savez(data, x=np.asarray(x, np.float32), y=y)
        ended = subprocess.run(
            command, env=environment(threads), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if ended.returncode:
            raise ModelError(f"Keras could not run {structure}:\n{ended.stderr[-2000:].strip()}")
        return _read(structure, np.asarray(x, np.float32), y, out)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"Keras did not finish {structure} in {_TIMEOUT_S:g} s") from error
    finally:
        data.unlink(missing_ok=True)
        out.unlink(missing_ok=True)


def environment(threads: int) -> dict[str, str]:
    """The variables of a process that runs Keras.

    No GPU: the witness must neither take the device's memory nor compute in TF32.
    """
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def _read(structure: Structure, images: Array, labels: Array, path: Path) -> Trace:
    layers = []
    x = images
    with np.load(path, allow_pickle=False) as stored:
        for step in steps(structure, images.shape[1:]):
            x = x.reshape(len(images), *step.input_shape)
            case = step.case(len(images))
            if case is not None:
                prefix = f"{step.name}."
                arrays = {key.removeprefix(prefix): stored[key] for key in stored if key.startswith(prefix)}
                layers.append(LayerTrace(step.name, case, x, **arrays))
                x = layers[-1].out
        return Trace(structure, images, labels, tuple(layers), float(stored["loss"]), str(stored["backend"]))


def initial_weights(chain: Sequence[Step], seed: int) -> dict[str, tuple[Array, Array]]:
    """(w, b) by layer name: weights as a network of ours starts with, and small biases."""
    rng = np.random.default_rng(seed)
    weights = {}
    for step in chain:
        if isinstance(step.layer, Conv | Dense):
            w = default_for(step.layer.activation).draw(_weight_shape(step), rng)
            weights[step.name] = w, rng.uniform(-BIAS, BIAS, w.shape[-1:]).astype(np.float32)
    return weights


def _weight_shape(step: Step) -> Shape:
    case = step.case(batch=1)
    if case is None or case.spec.w_shape is None:
        raise ModelError(f"layer {step.name}, {step.layer}, has no weights")
    return case.spec.w_shape


def record(structure: Structure, images: Array, labels: Array, seed: int, threads: int) -> dict[str, Array]:
    """Build the Keras model, run it, differentiate its loss; arrays by "layer.field", "loss" and "backend".

    Raises ModelError for a backend that cannot differentiate with respect to recorded tensors.
    """
    keras: Any = importlib.import_module("keras")
    differentiate, versions = start_backend(keras, threads)
    chain = steps(structure, images.shape[1:])
    weights = initial_weights(chain, seed)
    model = build(keras, chain, weights)

    def run(x: Any) -> tuple[Any, dict[str, Any]]:
        outputs = model([x], training=False)
        logits = outputs[chain[-1].name]
        target = keras.ops.one_hot(labels, logits.shape[-1])
        return keras.losses.CategoricalCrossentropy(from_logits=True)(target, logits), outputs

    parameters = {f"{name}.{v.name}": v.value for name in weights for v in model.get_layer(name).weights}
    loss, tensors, gradients = differentiate(run, images, parameters)
    arrays = {"loss": _array(keras, loss), "backend": np.array(versions)}
    source = "images"
    for step in chain:
        result = output_name(step)
        if step.case(len(images)) is not None:
            found = {"out": tensors[result], "dy": gradients[step.name], "dx": gradients[source]}
            if step.name in weights:
                found |= {"w": parameters[f"{step.name}.kernel"], "b": parameters[f"{step.name}.bias"]}
                found |= {"dw": gradients[f"{step.name}.kernel"], "db": gradients[f"{step.name}.bias"]}
            arrays |= {f"{step.name}.{field}": _array(keras, value) for field, value in found.items()}
        source = result
    return arrays


def _array(keras: Any, tensor: Any) -> Array:
    array: Array = keras.ops.convert_to_numpy(tensor)
    return array


def output_name(step: Step) -> str:
    """The name, among the model's outputs, of what a layer hands on: relu is a layer of its own."""
    return f"{step.name}_relu" if getattr(step.layer, "activation", None) == "relu" else step.name


def build(
    keras: Any, chain: Sequence[Step], weights: Mapping[str, tuple[Array, ...]], *, masks_given: bool = False
) -> Any:
    """The model, which gives the output of every layer by name, the last one without its softmax.

    It takes a list: the images, and if ``masks_given`` one array for every dropout layer, which then multiplies its
    input by that. Relu is a layer of its own, so that the gradient at the pre-activation is the gradient at a tensor
    of the model.
    """
    inputs = [keras.Input(chain[0].input_shape)]
    tensor = inputs[0]
    outputs = {}
    for step in chain:
        if masks_given and isinstance(step.layer, Dropout):
            inputs.append(keras.Input(step.input_shape))
            tensor = keras.layers.Multiply(name=step.name)([tensor, inputs[-1]])
        else:
            tensor = keras_layer(keras, step, "linear")(tensor)
        outputs[step.name] = tensor
        if output_name(step) != step.name:
            outputs[output_name(step)] = tensor = keras.layers.Activation("relu", name=output_name(step))(tensor)
    model = keras.Model(inputs, outputs)
    for name, arrays in weights.items():
        model.get_layer(name).set_weights(arrays)
    return model


Run: TypeAlias = Callable[[Any], tuple[Any, dict[str, Any]]]
"""images -> (loss, output by layer name)."""

Differentiate: TypeAlias = Callable[[Run, Array, Mapping[str, Any]], tuple[Any, Any, Any]]
"""(run, images, parameters) -> (loss, outputs, the loss' gradients at the images, the outputs and the parameters)."""


def start_backend(keras: Any, threads: int) -> tuple[Differentiate, str]:
    """Set the backend's threads; how it differentiates, and the names and versions of what computes.

    Raises ModelError for a backend that cannot differentiate with respect to recorded tensors.
    """
    backend = keras.backend.backend()
    if backend not in _BACKENDS:
        raise ModelError(f"Keras' backend {backend} is not supported; set KERAS_BACKEND to {' or '.join(_BACKENDS)}")
    set_threads, differentiate = _BACKENDS[backend]
    set_threads(threads)
    return differentiate, f"{backend} {importlib.import_module(backend).__version__}, keras {keras.__version__}"


def _differentiate_tensorflow(run: Run, images: Array, parameters: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """(loss, outputs, the loss' gradients at the images, the outputs and the parameters)."""
    tf: Any = importlib.import_module("tensorflow")
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss, outputs = run(x)
    return loss, outputs, tape.gradient(loss, {"images": x, **outputs, **parameters})


def _differentiate_torch(run: Run, images: Array, parameters: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """(loss, outputs, the loss' gradients at the images, the outputs and the parameters)."""
    torch: Any = importlib.import_module("torch")
    x = torch.tensor(images, requires_grad=True)
    loss, outputs = run(x)
    sources = {"images": x, **outputs, **parameters}
    return loss, outputs, dict(zip(sources, torch.autograd.grad(loss, list(sources.values())), strict=True))


def _set_threads_tensorflow(threads: int) -> None:
    config: Any = importlib.import_module("tensorflow").config.threading
    config.set_intra_op_parallelism_threads(threads)
    config.set_inter_op_parallelism_threads(threads)


def _set_threads_torch(threads: int) -> None:
    importlib.import_module("torch").set_num_threads(threads)


_BACKENDS: Mapping[str, tuple[Callable[[int], None], Differentiate]] = {
    "tensorflow": (_set_threads_tensorflow, _differentiate_tensorflow),
    "torch": (_set_threads_torch, _differentiate_torch),
}
"""By module: how a backend sets its threads, and how it differentiates."""


def main() -> None:
    """The process that ``trace`` starts."""
    parser = argparse.ArgumentParser(description="Run a reference model in Keras and write what it computed.")
    parser.add_argument("--structure", required=True, type=parse)
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    with np.load(options.data, allow_pickle=False) as data:
        arrays = record(options.structure, data["x"], data["y"], options.seed, options.threads)
    np.savez(options.out, **arrays)  # type: ignore[arg-type]  # the stub takes any keyword for allow_pickle


if __name__ == "__main__":
    main()
