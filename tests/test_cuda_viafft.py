"""Convolution through Fourier transforms: what tiles, scratch and products are chosen, and transforms of every size.

The transforms run in Numba's simulator with one thread a block, which needs no barriers and is quick: a child process
(this file run as a program) computes them.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import check
from impls import parse_case, registry
from impls.contract import FFT, FLOAT32
from impls.conv2d import _cuda_fft, numba_cuda_viafft
from impls.conv2d._cuda_fft import SIDES, frequencies
from impls.cuda_setup import MAX_SHARED_BYTES
from impls.specs import DIRECTIONS, FORWARD, GRAD_INPUT, GRAD_WEIGHTS, parse

ROOT = Path(__file__).parents[1]
PROBLEMS = (
    "1x1x1x1,k1,f1",
    "32x2x2x16,k3,f16",
    "32x28x28x1,k5,f8",
    "32x64x64x64,k19,f64",
    "32x14x14x16,k19,f32",
    "2x40x30x6,k5x3,s2x3,d3x2,f4,g2",
    "1x7x6x8,k3,f8,g8",
    "28x64x64x512,k3,f512",
    "1000x32x32x128,k3,f128",
)
both = pytest.mark.parametrize("text", PROBLEMS)
every_way = pytest.mark.parametrize("direction", DIRECTIONS)


def tile_source(side: int) -> np.ndarray:
    """Two images of two channels that a tile holds but for a border."""
    return np.random.default_rng(side).standard_normal((2, side - 1, side - 2, 2)).astype(np.float32)


def simulate(path: str) -> None:
    """Transform a tile of every side, and back; save "<side>/spectrum" and "<side>/restored"."""
    from impls.devices import CUDA

    saved = {}
    for side in SIDES:
        source = tile_source(side)
        spectrum = CUDA.put(np.full((1, frequencies(side), 2, 4), np.nan, np.float32))
        restored = CUDA.put(np.full_like(source, np.nan))
        no_bias = CUDA.put(np.zeros(1, np.float32))
        one, none, whole = (1, 1), (0, 0), (side, side)
        there = _cuda_fft._to_spectrum(side, planes=1, threads=1).dispatcher
        back = _cuda_fft._from_spectrum(side, planes=1, threads=1).dispatcher
        there[5, 1](CUDA.put(source), spectrum, 0, one, whole, none, one, whole)
        back[5, 1](spectrum, no_bias, restored, 0, one, whole, none, one, False, False)
        saved |= {f"{side}/spectrum": spectrum.copy_to_host(), f"{side}/restored": restored.copy_to_host()}
    np.savez(path, **saved)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """What ``simulate`` saved."""
    path = tmp_path_factory.mktemp("transforms") / "arrays.npz"
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, __file__, str(path)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert child.returncode == 0, child.stderr
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("side", SIDES)
def test_spectrum_holds_every_frequency_once(simulated, side):
    """The values and their conjugates are NumPy's float64 spectrum; frequency 0 stands first."""
    re, im = np.moveaxis(simulated[f"{side}/spectrum"][0].astype(np.float64), 1, 0)
    for plane, (n, channel) in enumerate((n, c) for n in range(2) for c in range(2)):
        truth = np.fft.fft2(tile_source(side)[n, :, :, channel].astype(np.float64), (side, side))
        got = re[:, plane] + 1j * im[:, plane]
        full = np.concatenate([got, got[np.abs(got.imag) > 0].conj()])
        assert full.size == truth.size
        np.testing.assert_allclose(np.sort(full.real), np.sort(truth.real.ravel()), atol=1e-5 * side)
        np.testing.assert_allclose(np.sort(full.imag), np.sort(truth.imag.ravel()), atol=1e-5 * side)
        assert got[0] == pytest.approx(truth[0, 0], abs=1e-5 * side)
        nearest = np.abs(truth.ravel()[:, None] - full[None]).min(axis=1)
        assert nearest.max() < 1e-5 * side


@pytest.mark.parametrize("side", SIDES)
def test_inverse_transform_restores_the_tile(simulated, side):
    """Every pixel of the image comes back, from blocks more than are needed."""
    np.testing.assert_allclose(simulated[f"{side}/restored"], tile_source(side), atol=4e-6)


