"""Compile for Keras' TensorFlow backend.

* Without XLA: Keras leaves it off on machines that have only CPUs, and convolutions are oneDNN's then.
* A function of no arguments over variables, called as a concrete function: checking arguments in Python costs 20 to 70
  microseconds a call. Variables, since TensorFlow turns small captured constants into part of the graph and folds them.
* TensorFlow drops the forward pass from the gradients of convolution, dense and average pooling. Max pooling's gradient
  contains it: oneDNN's kernel needs what the forward pass leaves behind, and TensorFlow's other kernel, which takes a
  stored y, is several times slower than both together.

A call on the CPU has finished when it returns.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from impls.competitors._library import quiet_import


@cache
def start() -> Any:
    """TensorFlow, imported with its chatter switched off: what is an error comes as an exception, too."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf = quiet_import("tensorflow")
    tf.get_logger().setLevel("ERROR")
    return tf


def set_threads(count: int) -> None:
    """Threads inside an operation, and operations at a time. Raises RuntimeError once TensorFlow has computed."""
    config = start().config.threading
    config.set_intra_op_parallelism_threads(count)
    config.set_inter_op_parallelism_threads(count)


def threads() -> dict[str, int]:
    """What is in force; 0 is TensorFlow's default, one per core."""
    config = start().config.threading
    return {
        "tensorflow intra": config.get_intra_op_parallelism_threads(),
        "tensorflow inter": config.get_inter_op_parallelism_threads(),
    }


def tensor(array: np.ndarray) -> Any:
    """A variable with a copy of the contents."""
    return start().Variable(array)


def forward(function: Callable[..., Any], operands: list[Any]) -> Callable[[], Any]:
    """A call that computes ``function(*operands)``."""
    return _compiled(lambda: (function(*operands),))


def gradient(function: Callable[..., Any], operands: list[Any], wanted: slice, dy: Any) -> Callable[[], Any]:
    """A call that computes the gradient of <function(*operands), dy> with respect to the wanted operands."""

    def step() -> Any:
        with start().GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(operands[wanted])
            y = function(*operands)
        return tuple(tape.gradient(y, operands[wanted], output_gradients=dy))

    return _compiled(step)


def _compiled(step: Callable[[], Any]) -> Callable[[], Any]:
    concrete: Callable[[], Any] = start().function(step, autograph=False).get_concrete_function()
    return concrete
