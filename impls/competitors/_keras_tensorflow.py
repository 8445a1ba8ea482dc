"""Compile for Keras' TensorFlow backend.

* Without XLA on the CPU, and with it on a GPU, as Keras compiles: it leaves XLA off where there are only CPUs, and
  convolutions are oneDNN's then.
* A function of no arguments over variables, called as a concrete function: checking arguments in Python costs 20 to 70
  microseconds a call. Variables, since TensorFlow turns small captured constants into part of the graph and folds them.
* TensorFlow drops the forward pass from the gradients of convolution, dense and average pooling. Max pooling's gradient
  contains it: oneDNN's kernel needs what the forward pass leaves behind, and TensorFlow's other kernel, which takes a
  stored y, is several times slower than both together.

A call on the CPU has finished when it returns; on a GPU its kernels are enqueued, and ``wait`` waits for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from impls.competitors._library import quiet_import
from impls.contract import TF32, Unavailable


@cache
def start() -> None:
    """Have TensorFlow compute on the CPU; where it has started with a GPU, its tensors for the CPU stay there."""
    with suppress(RuntimeError):
        _tf().config.set_visible_devices([], "GPU")  # else it takes all of the memory of every GPU


@cache
def start_on_gpu() -> None:
    """Have TensorFlow compute on the first GPU, taking memory as it needs it. Raises Unavailable where it cannot."""
    tf = _tf()
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        reason = "sees no GPU it can use" if tf.test.is_built_with_cuda() else "was built without CUDA"
        raise Unavailable(f"TensorFlow {tf.__version__} {reason}")
    try:
        tf.config.set_visible_devices(gpus[:1], "GPU")
        tf.config.experimental.set_memory_growth(gpus[0], True)
    except RuntimeError as error:
        raise Unavailable(f"TensorFlow has started otherwise, and needs a process of its own: {error}") from error


def set_precision(arithmetic: str) -> None:
    """Compute convolutions and products on GPUs in this arithmetic, in the whole process.

    Raises RuntimeError where TensorFlow does not keep to it.
    """
    config = _tf().config.experimental
    config.enable_tensor_float_32_execution(arithmetic == TF32)
    if config.tensor_float_32_execution_enabled() != (arithmetic == TF32):
        raise RuntimeError(f"TensorFlow does not compute in {arithmetic}")


def trim() -> None:
    """Nothing: what it keeps of the GPU's memory for later it gives back when its process ends."""


def wait() -> None:
    """Return when all that TensorFlow has enqueued on its devices is done."""
    _tf().test.experimental.sync_devices()


def set_threads(count: int) -> None:
    """Threads inside an operation, and operations at a time. Raises RuntimeError once TensorFlow has computed."""
    config = _tf().config.threading
    config.set_intra_op_parallelism_threads(count)
    config.set_inter_op_parallelism_threads(count)


def threads() -> dict[str, int]:
    """What is in force; 0 is TensorFlow's default, one per core."""
    config = _tf().config.threading
    return {
        "tensorflow intra": config.get_intra_op_parallelism_threads(),
        "tensorflow inter": config.get_inter_op_parallelism_threads(),
    }


def tensor(array: np.ndarray, place: str) -> Any:
    """A variable with a copy of the contents; ``place`` is "cpu:0" or "gpu:0"."""
    with _tf().device(place):
        return _tf().Variable(array)


def forward(function: Callable[..., Any], operands: list[Any], *, on_gpu: bool) -> Callable[[], Any]:
    """A call that computes ``function(*operands)``."""
    return _compiled(on_gpu, lambda: (function(*operands),))


def gradient(
    function: Callable[..., Any], operands: list[Any], wanted: slice, dy: Any, *, on_gpu: bool
) -> Callable[[], Any]:
    """A call that computes the gradient of <function(*operands), dy> with respect to the wanted operands."""

    def step() -> Any:
        with _tf().GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(operands[wanted])
            y = function(*operands)
        return tuple(tape.gradient(y, operands[wanted], output_gradients=dy))

    return _compiled(on_gpu, step)


def _compiled(on_gpu: bool, step: Callable[[], Any]) -> Callable[[], Any]:
    function = _tf().function(step, autograph=False, jit_compile=on_gpu)
    concrete: Callable[[], Any] = function.get_concrete_function()
    return concrete


@cache
def _tf() -> Any:
    """TensorFlow, imported with its chatter switched off: what is an error comes as an exception, too."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf = quiet_import("tensorflow")
    tf.get_logger().setLevel("ERROR")
    return tf
