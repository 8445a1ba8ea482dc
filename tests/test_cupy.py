"""The plans with CuPy compute what they should, on NumPy's arrays and a BLAS of a few lines: no GPU, no CuPy.

The stand-in for cuBLAS reads and writes memory by the addresses, orders, leading dimensions and steps that it is given,
as cuBLAS does, and cuts factors to 11 bits where a product asks for TF32.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import check, inputs, local
from bench.awkward import SHAPES
from impls import Case, cupy_setup, get, parse
from impls.contract import FLOAT32, TF32, Implementation, Plan
from impls.devices import CPU
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, directions_of

ROOT = Path(__file__).parents[1]
NAMES = {
    "conv2d": ("cupy_gemm", "cupy_gemm_tf32"),
    "dense": ("cupy_gemm", "cupy_gemm_tf32"),
    "maxpool2d": ("cupy",),
    "avgpool2d": ("cupy",),
}
ENTRIES = [(op, name) for op, names in NAMES.items() for name in names]
PROBLEMS = [
    pytest.param(op, name, direction, Case(op, parse(op, text)), id=f"{op}-{name}-{direction}-{shape}")
    for op, name in ENTRIES
    for direction in directions_of(op)
    for shape, text in SHAPES[op].items()
]
TINY_BLOCKS = (1, 200, 3000)
"""Bytes: one pixel, a few pixels or rows, a few samples."""


class Pointed(np.ndarray):
    """An array of NumPy that gives its address as CuPy's do."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class Blas:
    """What cuBLAS is asked for here, over host memory."""

    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 77
    CUBLAS_GEMM_DEFAULT = -1
    CUBLAS_DEFAULT_MATH, TF32_MATH = 0, 3

    def __init__(self):
        self.mode = self.TF32_MATH
        self.modes_during_products = set()

    def getMathMode(self, handle):
        return self.mode

    def setMathMode(self, handle, mode):
        self.mode = mode

    def gemmStridedBatchedEx(
        self, handle, ta, tb, m, n, k, alpha, a, atype, lda, sa, b, btype, ldb, sb, beta, c, ctype, ldc, sc, count, *how
    ):
        """C = alpha op(A) op(B) + beta C for column-major matrices; ``how``: arithmetic, algorithm."""
        self.modes_during_products.add(self.mode)
        left, right = matrices(a, ta, m, k, lda, sa, count), matrices(b, tb, k, n, ldb, sb, count)
        if how[0] == self.CUBLAS_COMPUTE_32F_FAST_TF32:
            left, right = cut(left), cut(right)
        out = matrices(c, 0, m, n, ldc, sc, count)
        one, factor = (ctypes.c_float.from_address(address).value for address in (alpha, beta))
        product = one * (left @ right)
        out[...] = product + factor * out if factor else product


def matrices(address, transposed, rows, columns, leading, step, count):
    """op(X) (count, rows, columns) of column-major matrices: the memory that BLAS touches, and no more."""
    height, width = (columns, rows) if transposed else (rows, columns)
    assert leading >= max(1, height)
    size = (count - 1) * step + (width - 1) * leading + height
    memory = np.ctypeslib.as_array((ctypes.c_float * size).from_address(address))
    found = np.lib.stride_tricks.as_strided(memory, (count, height, width), (4 * step, 4, 4 * leading))
    return found.transpose(0, 2, 1) if transposed else found


