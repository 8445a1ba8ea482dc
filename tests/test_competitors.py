"""Keras and PyTorch behind the record compute what the definition says, quietly, and say what they cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from impls import registry
from impls.competitors import _library, keras, torch
from impls.contract import Implementation, Plan, Unavailable
from impls.devices import CPU
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, OPS, Case, arguments, parse_case

TOLERANCE = 1e-5
"""Largest error over largest value: some 160 roundings of float32, for sums of at most 100 products of size one."""

CASES = {
    "plain": "conv2d:2x5x6x3,k3x3,f4",
    "even kernel, strided, grouped, fused": "conv2d:2x7x6x4,k2x4,f6,s2x2,g2,relu",
    "valid, no bias": "conv2d:2x7x6x4,k3x2,f6,valid,nobias",
    "dilated": "conv2d:1x9x8x2,k3x3,f2,d2x2",
    "dilated and strided": "conv2d:1x9x8x2,k3x3,f2,d2x2,s2x2",
    "padding of its own": "conv2d:2x7x5x1,k3x3,f2,p2:0:1:2",
    "one by one": "conv2d:1x1x1x1,k1x1,f1",
    "kernel larger than the image": "conv2d:2x2x3x2,k5x5,f2",
    "depthwise": "conv2d:2x6x6x4,k3x3,f4,g4,s2x2",
    "double precision": "conv2d:2x7x6x2,k3x3,f2,s1x2,float64",
    "max": "maxpool2d:2x6x4x3,pool2x2",
    "max, odd sides": "maxpool2d:2x7x5x3,pool2x2,same",
    "max, overlapping": "maxpool2d:2x7x6x3,pool3x3,s2x2,same",
    "max, step of one": "maxpool2d:2x7x6x3,pool2x2,s1x1,same",
    "max, padding of its own": "maxpool2d:2x7x6x3,pool3x3,s1x1,p2:1:0:2",
    "max, last window begins in the padding": "maxpool2d:1x4x4x1,pool2x2,s3x3,p1:1:1:1",
    "average": "avgpool2d:2x6x4x3,pool2x2",
    "average, odd sides": "avgpool2d:2x7x5x3,pool2x2,same",
    "average, overlapping": "avgpool2d:2x7x6x3,pool3x3,s2x2,same",
    "average, rows stepped": "avgpool2d:2x7x6x3,pool3x2,s2x1",
    "average, step of one": "avgpool2d:2x7x6x3,pool2x2,s1x1,same,float64",
    "dense": "dense:4x7,u5",
    "dense, no bias, fused": "dense:4x7,u5,nobias,relu",
    "dense, one number, double precision": "dense:1x1,u1,float64",
}

EXPRESSIBLE = [
    pytest.param(case, name, direction, id=f"{name}-{direction}-{what}")
    for what, case in ((what, parse_case(text)) for what, text in CASES.items())
    for name in registry.rivals(case.op)
    for direction in registry.get(case.op, name).directions
    if registry.get(case.op, name).why_not(case.spec, direction) is None
]


def available(op: str, name: str) -> Implementation:
    """The competitor, or a skip with the reason. Without a GPU, a CUDA figure's own plans compute on the CPU.

    What changes its process for good computes without: this one is everybody's.
    """
    implementation = registry.get(op, name)
    if implementation.alone:
        plan_type = implementation.plan_type
        implementation = replace(
            implementation, plan_type=type(plan_type.__name__, (plan_type,), {"reuses_memory": False})
        )
    if implementation.device is not CPU and implementation.device.missing():
        plan_type = implementation.plan_type
        on_cpu = {"device": CPU, "place": keras.CPU, "is_captured": False}
        implementation = replace(implementation, plan_type=type(plan_type.__name__, (plan_type,), on_cpu))
    if reason := implementation.missing():
        pytest.skip(reason)
    return implementation


def planned(case: Case, name: str, directions: tuple[str, ...]) -> Plan:
    """A plan, or a skip: a library that is there may still find no GPU, or have started in this process without."""
    implementation = available(case.op, name)
    try:
        return implementation.plan(case.spec, directions)
    except Unavailable as reason:
        pytest.skip(str(reason))


def draw(case: Case, direction: str, seed: int = 0) -> list[np.ndarray | None]:
    """Read-only random inputs, y being the true one, and outputs full of NaN."""
    rng = np.random.default_rng(seed)
    arrays: list[np.ndarray | None] = []
    for argument in arguments(case.spec, direction):
        if argument.shape is None:
            arrays.append(None)
        elif argument.is_output:
            arrays.append(np.full(argument.shape, np.nan, case.spec.dtype))
        elif argument.name == "y":
            y = np.empty(argument.shape, case.spec.dtype)
            registry.reference(case.op).plan(case.spec).forward(arrays[0], y)
            arrays.append(y)
        else:
            arrays.append(rng.standard_normal(argument.shape).astype(case.spec.dtype))
    for argument, array in zip(arguments(case.spec, direction), arrays, strict=True):
        if array is not None and not argument.is_output:
            array.flags.writeable = False
    return arrays


def outputs(case: Case, direction: str, arrays: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """Those of a call's arrays that it fills."""
    signature = arguments(case.spec, direction)
    return [array for argument, array in zip(signature, arrays, strict=True) if argument.is_output]


