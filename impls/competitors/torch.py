"""PyTorch, eager: its own kernels on channels_last views of our arrays.

Images and dense arrays are views: addresses fixed, contents free. Two things are copies, made when a call is bound, as
a PyTorch program has them before the call: convolution weights in PyTorch's channels_last layout, and what the forward
pass of max pooling stores for its gradient (indices). Each call allocates its results. Nothing asks for a gradient,
so no graph is recorded; gradients are the operators that autograd would run.

A convolution whose padding differs between opposite sides works on a padded copy of x, made in the call; so does max
pooling where PyTorch's own padding cannot express the windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from impls.competitors._library import LibraryPlan, Run, missing, quiet_import
from impls.contract import DIRECT, FLOAT32, FLOAT64, GEMM, Implementation
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ConvSpec, DenseSpec, Pair, PoolSpec, Sides

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY = "torch"
NO_BORDER: Sides = ((0, 0), (0, 0))
WEIGHTS_OURS = (2, 3, 1, 0)
"""(F, C / groups, KH, KW) seen as (KH, KW, C / groups, F)."""
IMAGES_OURS = (0, 2, 3, 1)
"""(N, C, H, W) seen as (N, H, W, C)."""


def set_threads(count: int) -> None:
    """Let PyTorch compute with ``count`` threads."""
    quiet_import(LIBRARY).set_num_threads(count)


def threads() -> dict[str, int]:
    """The number of threads in force."""
    return {"torch": quiet_import(LIBRARY).get_num_threads()}


class TorchPlan(LibraryPlan):
    """Imports PyTorch when it is made."""

    def prepare(self):
        self.torch = quiet_import(LIBRARY)
        self.aten = self.torch.ops.aten

    def view(self, array: np.ndarray) -> Tensor:
        """The array itself as a tensor; images (N, H, W, C) are seen as (N, C, H, W)."""
        tensor = self.torch.from_numpy(array)
        return tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor

    def padded(self, x: Tensor, border: Sides, fill: float = 0.0) -> Tensor:
        """x with rows and columns of ``fill`` around it, taken away where negative; x itself without a border."""
        if border == NO_BORDER:
            return x
        (top, bottom), (left, right) = border
        return self.torch.nn.functional.pad(x, (left, right, top, bottom), value=fill)

    def get(self, direction, result, out):
        """Copy one result; images and weights come channels first and are transposed here, outside the clock."""
        if result.dim() == 4:
            result = result.permute(WEIGHTS_OURS if direction == GRAD_WEIGHTS else IMAGES_OURS)
        np.copyto(out, result.numpy())


class Conv2D(TorchPlan):
    """torch.conv2d, and aten.convolution_backward for one gradient at a time."""

    spec: ConvSpec

    def prepare(self):
        super().prepare()
        (top, bottom), (left, right) = self.spec.pads
        even = top == bottom and left == right
        self.padding = (top, left) if even else (0, 0)
        self.border = NO_BORDER if even else self.spec.pads

    def bound(self, direction: str, inputs: Mapping[str, Any]) -> Run:
        spec = self.spec
        views = {name: self.view(array) for name, array in inputs.items() if array is not None and name != "w"}
        w = self._weights(inputs["w"] if "w" in inputs else np.empty(spec.w_shape, spec.dtype))
        if direction == FORWARD:
            return partial(self._forward, views["x"], w, views.get("b"))
        if direction == GRAD_WEIGHTS:
            return partial(self._grad_weights, views["x"], views["dy"], w)
        x_like = self.padded(self.view(np.empty(spec.x_shape, spec.dtype)), self.border)
        return partial(self._grad_input, views["dy"], w, x_like)

    def _weights(self, w: np.ndarray) -> Tensor:
        """A copy (F, C / groups, KH, KW) in the layout that PyTorch keeps beside channels_last images."""
        weights = self.torch.from_numpy(w).permute(3, 2, 0, 1)
        return weights.clone(memory_format=self.torch.channels_last)

    def _forward(self, x, w, b):
        spec, x = self.spec, self.padded(x, self.border)
        y = self.torch.conv2d(x, w, b, spec.stride, self.padding, spec.dilation, spec.groups)
        return (y.relu_() if spec.activation == "relu" else y,)

    def _grad_weights(self, x, dy, w_like):
        _, *gradients = self._backward(dy, self.padded(x, self.border), w_like, (False, True, self.spec.bias))
        return gradients[: 1 + self.spec.bias]

    def _grad_input(self, dy, w, x_like):
        dx, _, _ = self._backward(dy, x_like, w, (True, False, False))
        return (self.padded(dx, _negative(self.border)),)

    def _backward(self, dy, x, w, wanted: tuple[bool, bool, bool]) -> tuple[Tensor | None, ...]:
        """The wanted ones of (dx, dw, db); of x or w whose own gradient is asked for, only the shape is read."""
        spec, biases = self.spec, [self.spec.filters] if wanted[2] else None
        window = (spec.stride, self.padding, spec.dilation, False, (0, 0), spec.groups)
        return self.aten.convolution_backward(dy, x, w, biases, *window, wanted)


class Pool(TorchPlan):
    """What both poolings share: how PyTorch is to be asked for the windows of a spec."""

    spec: PoolSpec

    def prepare(self):
        super().prepare()
        window = _window(self.spec)
        self.padding, self.ceil = window or ((0, 0), False)
        self.border = NO_BORDER if window else self.spec.pads

    def bound(self, direction: str, inputs: Mapping[str, Any]) -> Run:
        x = self.view(inputs["x"])
        return partial(self._forward, x) if direction == FORWARD else self._gradient(x, self.view(inputs["dy"]))

    def _forward(self, x):
        """(y,)."""
        raise NotImplementedError

    def _gradient(self, x: Tensor, dy: Tensor) -> Run:
        """What computes (dx,), with all that the forward pass would have stored."""
        raise NotImplementedError


class MaxPool2D(Pool):
    """torch.max_pool2d; its gradient reads the indices that the forward pass stored, before the clock."""

    def _forward(self, x):
        return (self.torch.max_pool2d(self._bordered(x), *self._arguments()),)

    def _gradient(self, x, dy) -> Run:
        x = self._bordered(x)
        _, indices = self.aten.max_pool2d_with_indices(x, *self._arguments())
        return partial(self._grad_input, x, dy, indices)

    def _grad_input(self, x, dy, indices):
        dx = self.aten.max_pool2d_with_indices_backward(dy, x, *self._arguments(), indices)
        return (self.padded(dx, _negative(self.border)),)

    def _bordered(self, x: Tensor) -> Tensor:
        return self.padded(x, self.border, fill=-np.inf)

    def _arguments(self):
        spec, no_dilation = self.spec, (1, 1)
        return spec.pool, spec.step, self.padding, no_dilation, self.ceil


class AvgPool2D(Pool):
    """torch.avg_pool2d dividing by the real pixels, and its backward operator."""

    def _forward(self, x):
        return (self.aten.avg_pool2d(x, *self._arguments()),)

    def _gradient(self, x, dy) -> Run:
        return partial(self._grad_input, x, dy)

    def _grad_input(self, x, dy):
        return (self.aten.avg_pool2d_backward(dy, x, *self._arguments()),)

    def _arguments(self):
        spec, count_padding, divisor = self.spec, False, None
        return spec.pool, spec.step, self.padding, self.ceil, count_padding, divisor


class Dense(TorchPlan):
    """One matrix product per direction."""

    spec: DenseSpec

    def bound(self, direction: str, inputs: Mapping[str, Any]) -> Run:
        compute = {FORWARD: self._forward, GRAD_WEIGHTS: self._grad_weights, GRAD_INPUT: self._grad_input}[direction]
        return partial(compute, *(self.view(array) for array in inputs.values() if array is not None))

    def _forward(self, x, w, b=None):
        y = self.torch.mm(x, w) if b is None else self.torch.addmm(b, x, w)
        return (y.relu_() if self.spec.activation == "relu" else y,)

    def _grad_weights(self, x, dy):
        dw = x.t().mm(dy)
        return (dw, dy.sum(0)) if self.spec.bias else (dw,)

    def _grad_input(self, dy, w):
        return (dy.mm(w.t()),)


def _negative(border: Sides) -> Sides:
    (top, bottom), (left, right) = border
    return (-top, -bottom), (-left, -right)


def _window(spec: PoolSpec) -> tuple[Pair, bool] | None:
    """PyTorch's (padding, ceil_mode) that gives exactly these windows, or None.

    PyTorch pads opposite sides equally, by half a window at most, and with ceil_mode lets the last window stand out
    over the far side. Padding is never a maximum and never counted, so only where windows start and how many there are
    matters.
    """
    (top, _), (left, _) = spec.pads
    if top > spec.pool[0] // 2 or left > spec.pool[1] // 2:
        return None
    axes = tuple(zip((spec.height, spec.width), (top, left), spec.pool, spec.step, spec.y_shape[1:3], strict=True))
    for ceil in (False, True):
        if all(_outputs(side, before, pool, step, ceil) == out for side, before, pool, step, out in axes):
            return (top, left), ceil
    return None


def _outputs(side: int, before: int, pool: int, step: int, ceil: bool) -> int:
    """How many windows PyTorch places along an axis padded by ``before`` at either end."""
    free = side + 2 * before - pool
    count = (-(-free // step) if ceil else free // step) + 1
    stands_in_far_padding = (count - 1) * step >= side + before
    return count - 1 if ceil and stands_in_far_padding else count


def _avgpool_why_not(spec: PoolSpec, direction: str) -> str | None:
    if _window(spec) is None:
        return f"PyTorch's average pooling cannot pad by {spec.pads}: opposite sides equally, half a window at most"
    return None


PLANS = {"conv2d": Conv2D, "maxpool2d": MaxPool2D, "avgpool2d": AvgPool2D, "dense": Dense}
FIGURES = dict.fromkeys(PLANS, ("",))


def _arithmetic(spec, direction: str) -> str:
    return FLOAT64 if spec.dtype == "float64" else FLOAT32


def implementation(op: str, suffix: str) -> Implementation:
    """The record of an operation. PyTorch chooses its algorithm: direct (or gemm, for dense) is declared."""
    return Implementation(
        PLANS[op],
        algorithm=GEMM if op == "dense" else DIRECT,
        arithmetic=_arithmetic,
        why_not=_avgpool_why_not if op == "avgpool2d" else lambda spec, direction: None,
        requires=partial(missing, LIBRARY),
        competitor=True,
        repeatable=False,
        note="PyTorch's own kernels, eager, on resident channels_last tensors; each call allocates its results",
    )