def cut(numbers):
    """float32 numbers without their last 13 bits."""
    return (np.ascontiguousarray(numbers).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.fixture
def blas(monkeypatch):
    """NumPy and the stand-in where plans load CuPy and cuBLAS."""
    modules = {
        "cupy": np,
        "cupy_backends.cuda.libs": SimpleNamespace(cublas=Blas()),
        "cupy.cuda.device": SimpleNamespace(get_cublas_handle=lambda: 1),
        "cupy.cuda.runtime": SimpleNamespace(CUDA_R_32F=0),
    }
    monkeypatch.setattr(cupy_setup, "load", modules.__getitem__)
    return modules["cupy_backends.cuda.libs"].cublas


def on_host(op: str, name: str) -> Implementation:
    """An entry whose arrays live in the host's memory."""
    implementation = get(op, name)
    members = {"device": CPU, "allocate": Plan.allocate, "seen": staticmethod(lambda array: array.view(Pointed))}
    plan_type = type("OnHost", (implementation.plan_type,), members)
    return replace(implementation, plan_type=plan_type, requires=lambda: None)


@pytest.mark.usefixtures("blas")
@pytest.mark.parametrize(("op", "name", "direction", "case"), PROBLEMS)
def test_every_value_is_within_its_bound_and_nothing_else_is_touched(op, name, direction, case):
    """Designed inputs; outputs start as NaN; inputs and the memory around all arrays stay as they are."""
    judgement = local.judge(on_host(op, name), case, direction, seed=1)
    assert judgement.is_right, f"{judgement.bounds:.3g} bounds: {judgement.where}"


@pytest.mark.usefixtures("blas")
@pytest.mark.parametrize("size", TINY_BLOCKS)
@pytest.mark.parametrize(("op", "name"), [e for e in ENTRIES if not e[1].endswith("tf32")])
def test_small_blocks_and_used_scratch_change_nothing(monkeypatch, op, name, size):
    """Whatever the scratch is cut to, and held before: the results stay within their bounds."""
    monkeypatch.setattr(cupy_setup, "BLOCK_BYTES", size)
    monkeypatch.setattr(cupy_setup, "ROWS_PER_SUM", 7)
    implementation = on_host(op, name)
    for text in SHAPES[op].values():
        case = Case(op, parse(op, text))
        for direction in directions_of(op):
            plan = implementation.plan(case.spec, (direction,))
            plan.workspace.fill(0xFF)  # NaN in every float
            arrays = inputs.make(case, direction, inputs.judged(case)[0], 2)
            truth = check.expected(case, direction, arrays)
            limits = check.bound(case, direction, arrays, truth, *declared(implementation, case, direction))
            for _ in range(2):
                outputs = local.compute(plan, direction, arrays)
                judgement = check.judge(case, direction, outputs, truth, limits)
                assert judgement.is_right, f"{case} {direction}: {judgement.bounds:.3g} bounds: {judgement.where}"


def declared(implementation, case, direction):
    """Algorithm and arithmetic."""
    return (
        implementation.algorithm_of(case.spec, direction),
        implementation.arithmetic_of(case.spec, direction),
    )


@pytest.mark.usefixtures("blas")
@pytest.mark.parametrize(("op", "text"), [("conv2d", "2x9x8x3,k3x3,f4"), ("dense", "17x65,u67")])
@pytest.mark.parametrize("direction", [FORWARD, GRAD_WEIGHTS, GRAD_INPUT])
def test_tf32_is_no_float32_and_float32_is_no_tf32(op, text, direction):
    """Cut factors break float32's bound; each entry asks cuBLAS for what it declares."""
    case = Case(op, parse(op, text))
    honest, cutting = on_host(op, "cupy_gemm"), on_host(op, "cupy_gemm_tf32")
    assert (honest.arithmetic, cutting.arithmetic) == (FLOAT32, TF32)
    assert local.judge(honest, case, direction).is_right
    assert local.judge(replace(cutting, arithmetic=FLOAT32), case, direction).bounds > 100


@pytest.mark.parametrize("name", ["cupy_gemm", "cupy_gemm_tf32"])
def test_products_never_depend_on_the_math_mode_and_leave_it_as_it_was(blas, name):
    """Another library may have switched TF32 on for the whole handle."""
    local.judge(on_host("dense", name), Case("dense", parse("dense", "3x4,u5")), FORWARD)
    assert blas.modes_during_products == {blas.CUBLAS_DEFAULT_MATH}
    assert blas.mode == blas.TF32_MATH


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("batch", [1, 2**14])
def test_scratch_is_bounded_whatever_the_batch(op, batch):
    """Twice BLOCK_BYTES, and what one call's constants take."""
    spec = {"dense": "64x64,u64", "conv2d": "64x16x16x16,k3x3,f16,p3:3:3:3,s2x2"}.get(op, "64x16x16x16,pool3x3,s1x1")
    record = get(op, NAMES[op][0])
    for direction in record.directions:
        spec_of_batch = replace(parse(op, spec), batch=batch)
        most = 4 * cupy_setup.BLOCK_BYTES + (1 << 20)
        assert record.plan_type.scratch_bytes(spec_of_batch, (direction,)) <= min(most, 4 * 2**20 * batch)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.empty((3, 4, 5), np.float32), (0, 5, 20)),
        (np.empty((3, 5, 4), np.float32).transpose(0, 2, 1), (1, 5 - 1, 20)),
        (np.empty((4, 3, 5), np.float32).transpose(1, 0, 2), (0, 15, 5)),
        (np.empty((1, 6, 1), np.float32), (0, 1, 6)),
        (np.empty((1, 1, 6), np.float32), (0, 6, 6)),
    ],
    ids=["rows", "columns", "groups between", "one column", "one row"],
)
def test_layout_is_what_blas_calls_order_leading_dimension_and_step(array, expected):
    assert cupy_setup.layout(array) == expected