def assert_right(case: Case, direction: str, arrays: list[np.ndarray | None]) -> None:
    """The filled outputs are those of the float64 reference for the same inputs."""
    signature = arguments(case.spec, direction)
    truth = [
        np.empty(a.shape) if a.is_output and a.shape else array for a, array in zip(signature, arrays, strict=True)
    ]
    registry.reference(case.op).plan(case.spec).bind(direction, *truth)()
    for got, wanted in zip(outputs(case, direction, arrays), outputs(case, direction, truth), strict=True):
        if wanted is not None:
            np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize(("case", "name", "direction"), EXPRESSIBLE)
def test_a_competitor_agrees_with_the_definition(case, name, direction):
    plan = planned(case, name, (direction,))
    arrays = draw(case, direction)
    call = plan.bind(direction, *arrays)
    call()
    call.fetch(*outputs(case, direction, arrays))
    assert_right(case, direction, arrays)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("keras", "conv2d:1x9x8x2,k3x3,f2,d2x2,s2x2", "stride above 1 together with a dilation"),
        ("keras", "conv2d:1x9x8x2,k3x3,f2,p2:0:1:2", "pad 'same' or 'valid'"),
        ("keras_predict", "maxpool2d:2x7x6x3,pool3x3,p2:1:0:2", "pad 'same' or 'valid'"),
        ("torch", "avgpool2d:2x7x6x3,pool2x2,s1x1,same", "cannot pad by ((0, 1), (0, 1))"),
        ("torch", "avgpool2d:2x7x6x3,pool3x3,p2:2:1:1", "half a window at most"),
    ],
)
def test_what_a_library_cannot_express_has_its_reason(name, text, words):
    case = parse_case(text)
    assert words in available(case.op, name).supports(case.spec, FORWARD)


@pytest.mark.parametrize("text", ["conv2d:1x8x8x2,k3x3,f2,p1:1:1:1", "conv2d:1x8x8x2,k3x3,f2,p0:0:0:0"])
def test_explicit_padding_that_keras_has_a_word_for_is_supported(text):
    case = parse_case(text)
    assert available(case.op, "keras").supports(case.spec, FORWARD) is None


def test_predict_computes_forward_only():
    assert registry.get("conv2d", "keras_predict").directions == (FORWARD,)


@pytest.mark.parametrize("op", OPS)
def test_every_operation_has_its_competitors_labelled_as_such(op):
    assert registry.rivals(op) == (
        *("keras", "keras_reuse", "keras_predict"),
        *("keras_jax_cuda", "keras_jax_cuda_tf32", "keras_tensorflow_cuda", "keras_tensorflow_cuda_tf32"),
        *("keras_torch_cuda", "keras_torch_cuda_tf32"),
        *("torch", "torch_reuse", "torch_cuda", "torch_cuda_tf32", "torch_cuda_graph"),
    )
    assert all(registry.get(op, name).competitor for name in registry.rivals(op))
    assert not set(registry.rivals(op)) & set(registry.names(op))


@pytest.mark.parametrize("op", OPS)
def test_what_keeps_memory_is_said_to_need_a_process_of_its_own(op):
    assert {name for name in registry.rivals(op) if registry.get(op, name).alone} == {"keras_reuse", "torch_reuse"}


