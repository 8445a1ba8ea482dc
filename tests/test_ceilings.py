"""A row is held to what the machine was seen to do: the bound that binds, its fraction, and what lies beyond."""

import dataclasses
import json

import pytest

from bench import ceilings
from bench.ceilings import CPU, CUDA, GBYTES, GFLOPS, Ceiling, Limits, MachineProfile, ProfileError
from bench.results import Interval, Row
from impls import parse_case

CASE = parse_case("dense:64x512,u256")
FLOPS, BYTES = CASE.spec.flops, CASE.least_traffic("forward")
BEYOND = BYTES // 4

FMA = Ceiling("float32 multiply-add, 512 bits", GFLOPS, (80.0, 100.0), threads=2)
NEAR = Ceiling("read, L2", GBYTES, (200.0,), threads=2, level="L2")
FAR = Ceiling("copy, DRAM", GBYTES, (20.0, 10.0), threads=2, level="DRAM", beyond=BEYOND)
FAR_WRITTEN = dataclasses.replace(FAR, name="write, DRAM", samples=(5.0,))
CEILINGS = (FMA, NEAR, FAR, FAR_WRITTEN)


OVER = {"keras": Interval(2.0, 1.9, 2.1)}


def timed(seconds, **more):
    """A row of the case that took so long, 1 % to either side."""
    row = Row(CASE.op, "forward", str(CASE.spec), "mine", CPU, False, "gemm", "float32", "OK")
    return dataclasses.replace(
        row, median_s=seconds, low_s=0.99 * seconds, high_s=1.01 * seconds, speedups=OVER, **more
    )


LEAST = FLOPS / 100e9
"""Seconds by operations; by bytes it is less, from either level."""


def test_the_best_of_a_rate_is_the_highest_and_of_a_time_the_shortest():
    assert FMA.value == 100
    assert Ceiling("call", "ns", (70.0, 90.0)).value == 70
    assert FMA.interval.median == 90


def test_bytes_that_nearer_levels_hold_need_not_come_from_afar():
    """And of the ways to go through a level, the fastest counts."""
    bound = ceilings.bound_by_bytes(CASE, "forward", CEILINGS)
    assert bound.ceiling is FAR
    assert bound.seconds == pytest.approx((BYTES - BEYOND) / 20e9)
    assert ceilings.bound_by_bytes(CASE, "forward", CEILINGS, cold=True).seconds == pytest.approx(BYTES / 20e9)


def test_what_fits_into_the_nearest_level_is_bound_by_that_one():
    far = dataclasses.replace(FAR, beyond=BYTES)
    bound = ceilings.bound_by_bytes(CASE, "forward", (NEAR, far))
    assert (bound.ceiling, bound.seconds) == (NEAR, pytest.approx(BYTES / 200e9))


@pytest.mark.parametrize("factor", [1.0, 2.0, 50.0])
def test_the_fraction_is_the_least_time_over_the_median(factor):
    row = ceilings.judged(timed(factor * LEAST), CEILINGS, 2)
    assert row.fraction == pytest.approx(1 / factor)
    assert (row.status, row.binding) == ("OK", "float32 multiply-add, 512 bits: 100 GFLOP/s")


@pytest.mark.parametrize(
    ("row", "status"),
    [
        (timed(0.90 * LEAST), "IMPOSSIBLE"),
        (timed(0.90 * LEAST, status="NOISY"), "IMPOSSIBLE"),
        (timed(0.90 * LEAST, competitor=True), "OK"),
        (timed(0.90 * LEAST, ran_algorithm="sums"), "IMPOSSIBLE"),
        (timed(0.90 * LEAST, ran_algorithm="transform"), "OK"),
        (timed(0.10 * BYTES / 20e9, competitor=True), "IMPOSSIBLE"),
        (timed(0.96 * LEAST), "OK"),
        (timed(0.90 * LEAST, algorithm="winograd(2, 3)"), "OK"),
        (timed(0.90 * LEAST, algorithm="fft"), "OK"),
        (timed(0.90 * LEAST, arithmetic="TF32"), "OK"),
        (timed(0.10 * BYTES / 20e9, algorithm="fft"), "IMPOSSIBLE"),
        (dataclasses.replace(timed(0.5 * LEAST), high_s=LEAST), "OK"),
    ],
    ids=[
        *(
            "beyond",
            "beyond and noisy",
            "a competitor, whatever it ran",
            "sums, as was seen",
            "a transform, as was seen",
            "a competitor faster than memory",
            "within the margin",
            "fewer operations",
            "in frequencies",
        ),
        *("another arithmetic", "faster than memory", "its interval reaches the bound"),
    ],
)
def test_a_row_beyond_a_ceiling_that_it_must_obey_is_impossible(row, status):
    judged = ceilings.judged(row, CEILINGS, 2)
    assert judged.status == status
    assert judged.fraction > 1
    assert ("at least" in judged.reason) == (status == "IMPOSSIBLE")
    assert bool(judged.speedups) == (status != "IMPOSSIBLE")


