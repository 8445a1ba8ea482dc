"""The direct CUDA kernels beyond what every CUDA kernel is asked: each tile, each class of residues, each choice.

Problems that the simulator can compute are too small for any tile but the smallest: here every tile computes them. The
simulator is chosen while numba is imported, so one child process (this file run as a program) computes, and the tests
judge. All numbers are small integers, so results must equal the reference bit for bit.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from impls import registry
from impls.conv2d import numba_cuda_direct as direct
from impls.cuda_setup import KERNELS
from impls.devices import CUDA
from impls.maxpool2d.numba_cuda_direct import cells
from impls.specs import DIRECTIONS, FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ConvSpec, PoolSpec, arguments, parse

ROOT = Path(__file__).parents[1]

CONVOLUTIONS = {
    "one pixel": "1x1x1x1,k1,f1",
    "one column": "2x4x1x3,k3x1,f8",
    "tiles inside the image": "1x3x26x2,k2x3,f5,valid",
    "border wider than the image": "1x2x3x2,k5x7,f3",
    "no column under every term": "1x1x2x1,k1x9,f2",
    "two filters": "1x3x9x2,k3,f2,relu",
    "filters past eight lanes": "1x2x5x1,k2,f33",
    "several images": "3x3x4x2,k2,f3",
    "groups of five filters": "1x4x7x6,k3x2,f15,g3,nobias",
    "depthwise": "2x3x6x5,k3,f5,g5",
    "unequal strides": "1x5x9x2,k3,s2x3,f4",
    "stride passes over pixels": "1x7x8x2,k2,s3x3,f3",
    "windows on padding alone": "1x1x1x1,k1,s3x3,p1:1:1:1,f2",
    "residues without taps": "1x8x9x1,k2,s2x2,d2x2,f3",
    "stride and dilation share a factor": "1x9x13x1,k3x2,s4x6,d6x4,p6:6:3:2,f2",
}
POOLINGS = {
    "same": "2x5x7x3,pool2x2,same",
    "gaps behind padding": "1x6x7x2,pool2x3,s4x3,p1:1:0:2",
    "gaps and a rest": "2x9x8x4,pool2x2,s3x3",
    "apart in one direction only": "1x5x6x2,pool2x3,s2x2",
    "one window": "1x3x4x2,pool3x4",
}
NAN = "NaN in windows apart"
RUNS = [
    ("conv2d", what, direction, f"{tile[0]}x{tile[1]}")
    for what, direction, tile in product(CONVOLUTIONS, DIRECTIONS, direct.TILES)
] + [("maxpool2d", what, direction, "") for what in (*POOLINGS, NAN) for direction in (FORWARD, GRAD_INPUT)]


def problem(op: str, what: str, direction: str):
    """The spec of a run, its inputs and the outputs that the reference computes."""
    spec = parse(op, CONVOLUTIONS[what] if op == "conv2d" else POOLINGS.get(what, "1x5x6x8,pool2x2,same"))
    random = np.random.default_rng(len(what))
    arrays = [None if a.shape is None else random.integers(-9, 10, a.shape) for a in arguments(spec, direction)]
    arrays = [None if array is None else array.astype(np.float32) for array in arrays]
    if what == NAN:
        values = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
        arrays[0] = random.choice(values, spec.x_shape, p=(0.3, 0.1, 0.5, 0.1))
    plan = registry.reference(op).plan(spec)
    if op != "conv2d" and direction != FORWARD:
        plan.forward(*arrays[:2])
    getattr(plan, direction)(*arrays)
    outputs = [argument.is_output for argument in arguments(spec, direction)]
    return spec, *([a for a, is_output in zip(arrays, outputs, strict=True) if is_output is k] for k in (False, True))


def simulate(path: str) -> None:
    """Save every output of every run as "<op>/<what>/<direction>/<tile>/<number>"; outputs and scratch start as NaN.

    Blocks are a warp: the simulator spends its time on the idle threads of larger ones.
    """
    for kernel in KERNELS:
        kernel.threads = 32
    saved = {}
    for op, what, direction, tile in RUNS:
        if tile:
            direct.TILES = (tuple(map(int, tile.split("x"))),)
        spec, ins, outs = problem(op, what, direction)
        found = [None if out is None else np.full(out.shape, np.nan, np.float32) for out in outs]
        on_device = [None if array is None else CUDA.put(array) for array in (*ins, *found)]
        workspace = CUDA.put(np.full(1 << 16, 255, np.uint8))
        call = registry.get(op, "numba_cuda_direct").plan(spec, (direction,), workspace).bind(direction, *on_device)
        call()
        call.fetch(*found)
        for number, array in enumerate(found):
            if array is not None:
                saved[f"{op}/{what}/{direction}/{tile}/{number}"] = array
    np.savez(path, **saved)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """All outputs of all runs."""
    path = tmp_path_factory.mktemp("simulator") / "arrays.npz"
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error::RuntimeWarning", __file__, str(path)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("op", "what", "direction", "tile"), RUNS)
def test_every_tile_equals_the_reference(simulated, op, what, direction, tile):
    """Whatever its width, its border and its idle places."""
    for number, out in enumerate(problem(op, what, direction)[2]):
        if out is not None:
            np.testing.assert_array_equal(simulated[f"{op}/{what}/{direction}/{tile}/{number}"], out)


@pytest.mark.parametrize(
    ("taps", "stride", "dilation", "before", "pixels"),
    [
        (3, 1, 1, 1, 7),
        (3, 2, 1, 0, 8),
        (2, 3, 1, 1, 5),
        (4, 2, 2, 3, 9),
        (3, 6, 4, 5, 13),
        (5, 4, 6, 0, 30),
        (2, 5, 1, 1, 3),
    ],
)
def test_classes_of_residues_are_the_gradient(taps, stride, dilation, before, pixels):
    """Together they hold every pair of a pixel and a tap that meet at a window, once, and the right window."""
    axis = direct.gradient_axis(taps, stride, dilation, before, pixels)
    met = [
        (residue + m * axis.spread, axis.order[tap], first + m * axis.stride + (tap - start) * axis.dilation)
        for residue, (start, count, first, results) in enumerate(axis.classes)
        for m in range(results)
        for tap in range(start, start + count)
    ]
    expected = [
        (pixel, tap, (pixel + before - tap * dilation) // stride)
        for pixel in range(pixels)
        for tap in range(taps)
        if (pixel + before - tap * dilation) % stride == 0
    ]
    assert sorted(met) == sorted(expected)
    assert sum(results for *_, results in axis.classes) == pixels
    assert axis.results == max(results for *_, results in axis.classes)


@pytest.mark.parametrize(
    ("text", "tile"),
    [
        ("32x64x64x16,k3,f16", (8, 4)),
        ("32x16x16x64,k3,f64", (4, 4)),
        ("32x8x8x64,k3,f128", (2, 2)),
        ("32x112x112x64,k3,f64,g64", (4, 1)),
        ("32x2x2x64,k3,f64", (1, 1)),
        ("1000x1x1x128,k1,f128", (1, 1)),
    ],
)
def test_large_problems_get_large_tiles(text, tile):
    """As large as leaves enough threads and few idle places."""
    assert direct.correlation(parse("conv2d", text), FORWARD).tile == tile


@pytest.mark.parametrize(
    ("text", "tile"),
    [
        ("64x32x32x512,k3,f512", (8, 4)),
        ("32x16x16x64,k3,f64", (4, 4)),
        ("32x32x32x3,k3,f32", (2, 2)),
        ("32x112x112x64,k3,f64,g64", (4, 1)),
        ("32x28x28x1,k5,f8", (1, 1)),
    ],
)
def test_large_weight_gradients_get_large_tiles(text, tile):
    """By the same rule, with the slices as threads."""
    assert direct.weight_tile(parse("conv2d", text)) == tile


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("text", [*CONVOLUTIONS.values(), "32x64x64x16,k3,f17", "100x31x29x12,k5x3,s2x3,f20,g4"])
def test_a_launch_has_a_place_for_every_result(text, direction):
    """Threads times places of their tiles are no fewer than results."""
    spec = parse("conv2d", text)
    launches = direct.NumbaCudaDirect.launches(spec, direction)
    if direction == GRAD_WEIGHTS:
        slices, items = direct.partial_shape(spec)
        launch, tile, results = launches[0], direct.weight_tile(spec), slices * items
    else:
        what = direct.correlation(spec, direction)
        launch, tile, results = launches[-1], what.tile, math.prod(what.result)
    assert math.prod(launch.blocks) * launch.kernel.threads * math.prod(tile) >= results
    assert all(launch.why_not() is None for launch in launches)


@pytest.mark.parametrize(
    ("spec", "op"),
    [
        (ConvSpec(2048, 1024, 1024, 1, 1, (1, 1)), "conv2d"),
        (ConvSpec(1, 1, 1, 1, 1, (2, 1), dilation=(2**31, 1), padding=((2**31, 0), (0, 0))), "conv2d"),
        (ConvSpec(1, 1, 1, 1, 1, (1, 1), stride=(2**31, 1)), "conv2d"),
        (PoolSpec(2048, 1024, 1024, 1), "maxpool2d"),
        (PoolSpec(1, 1, 1, 1, (1, 1), stride=(1, 2**31)), "maxpool2d"),
        (PoolSpec(2048, 1024, 1024, 1), "avgpool2d"),
    ],
    ids=str,
)
def test_what_32_bits_do_not_count_is_refused(spec, op):
    """With the reason, and before anything is allocated."""
    record = registry.get(op, "numba_cuda_direct")
    assert all("32 bits" in record.why_not(spec, direction) for direction in record.directions)


@pytest.mark.parametrize("what", POOLINGS)
def test_cells_are_for_windows_without_overlap(what):
    """They cover the padded image up to its last pixel, and there is one for every window."""
    spec = parse("maxpool2d", POOLINGS[what])
    found = cells(spec)
    assert (found is None) == any(pool > step for pool, step in zip(spec.pool, spec.step, strict=True))
    if found is not None:
        assert all(cell >= out for cell, out in zip(found, spec.y_shape, strict=True))
        ends = (n * step - before for n, step, (before, _) in zip(found[1:3], spec.step, spec.pads, strict=True))
        assert all(end >= side for end, side in zip(ends, spec.x_shape[1:3], strict=True))


if __name__ == "__main__":
    simulate(sys.argv[1])