@pytest.mark.skipif(_library.missing_reuse() is not None, reason="the C library has no mallopt(3)")
def test_memory_that_is_kept_is_not_touched_for_the_first_time_again():
    script = """
import ctypes, resource, sys
from impls.competitors._library import keep_memory

if sys.argv[1] == "keep":
    keep_memory()
libc, size = ctypes.CDLL(None), 8 << 20
libc.malloc.restype = ctypes.c_void_p
for call in range(21):
    if call == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", script, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "as shipped")
    }
    assert faults["keep"] < 20 <= faults["as shipped"]


@pytest.mark.parametrize("name", registry.rivals("conv2d"))
def test_calls_bound_from_one_plan_keep_their_own_inputs(name):
    case = parse_case(CASES["plain"])
    plan = planned(case, name, (FORWARD,))
    sets = [draw(case, FORWARD, seed) for seed in (1, 2)]
    calls = [plan.bind(FORWARD, *arrays) for arrays in sets]
    for call in calls:
        call()
    for call, arrays in zip(calls, sets, strict=True):
        call.fetch(*outputs(case, FORWARD, arrays))
        assert_right(case, FORWARD, arrays)


@pytest.mark.parametrize("direction", [FORWARD, GRAD_WEIGHTS, GRAD_INPUT])
@pytest.mark.parametrize("name", ["keras", "torch"])
def test_a_plan_s_methods_fill_the_arrays_they_are_given(name, direction):
    case = parse_case(CASES["valid, no bias"])
    arrays = draw(case, direction)
    getattr(available(case.op, name).plan(case.spec), direction)(*arrays)
    assert_right(case, direction, arrays)


@pytest.mark.parametrize("name", ["keras", "torch"])
def test_a_direction_that_was_not_planned_is_refused(name):
    case = parse_case(CASES["plain"])
    plan = planned(case, name, (FORWARD,))
    with pytest.raises(NotImplementedError, match="not for grad_input"):
        plan.bind(GRAD_INPUT, *draw(case, GRAD_INPUT))


def test_pytorch_sees_what_is_written_into_a_bound_image():
    case = parse_case(CASES["plain"])
    arrays = draw(case, FORWARD)
    arrays[0] = np.zeros(case.spec.x_shape, case.spec.dtype)
    call = available(case.op, "torch").plan(case.spec, (FORWARD,)).bind(FORWARD, *arrays)
    arrays[0][...] = draw(case, FORWARD, seed=3)[0]
    call()
    call.fetch(*outputs(case, FORWARD, arrays))
    assert_right(case, FORWARD, arrays)


def test_pytorch_computes_with_the_threads_it_is_given():
    available("dense", "torch")
    before = torch.threads()["torch"]
    try:
        torch.set_threads(before + 1)
        assert torch.threads() == {"torch": before + 1}
    finally:
        torch.set_threads(before)


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, from the project's root."""
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, text=True, capture_output=True, check=False
    )


def test_finding_competitors_imports_no_library():
    found = fresh(
        "import sys; from impls import registry\n"
        "for op in registry.OPS: [registry.get(op, name) for name in registry.rivals(op)]\n"
        "print({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules))"
    )
    assert found.stdout.strip() == "set()", found.stderr


START = """
import numpy as np
from impls import registry
from impls.specs import GRAD_INPUT, DenseSpec
plan_type = registry.get("dense", "keras").plan_type
plan_type.set_threads(1)
plan = registry.get("dense", "keras").plan(DenseSpec(2, 3, 1), (GRAD_INPUT,))
plan.grad_input(*(np.ones(shape, np.float32) for shape in ((2, 1), (3, 1), (2, 3))))
print(plan_type.threads())
"""


def test_tensorflow_starts_quietly_with_the_threads_it_is_given(monkeypatch):
    if reason := _library.missing("keras") or _library.missing("tensorflow"):
        pytest.skip(reason)
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    started = fresh(START, KERAS_BACKEND="tensorflow")
    assert started.stderr == ""
    assert started.stdout.strip() == "{'tensorflow intra': 1, 'tensorflow inter': 1}"


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_keras_agrees_with_the_definition_on_its_other_backends(backend):
    if reason := _library.missing("keras") or _library.missing(backend):
        pytest.skip(reason)
    others = " or ".join(f"{other}_cuda" for other in keras.BACKENDS if other != backend)
    cases = f"keras and (plain or odd or dense) and not ({others})"
    chosen = f"{test_a_competitor_agrees_with_the_definition.__name__} and {cases}"
    again = fresh(
        f"import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {__file__!r}, '-k', {chosen!r}]))",
        KERAS_BACKEND=backend,
    )
    assert again.returncode == 0, again.stdout
    assert "skipped" not in again.stdout


@pytest.mark.parametrize(
    ("backend", "installed", "words"),
    [
        ("numpy", True, "set KERAS_BACKEND to one of tensorflow, jax, torch"),
        ("jax", False, "is not installed"),
    ],
)
def test_a_backend_that_cannot_be_used_is_a_reason(monkeypatch, backend, installed, words):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setattr(_library, "find_spec", lambda library: object() if installed else None)
    assert words in registry.get("dense", "keras").missing()


def test_the_backend_is_that_of_keras_configuration_file(monkeypatch, tmp_path):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert keras.backend_name() == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    assert keras.backend_name() == "jax"


@pytest.mark.parametrize(("ending", "shown"), [("", ""), ("raise ImportError('broken')", "hello")])
def test_an_import_shows_what_it_wrote_only_if_it_fails(monkeypatch, tmp_path, capfd, ending, shown):
    name = f"noisy{len(ending)}"
    (tmp_path / f"{name}.py").write_text(f"import os, warnings\nos.write(2, b'hello')\nwarnings.warn('w')\n{ending}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="broken") if ending else nullcontext():
        _library.quiet_import(name)
    assert capfd.readouterr().err == shown
