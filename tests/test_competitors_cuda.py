"""Competitors on CUDA say why they cannot run, set what their names promise, and are compared on one device.

That their plans compute what the definition says is in test_competitors: on a GPU, or with the same plans on the CPU.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from bench.jobs import Selection
from bench.measure import Contender, Taken, _finished, _width
from bench.results import Row
from impls import OPS, parse_case, registry
from impls.competitors import _devices, _library, torch
from impls.contract import FLOAT32, FLOAT64, TF32, Unavailable
from impls.specs import FORWARD, DenseSpec

CUDA = [name for name in registry.rivals("dense") if "cuda" in name]
ENTRIES = [(op, name) for op in OPS for name in CUDA]


@pytest.fixture
def pytorch():
    """PyTorch, whose settings are as before afterwards."""
    if reason := _library.missing("torch"):
        pytest.skip(reason)
    library = _library.quiet_import("torch")
    matmul, conv = library.backends.cuda.matmul, library.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    yield library
    matmul.fp32_precision, conv.fp32_precision = before


@pytest.mark.parametrize(("op", "name"), ENTRIES)
def test_a_figure_on_cuda_declares_its_device_and_the_arithmetic_of_its_name(op, name):
    record = registry.get(op, name)
    spec = parse_case(
        {"conv2d": "conv2d:1x4x4x1,k3x3,f2", "dense": "dense:2x3,u2"}.get(op, f"{op}:1x4x4x1,pool2x2")
    ).spec
    assert str(record.device) == "cuda"
    assert record.arithmetic_of(spec, FORWARD) == (TF32 if name.endswith("_tf32") else FLOAT32)
    assert record.arithmetic_of(spec, FORWARD) in record.note
    assert not record.repeatable


def test_double_precision_is_computed_in_it_and_never_in_tf32(monkeypatch):
    monkeypatch.setattr(_library, "find_spec", lambda library: object())
    spec = DenseSpec(2, 3, 1, dtype="float64")
    assert registry.get("dense", "torch_cuda").arithmetic_of(spec, FORWARD) == FLOAT64
    assert registry.get("dense", "torch_cuda").why_not(spec, FORWARD) is None
    for name in ("torch_cuda_tf32", "keras_jax_cuda_tf32"):
        assert "TF32 is an arithmetic for float32" in registry.get("dense", name).why_not(spec, FORWARD)


def driver(code: int, major: int) -> SimpleNamespace:
    """A CUDA driver of a machine whose first GPU has this major compute capability."""

    def describe(found, attribute, device):
        assert attribute == 75
        found._obj.value = major
        return 0

    return SimpleNamespace(
        cuInit=lambda flags: code, cuDeviceGet=lambda device, index: 0, cuDeviceGetAttribute=describe
    )


@pytest.fixture
def asked(monkeypatch):
    """The driver is asked anew, whatever it said before; gives what to answer it with."""
    _devices._asked_of_driver.cache_clear()
    yield lambda code, major: monkeypatch.setattr(ctypes, "CDLL", lambda name: driver(code, major))
    _devices._asked_of_driver.cache_clear()


def test_a_machine_without_a_driver_says_so(monkeypatch, asked):
    monkeypatch.setattr(_devices, "DRIVER", "libnowhere.so.9")
    assert _devices.no_gpu() == _devices.no_tf32() == "no NVIDIA driver: libnowhere.so.9 cannot be loaded"


@pytest.mark.parametrize(
    ("code", "major", "without_gpu", "without_tf32"),
    [
        (0, 9, None, None),
        (0, 7, None, "TF32 needs compute capability 8.0; the GPU has 7.x"),
        (100, 9, "offers no GPU: cuInit gives error 100", "offers no GPU: cuInit gives error 100"),
    ],
)
def test_the_driver_tells_what_there_is(asked, code, major, without_gpu, without_tf32):
    asked(code, major)
    for found, wanted in ((_devices.no_gpu(), without_gpu), (_devices.no_tf32(), without_tf32)):
        assert found == wanted if wanted is None else wanted in found


@pytest.mark.parametrize(("op", "name"), ENTRIES)
def test_a_library_that_is_not_installed_is_the_first_reason(monkeypatch, op, name):
    monkeypatch.setattr(_library, "find_spec", lambda library: None)
    assert "is not installed" in registry.get(op, name).missing()


def test_keras_on_another_backend_in_this_process_is_a_reason(monkeypatch):
    monkeypatch.setattr(_library, "find_spec", lambda library: object())
    monkeypatch.setitem(sys.modules, "keras", SimpleNamespace(backend=SimpleNamespace(backend=lambda: "tensorflow")))
    reason = registry.get("dense", "keras_jax_cuda").missing()
    assert reason == "Keras runs on tensorflow in this process; jax needs one of its own"


@pytest.mark.parametrize("name", [name for name in CUDA if name.endswith("_cuda")])
def test_a_library_that_reaches_no_gpu_gives_its_own_reason_when_it_is_started(name):
    """In a process of its own, with a driver that promises one: what happens where a library lacks CUDA."""
    library = name.removesuffix("_cuda").removeprefix("keras_")
    if reason := _library.missing("keras") or _library.missing(library):
        pytest.skip(reason)
    if _devices.no_gpu() is None:
        pytest.skip("there is a GPU")
    code = (
        "from impls import Unavailable, registry\n"
        "from impls.competitors import _devices\n"
        "from impls.specs import DenseSpec\n"
        "_devices._asked_of_driver = lambda driver: 9\n"
        f"record = registry.get('dense', {name!r})\n"
        "assert record.missing() is None\n"
        "try: record.plan(DenseSpec(2, 3, 1))\n"
        "except Unavailable as reason: print(reason)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    words = {"torch": "built without CUDA", "tensorflow": "GPU", "jax": "reaches no CUDA device"}[library]
    assert words in said.stdout, said.stderr


@pytest.mark.parametrize(("name", "word"), [("torch_cuda", "ieee"), ("torch_cuda_tf32", "tf32")])
def test_pytorch_is_set_to_the_arithmetic_of_the_figure_that_was_bound_last(pytorch, name, word):
    plan_type = registry.get("dense", name).plan_type
    on_cpu = type("OnCpu", (plan_type,), {"place": "cpu"})
    plan = on_cpu(DenseSpec(2, 3, 1), (FORWARD,))
    torch.set_precision(FLOAT32 if word == "tf32" else TF32)
    plan.bind(FORWARD, *(np.ones(shape, np.float32) for shape in ((2, 3), (3, 1), (1,), (2, 1))))
    assert pytorch.backends.cuda.matmul.fp32_precision == word
    assert pytorch.backends.cudnn.conv.fp32_precision == word
    assert pytorch.backends.cudnn.benchmark


class FakeCuda:
    """What a capture asks of torch.cuda, writing down in which order."""

    def __init__(self):
        self.events: list[str] = []

    def current_stream(self):
        return SimpleNamespace(wait_stream=lambda other: self.events.append("main waits"))

    def Stream(self):  # PyTorch's name
        return SimpleNamespace(wait_stream=lambda other: self.events.append("side waits"))

    def CUDAGraph(self):  # PyTorch's name
        return SimpleNamespace(replay=lambda: self.events.append("replay"))

    @contextmanager
    def stream(self, stream):
        self.events.append("on side")
        yield

    @contextmanager
    def graph(self, graph):
        self.events.append("capture")
        yield
        self.events.append("captured")


def test_a_captured_call_is_warmed_up_aside_recorded_once_and_then_only_replayed(monkeypatch):
    cuda, result = FakeCuda(), object()
    monkeypatch.setattr(torch, "quiet_import", lambda library: SimpleNamespace(cuda=cuda))

    def run():
        cuda.events.append("run")
        return [result]

    call = torch.captured(run)
    before = ["side waits", "on side", "run", "run", "run", "main waits", "capture", "run", "captured"]
    assert cuda.events == before
    assert [call(), call()] == [(result,), (result,)]
    assert cuda.events == [*before, "replay", "replay"]


def test_jax_waits_for_the_last_call_and_lets_its_results_go():
    if reason := _library.missing("jax"):
        pytest.skip(reason)
    from impls.competitors import _keras_jax

    _keras_jax.start()
    x = _keras_jax.tensor(np.arange(3, dtype=np.float32), "cpu:0")
    call = _keras_jax.forward(lambda x: 2 * x, [x], on_gpu=True)
    (result,) = call()
    assert _keras_jax._enqueued[0] is result
    _keras_jax.wait()
    assert result.is_ready()
    assert _keras_jax._enqueued == ()
    assert result.tolist() == [0, 2, 4]


def test_jax_and_tensorflow_take_no_more_of_a_gpu_s_memory_than_they_need(monkeypatch):
    from impls.competitors import _keras_jax, _keras_tensorflow

    grown, visible = [], []
    config = SimpleNamespace(
        list_physical_devices=lambda kind: ["first", "second"],
        set_visible_devices=lambda devices, kind: visible.append((devices, kind)),
        experimental=SimpleNamespace(set_memory_growth=lambda device, on: grown.append((device, on))),
    )
    monkeypatch.setattr(_keras_tensorflow, "_tf", lambda: SimpleNamespace(config=config))
    _keras_tensorflow.start_on_gpu.__wrapped__()
    assert (visible, grown) == ([(["first"], "GPU")], [("first", True)])

    monkeypatch.setenv(_keras_jax.PREALLOCATE, "true")
    asked: dict[str, object] = {}
    jax = SimpleNamespace(config=SimpleNamespace(update=asked.__setitem__), devices=lambda kind: [kind])
    monkeypatch.setattr(_keras_jax, "_jax", lambda: jax)
    _keras_jax.start_on_gpu.__wrapped__()
    assert _keras_jax.os.environ[_keras_jax.PREALLOCATE] == "false"
    assert asked["jax_platforms"] == "cuda,cpu"
    _keras_jax.set_precision(TF32)
    assert asked["jax_default_matmul_precision"] == "tensorfloat32"


def test_tensorflow_that_started_without_its_gpu_needs_another_process(monkeypatch):
    from impls.competitors import _keras_tensorflow

    def refuse(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    config = SimpleNamespace(list_physical_devices=lambda kind: ["first"], set_visible_devices=refuse)
    monkeypatch.setattr(_keras_tensorflow, "_tf", lambda: SimpleNamespace(config=config))
    with pytest.raises(Unavailable, match="needs a process of its own: Visible devices"):
        _keras_tensorflow.start_on_gpu.__wrapped__()


def contender(name: str, device: str, seconds: float, competitor: bool) -> Contender:
    """One that has been timed in ten rounds."""
    row = Row("dense", FORWARD, "2x3,u1", name, device, competitor, "gemm", "float32", "OK")
    return Contender(row, taken=[Taken(seconds * (1 + 0.001 * i), {}) for i in range(10)])


def test_speed_ups_are_formed_between_rows_of_one_device_only():
    everyone = [
        contender("numpy", "cpu", 2.0, False),
        contender("keras", "cpu", 4.0, True),
        contender("numba_cuda_tiles", "cuda", 0.2, False),
        contender("torch_cuda", "cuda", 0.1, True),
        contender("keras_jax_cuda", "cuda", 0.3, True),
    ]
    rows = _finished(parse_case("dense:2x3,u1"), FORWARD, everyone, 0.05)
    over = {row.implementation: {name: round(r.median, 3) for name, r in row.speedups.items()} for row in rows}
    assert over == {
        "numpy": {"keras": 2.0},
        "keras": {},
        "numba_cuda_tiles": {"torch_cuda": 0.5, "keras_jax_cuda": 1.5},
        "torch_cuda": {"keras_jax_cuda": 3.0},
        "keras_jax_cuda": {"torch_cuda": round(1 / 3, 3)},
    }
    assert _width(everyone[0], [everyone[0], *everyone[2:]]) == _width(everyone[0], everyone[:1])


def test_by_default_those_on_the_devices_of_ours_compete_and_any_may_be_named():
    def theirs(*ours: str, **more: tuple[str, ...]) -> set[str]:
        return set(Selection(implementations=ours, **more).names("conv2d")) - set(ours)

    assert theirs("numpy_gemm") == {"keras", "keras_reuse", "keras_predict", "torch", "torch_reuse"}
    assert theirs("numba_cuda_direct") == set(CUDA)
    assert theirs("numpy_gemm", "numba_cuda_direct") == set(registry.rivals("conv2d"))
    assert theirs("numpy_gemm", competitors=("torch_cuda",)) == {"torch_cuda"}