def test_a_matrix_that_blas_cannot_read_is_refused():
    """Neither its rows nor its columns are contiguous."""
    with pytest.raises(ValueError, match="neither rows nor columns"):
        cupy_setup.layout(np.empty((2, 8, 8), np.float32)[:, ::2, ::2])


def test_nan_is_the_maximum_and_takes_the_gradient(blas):
    """The first NaN of a window, in row-major order."""
    spec = parse("maxpool2d", "1x2x2x1,pool2x2")
    plan = on_host("maxpool2d", "cupy").plan(spec)
    x = np.array([3, np.nan, np.nan, 7], np.float32).reshape(spec.x_shape)
    (y,) = local.compute(plan, FORWARD, (x,))
    assert np.isnan(y).all()
    (dx,) = local.compute(plan, GRAD_INPUT, (x, y, np.full(spec.y_shape, 5, np.float32)))
    assert dx.ravel().tolist() == [0, 5, 0, 0]


def test_a_call_computes_on_the_stream_of_the_launches(blas, monkeypatch):
    """CuPy's current stream is set for the call alone."""
    events = []

    @contextmanager
    def from_external(stream):
        events.append(f"on {stream}")
        yield
        events.append(f"off {stream}")

    fake = SimpleNamespace(cuda=SimpleNamespace(Stream=SimpleNamespace(from_external=from_external)))
    modules = cupy_setup.load
    monkeypatch.setattr(cupy_setup, "load", lambda name: fake if name == "cupy" else modules(name))
    monkeypatch.setattr(cupy_setup, "current_stream", lambda: "a stream")
    cupy_setup.CupyPlan.enqueuing(lambda: events.append("work"))()
    monkeypatch.setattr(cupy_setup, "current_stream", lambda: 0)
    cupy_setup.CupyPlan.enqueuing(lambda: events.append("more work"))()
    assert events == ["on a stream", "work", "off a stream", "more work"]


@pytest.mark.parametrize(("op", "name"), ENTRIES)
def test_another_dtype_is_refused_with_the_reason(op, name):
    record = get(op, name)
    spec = replace(parse(op, next(iter(SHAPES[op].values()))), dtype="float64")
    assert all("float64" in record.why_not(spec, direction) for direction in record.directions)


def test_a_matrix_too_large_for_cublas_is_refused_with_the_reason():
    record = get("dense", "cupy_gemm")
    assert "2147483647" in record.why_not(parse("dense", f"{2**31}x1,u1"), FORWARD)


def asked(code: str) -> subprocess.CompletedProcess:
    """A fresh interpreter that must give every entry's reason without a device."""
    ask = f"from impls import get; print(*(get(op, name).missing() for op, name in {ENTRIES}), sep='\\n')"
    program = f"import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''; {code}; {ask}"
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.splitlines()


HIDDEN = "import sys; sys.modules['cupy'] = None"
NO_DEVICE = (
    "import sys, types; sys.modules['cupy'] = types.SimpleNamespace(is_available=lambda: False); "
    "sys.modules['cupy_backends.cuda.libs'] = types.SimpleNamespace(cublas=None)"
)
BROKEN = (
    "import sys, types; "
    "sys.modules['cupy'] = types.SimpleNamespace(is_available=lambda: True, ones=lambda *a: 1 / 0); "
    "sys.modules['cupy_backends.cuda.libs'] = types.SimpleNamespace(cublas=None)"
)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (HIDDEN, "install the extra cuda12 or cuda13"),
        (NO_DEVICE, "CuPy sees no CUDA device or driver"),
        (BROKEN, "CuPy cannot use the CUDA device: ZeroDivisionError"),
    ],
    ids=["no CuPy", "no device", "a driver that fails"],
)
def test_what_is_missing_is_a_reason_and_no_exception(code, reason):
    """Each entry can be imported and asked."""
    answers = asked(code)
    assert len(answers) == len(ENTRIES)
    assert all(reason in answer for answer in answers)


def test_the_installed_cupy_is_whole_or_a_reason():
    """The real CuPy, where there is one: without a device it is a reason too."""
    pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    assert all("CuPy" in answer for answer in asked("pass"))