@pytest.mark.parametrize("column", range(1, 32))
def test_places_of_a_pair_hold_opposite_frequencies(column):
    """Bit-reversed, the two places are k and side - k, whatever the side."""
    function = getattr(_cuda_fft.column_places, "py_func", _cuda_fft.column_places)
    places = function(column)
    for side in (s for s in SIDES if s // 2 > column):
        bits = side.bit_length() - 1
        k, opposite = (int(f"{place:0{bits}b}"[::-1], 2) for place in places)
        assert k + opposite == side


@both
@every_way
def test_tiles_give_every_result_and_chunks_hold_every_tile_once(text, direction):
    """Advance times tiles covers the results, without a tile too many."""
    spec = parse("conv2d", text)
    cut = numba_cuda_viafft.tiling(spec, direction)
    for wanted, advance, tiles in zip(numba_cuda_viafft.places(spec, direction), cut.advance, cut.tiles, strict=True):
        assert (tiles - 1) * advance < wanted <= tiles * advance
    assert [tile for chunk in cut.chunks for tile in chunk] == list(range(spec.batch * math.prod(cut.tiles)))


@both
@every_way
def test_scratch_is_bounded_and_launches_are_possible(text, direction):
    """Spectra within the limit, or of a single tile a chunk; nothing a device refuses."""
    spec = parse("conv2d", text)
    record = registry.get("conv2d", "numba_cuda_viafft")
    assert record.why_not(spec, direction) is None
    assert record.plan_type.scratch_bytes(spec, (direction,)) <= numba_cuda_viafft.SCRATCH_BYTES + 3 * 64
    launches = record.plan_type.launches(spec, direction)
    assert all(launch.why_not() is None and launch.kernel.shared_bytes <= MAX_SHARED_BYTES for launch in launches)


def test_little_scratch_means_more_chunks(monkeypatch):
    """Down to one tile at a time, then a reason that names the bytes."""
    spec = parse("conv2d", "3x6x6x2,k3,f2")
    monkeypatch.setattr(numba_cuda_viafft, "tile_side", numba_cuda_viafft.tile_side.__wrapped__)
    monkeypatch.setattr(numba_cuda_viafft, "SIDES", (8,))
    needed = numba_cuda_viafft.least_scratch(spec, 8)
    monkeypatch.setattr(numba_cuda_viafft, "SCRATCH_BYTES", needed)
    assert len(numba_cuda_viafft.tiling(spec, FORWARD).chunks) == 3
    monkeypatch.setattr(numba_cuda_viafft, "SCRATCH_BYTES", needed - 1)
    assert f"{needed} bytes" in numba_cuda_viafft.why_not(spec, FORWARD)


@every_way
def test_more_chunks_than_a_call_launches_are_refused_with_their_number(direction):
    """And at once: a plan of a million launches is not made first."""
    reason = numba_cuda_viafft.why_not(parse("conv2d", "100000x2000x2000x64,k3,f64"), direction)
    assert "chunks of 268435456 bytes of scratch; a call has at most 1024" in reason


def test_kernel_that_no_tile_holds_is_refused_with_its_extent():
    """The dilation counts."""
    assert "65x1 pixels" in numba_cuda_viafft.why_not(parse("conv2d", "1x70x5x1,k5x1,d16x1,f1"), FORWARD)
    assert numba_cuda_viafft.why_not(parse("conv2d", "1x70x5x1,k5x1,d15x1,f1"), FORWARD) is None


@pytest.mark.parametrize(("text", "side"), [("32x2x2x16,k3,f16", 4), ("32x32x32x64,k19,f64", 64)])
def test_large_kernels_take_large_tiles(text, side):
    """The cost model's two ends: a tile that just holds a tiny image, and the largest."""
    assert numba_cuda_viafft.tile_side(parse("conv2d", text)) == side


@both
def test_one_transform_of_the_weights_serves_forward_and_grad_input(text):
    """Same tile, same spectrum, same launch, so that packed weights are good for both."""
    spec = parse("conv2d", text)
    launches = registry.get("conv2d", "numba_cuda_viafft").plan_type.launches
    assert numba_cuda_viafft.spectra(spec, FORWARD)[1] == numba_cuda_viafft.spectra(spec, GRAD_INPUT)[1]
    assert launches(spec, FORWARD)[0] == launches(spec, GRAD_INPUT)[0]


def test_weight_gradient_through_float32_transforms_is_within_its_bound_and_a_wrong_one_is_not():
    """The bound of an FFT's weight gradient: a whole-image float32 transform passes, one shifted tap does not."""
    case = parse_case("conv2d:4x9x7x3,k3,f5,valid")
    random = np.random.default_rng(3)
    x, dy = (random.standard_normal(s).astype(np.float32) for s in (case.spec.x_shape, case.spec.y_shape))
    of_x = np.fft.rfft2(x, axes=(1, 2)).astype(np.complex64)
    of_dy = np.fft.rfft2(dy, x.shape[1:3], axes=(1, 2)).astype(np.complex64)
    products = np.einsum("nhwc,nhwf->hwcf", of_x, of_dy.conj())
    dw = np.fft.irfft2(products, x.shape[1:3], axes=(0, 1))[:3, :3].astype(np.float32)
    db = dy.sum(axis=(0, 1, 2))
    truth = check.expected(case, GRAD_WEIGHTS, (x, dy))
    bounds = check.bound(case, GRAD_WEIGHTS, (x, dy), truth, FFT, FLOAT32)
    assert check.judge(case, GRAD_WEIGHTS, (dw, db), truth, bounds).is_right
    for wrong in ((np.roll(dw, 1, axis=0), db), (dw, db * np.float32(1.001))):
        assert not check.judge(case, GRAD_WEIGHTS, wrong, truth, bounds).is_right


if __name__ == "__main__":
    simulate(sys.argv[1])