def test_pooling_may_share_operations_between_windows_and_is_held_to_its_bytes():
    case = parse_case("avgpool2d:2x64x64x8,pool9x9,s1x1")
    row = dataclasses.replace(timed(1e-6), op=case.op, spec=str(case.spec), algorithm="direct")
    assert ceilings.judged(row, [FMA], 2).status == "OK"
    assert ceilings.judged(row, CEILINGS, 2).status == "IMPOSSIBLE"


@pytest.mark.parametrize(
    ("row", "threads"),
    [(timed(LEAST), 1), (timed(LEAST, device=CUDA), 2), (timed(LEAST, status="WRONG"), 2)],
    ids=["other threads", "another device", "not timed"],
)
def test_what_no_ceiling_speaks_of_stays_as_it_is(row, threads):
    assert ceilings.judged(row, CEILINGS, threads) == row


def test_a_row_on_a_device_is_held_to_the_device():
    device = Ceiling("float32 multiply-add", GFLOPS, (1000.0,), CUDA)
    row = ceilings.judged(timed(LEAST, device=CUDA), (*CEILINGS, device), 2)
    assert row.fraction == pytest.approx(0.1)


READS, WRITES = CASE.least_reads("forward"), CASE.least_writes("forward")


@pytest.mark.parametrize(
    ("way", "moved", "beyond", "status"),
    [
        ("read", READS, 1000, "IMPOSSIBLE"),
        ("write", WRITES, 1000, "IMPOSSIBLE"),
        ("read", READS, READS, "OK"),
        ("read", READS, 0, "OK"),
        ("copy", BYTES, 1000, "OK"),
    ],
    ids=["read", "written", "held by the cache", "of a cache, or with an unknown one before it", "copied"],
)
def test_a_device_is_held_to_what_it_reads_or_writes_alone(way, moved, beyond, status):
    """A call that takes half as long as its inputs, or its outputs, take at the rate of that way beyond the cache."""
    rate = Ceiling(f"device {way}", GBYTES, ((moved - 1000) / LEAST / 1e9,), CUDA, level="m", beyond=beyond, way=way)
    row = ceilings.judged(timed(LEAST / 2, device=CUDA), (rate,), 2)
    assert row.status == status
    assert row.binding.startswith(f"device {way}: ")


def test_tensor_cores_are_compared_with_their_own_products_and_held_to_none():
    """And float32 is not compared with them, though they are faster."""
    operations = Ceiling("float32 multiply-add", GFLOPS, (100.0,), CUDA)
    tensor = Ceiling("TF32 GEMM, 8192", GFLOPS, (800.0,), CUDA, arithmetic="TF32")
    half = Ceiling("bfloat16 GEMM, 8192", GFLOPS, (1600.0,), CUDA, arithmetic="bfloat16")
    limits = (operations, tensor, half)
    row = ceilings.judged(timed(LEAST / 16, device=CUDA, arithmetic="TF32"), limits, 2)
    assert (row.status, row.fraction, row.binding.partition(":")[0]) == ("OK", pytest.approx(2.0), "TF32 GEMM, 8192")
    row = ceilings.judged(timed(LEAST / 2, device=CUDA), limits, 2)
    assert (row.status, row.fraction) == ("IMPOSSIBLE", pytest.approx(2.0))


