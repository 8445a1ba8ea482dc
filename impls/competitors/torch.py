"""PyTorch, eager: its own kernels on channels_last tensors.

``torch``
    On the CPU. Images and dense arrays are views of ours: addresses fixed, contents free. Two things are copies, made
    when a call is bound, as a PyTorch program has them before the call: convolution weights in PyTorch's channels_last
    layout, and what the forward pass of max pooling stores for its gradient (indices).
``torch_reuse``
    The same, and the C library keeps what is freed: results lie in pages that are there already.
``torch_cuda``, ``torch_cuda_tf32``
    The same on a GPU, in float32 or TF32, set for convolutions and for products of matrices; cuDNN tries its algorithms
    and keeps the fastest (cudnn.benchmark). All inputs are copies. A call enqueues and does not wait.
``torch_cuda_graph``
    The launches of a ``torch_cuda`` call, captured in a CUDA graph when it is bound and replayed by each call.

Each call but a graph's allocates its results. Nothing asks for a gradient, so no autograd graph is recorded; gradients
are the operators that autograd would run.

A convolution whose padding differs between opposite sides works on a padded copy of x, made in the call; so does max
pooling where PyTorch's own padding cannot express the windows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

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
from impls.contract import DIRECT, FLOAT32, GEMM, TF32, Call, Implementation, Unavailable
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ConvSpec, DenseSpec, Pair, PoolSpec, Sides

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY = "torch"
CUDA = "cuda"
"""PyTorch's word for the GPU in use."""
PRECISIONS = {FLOAT32: "ieee", TF32: "tf32"}
"""PyTorch's words for the arithmetic of float32 tensors."""
WARM_UPS = 3
"""Calls before a capture: cuDNN tries its algorithms and libraries take their workspaces, which none may do in one."""
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


def wait() -> None:
    """Return when all that PyTorch has enqueued on the GPU is done."""
    quiet_import(LIBRARY).cuda.synchronize()


def trim() -> None:
    """Give back the memory of the GPU that PyTorch keeps for later, where PyTorch is there at all."""
    if LIBRARY in sys.modules:
        quiet_import(LIBRARY).cuda.empty_cache()


def require_cuda() -> None:
    """Raises Unavailable with the reason where this PyTorch cannot compute on a GPU."""
    torch = quiet_import(LIBRARY)
    if torch.version.cuda is None:
        raise Unavailable(f"PyTorch {torch.__version__} was built without CUDA")
    if not hasattr(torch.backends.cudnn, "conv"):
        raise Unavailable(f"PyTorch {torch.__version__} cannot set the precision of convolutions: 2.9 can")
    with quiet():  # where it can use none it warns, too
        if not torch.cuda.is_available():
            raise Unavailable(f"PyTorch {torch.__version__} for CUDA {torch.version.cuda} sees no GPU it can use")


def set_precision(arithmetic: str) -> None:
    """Compute convolutions and products of float32 matrices on GPUs in this arithmetic, in the whole process.

    Raises RuntimeError where PyTorch does not keep to it.
    """
    backends, word = quiet_import(LIBRARY).backends, PRECISIONS[arithmetic]
    backends.cuda.matmul.fp32_precision = word
    backends.cudnn.conv.fp32_precision = word
    in_force = {backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision}
    if in_force != {word}:
        raise RuntimeError(f"PyTorch was asked for {word} and has {', '.join(sorted(in_force))}")


def captured(run: Run) -> Run:
    """The launches of a call as a CUDA graph, whose results stay where they are and are filled anew by each replay."""
    cuda = quiet_import(LIBRARY).cuda
    side = cuda.Stream()  # as PyTorch asks: what is captured has run on a stream of its own before
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        for _ in range(WARM_UPS):
            run()
    cuda.current_stream().wait_stream(side)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        results = tuple(run())

    def replay():
        graph.replay()
        return results

    return replay


