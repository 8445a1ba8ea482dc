"""Run Keras' PyTorch backend, eager on CPU and GPU: Keras leaves torch.compile off unless it is asked for.

The forward pass of a gradient is run once, when the call is bound, and what it stored is kept: a call is the backward
pass alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from impls.competitors import torch as pytorch
from impls.competitors._library import quiet_import

set_threads = pytorch.set_threads
threads = pytorch.threads
set_precision = pytorch.set_precision
start_on_gpu = pytorch.require_cuda
wait = pytorch.wait
trim = pytorch.trim


def start() -> None:
    """Import PyTorch, which computes where its tensors are."""
    _torch()


def tensor(array: np.ndarray, place: str) -> Any:
    """A tensor with a copy of the contents; ``place`` is "cpu:0" or "gpu:0"."""
    return _torch().tensor(array, device=place.replace("gpu", "cuda"))


def forward(function: Callable[..., Any], operands: list[Any], *, on_gpu: bool) -> Callable[[], Any]:
    """A call that computes ``function(*operands)``; no operand asks for a gradient, so none is recorded."""
    return lambda: (function(*operands),)


def gradient(
    function: Callable[..., Any], operands: list[Any], wanted: slice, dy: Any, *, on_gpu: bool
) -> Callable[[], Any]:
    """A call that computes the gradient of <function(*operands), dy> with respect to the wanted operands."""
    moving = [operand.requires_grad_() for operand in operands[wanted]]
    y = function(*operands)
    return lambda: _torch().autograd.grad(y, moving, dy, retain_graph=True)


def _torch() -> Any:
    return quiet_import(pytorch.LIBRARY)