def test_a_device_is_held_to_no_rate_of_copies():
    """Reading alone, or writing alone, may be faster; operations are operations."""
    copy = Ceiling("device copy", GBYTES, (BYTES / LEAST / 2e9,), CUDA, level="device memory", way="copy")
    operations = Ceiling("float32 multiply-add", GFLOPS, (400.0,), CUDA)
    row = ceilings.judged(timed(LEAST, device=CUDA), (copy, operations), 2)
    assert (row.status, row.fraction, row.binding.partition(":")[0]) == ("OK", pytest.approx(2.0), "device copy")
    assert ceilings.judged(timed(LEAST / 5, device=CUDA), (copy, operations), 2).status == "IMPOSSIBLE"


def test_nobody_is_compared_with_what_is_impossible():
    keras = timed(0.10 * BYTES / 20e9, implementation="keras", competitor=True)
    ours = timed(2 * LEAST)
    both = dataclasses.replace(ours, speedups=OVER | {"torch": Interval(3.0, 2.9, 3.1)})
    rows = Limits(CEILINGS, 2, lambda: ()).judge([keras, both])
    assert [row.status for row in rows] == ["IMPOSSIBLE", "OK"]
    assert rows[1].speedups == {"torch": Interval(3.0, 2.9, 3.1)}
    assert Limits(CEILINGS, 2, lambda: ()).judge([ours])[0].speedups == OVER


@pytest.mark.parametrize(("again", "status", "fraction"), [(100.0, "IMPOSSIBLE", 2.0), (400.0, "OK", 0.5)])
def test_ceilings_are_measured_again_before_a_row_is_called_impossible(again, status, fraction):
    asked = []
    limits = Limits(CEILINGS, 2, lambda: asked.append(1) or (dataclasses.replace(FMA, samples=(again,)),))
    assert limits.judge([timed(2 * LEAST)])[0].status == "OK"
    assert not asked
    (row,) = limits.judge([timed(0.5 * LEAST)])
    assert (row.status, row.fraction) == (status, pytest.approx(fraction))
    assert len(asked) == 1
    assert limits.ceilings[0].samples == (80.0, 100.0, again)
    assert limits.ceilings[1:] == CEILINGS[1:]


def test_what_holds_for_so_many_threads_is_said_in_a_line():
    others = (dataclasses.replace(FMA, samples=(900.0,), threads=4), Ceiling("device copy", GBYTES, (3e3,), CUDA))
    found = ceilings.in_force((*CEILINGS, *others), CPU, 2)
    assert ceilings.in_words(found) == "100 GFLOP/s (float32 multiply-add, 512 bits); L2 200, DRAM 20 GB/s"
    assert ceilings.in_words(()) == ""


# --- files ---

PROFILE = MachineProfile({"id": "box"}, 2, "2026-11-21T00:00:00+00:00", CEILINGS, {"cuda": "no device"})


def test_a_profile_that_is_written_is_read_back_with_every_sample(tmp_path):
    path = tmp_path / "new" / "profile.json"
    ceilings.write_profile(path, PROFILE)
    assert ceilings.read_profile(path) == PROFILE
    document = json.loads(path.read_text())
    assert ceilings.is_profile(document)
    assert document["ceilings"][0]["value"] == 100


@pytest.mark.parametrize(
    "content",
    ["", "[1]", '{"run": {}, "rows": []}', '{"format": "layerbench profile 1"}', None],
    ids=["empty", "a list", "a run", "cut short", "no file"],
)
def test_a_file_that_is_no_profile_is_named_with_the_remedy(tmp_path, content):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ProfileError, match=r"other\.json is no profile .*: layerbench profile --json FILE"):
        ceilings.read_profile(path)


def test_a_profile_whose_figure_has_no_sample_is_none(tmp_path):
    path = tmp_path / "p.json"
    ceilings.write_profile(path, PROFILE)
    document = json.loads(path.read_text())
    document["ceilings"][0]["samples"] = []
    path.write_text(json.dumps(document))
    with pytest.raises(ProfileError, match="has no samples"):
        ceilings.read_profile(path)