class TorchPlan(LibraryPlan):
    """Imports PyTorch when it is made."""

    place: ClassVar[str] = "cpu"
    """PyTorch's word for where its tensors are."""
    as_on_gpu: ClassVar[bool] = False
    """Whether the arithmetic is set and cuDNN tries its algorithms: what a CPU has no use for."""
    is_captured: ClassVar[bool] = False

    set_threads = staticmethod(set_threads)
    threads = staticmethod(threads)

    def prepare(self):
        if self.reuses_memory:
            keep_memory()
        self.torch = quiet_import(LIBRARY)
        self.aten = self.torch.ops.aten
        if self.place == CUDA:
            require_cuda()

    def bind(self, direction: str, *arrays: Any) -> Call:
        """Make the inputs resident. On a GPU the arithmetic of the plan bound last holds for the whole process."""
        if self.as_on_gpu:
            set_precision(self.arithmetic)
            self.torch.backends.cudnn.benchmark = True
        call = super().bind(direction, *arrays)
        if self.is_captured:
            call.run = captured(call.run)
        return call

    def view(self, array: np.ndarray) -> Tensor:
        """The array as a tensor, on the CPU the array itself; images (N, H, W, C) are seen as (N, C, H, W)."""
        tensor = self.torch.from_numpy(array).to(self.place)
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
        np.copyto(out, result.cpu().numpy())


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
        weights = self.torch.from_numpy(w).to(self.place).permute(3, 2, 0, 1)
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


def _why_not(plan_type: type[TorchPlan], spec: Any, direction: str) -> str | None:
    """What PyTorch cannot express, or not in this arithmetic."""
    if issubclass(plan_type, AvgPool2D) and _window(spec) is None:
        return f"PyTorch's average pooling cannot pad by {spec.pads}: opposite sides equally, half a window at most"
    return why_not_tf32(plan_type, spec)


def _requires(plan_type: type[TorchPlan]) -> str | None:
    return missing(LIBRARY) or (missing_reuse() if plan_type.reuses_memory else None)


def _on_cuda(arithmetic: str, **more: Any) -> dict[str, Any]:
    """What a plan on CUDA has beyond one on the CPU."""
    return {
        "device": cuda_of(wait, arithmetic, on_default_stream=True, trim=trim),
        "place": CUDA,
        "arithmetic": arithmetic,
        "as_on_gpu": True,
        **more,
    }


FIGURE: dict[str, Mapping[str, Any]] = {
    "": {},
    "_reuse": REUSE,
    "_cuda": _on_cuda(FLOAT32),
    "_cuda_tf32": _on_cuda(TF32),
    "_cuda_graph": _on_cuda(FLOAT32, is_captured=True),
}
"""What makes each figure's plans of the plans above."""

PLANS: dict[tuple[str, str], type[TorchPlan]] = {
    (op, suffix): type(f"{base.__name__}{suffix}", (base,), dict(attributes))
    for op, base in {"conv2d": Conv2D, "maxpool2d": MaxPool2D, "avgpool2d": AvgPool2D, "dense": Dense}.items()
    for suffix, attributes in FIGURE.items()
}
FIGURES = {op: tuple(FIGURE) for op, _ in PLANS}


def implementation(op: str, suffix: str) -> Implementation:
    """The record of an operation's figure. PyTorch chooses its algorithm: direct (dense: gemm) is declared."""
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
        note=f"PyTorch's own kernels{_note(plan_type)}",
    )


def _note(plan_type: type[TorchPlan]) -> str:
    resident = "on resident channels_last tensors"
    if plan_type.place != CUDA:
        pages = ", in pages that the C library kept" if plan_type.reuses_memory else ""
        return f", eager, {resident}; each call allocates its results{pages}"
    how = "replayed as a CUDA graph" if plan_type.is_captured else "eager"
    chosen = f"{plan_type.arithmetic} set for convolutions and products, cudnn.benchmark"
    return f" on CUDA, {how}, {resident}, {chosen}; a call enqueues, no copies between host and device"
