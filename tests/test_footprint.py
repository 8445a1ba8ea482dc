"""What a call changes beside its arrays is named, and a leak is told from memory that is taken once."""

import subprocess
import sys

import pytest

from bench.footprint import changes, footprint
from bench.leaks import leak, resident_bytes
from bench.results import STATUSES, decided

MB = 2**20


def test_nothing_changes_by_itself():
    assert changes(footprint({"numba": 1}), footprint({"numba": 1})) is None


def test_a_pool_that_is_new_or_gone_is_no_change_of_one():
    assert changes(footprint({"numba": 1, "openmp": 1}), footprint({"numba": 1, "openblas": 4})) is None


def test_what_changed_is_named_with_what_it_was(monkeypatch):
    before = footprint({"numba": 1})
    monkeypatch.setenv("LAYERBENCH_NEW", "yes")
    text = changes(before, footprint({"numba": 2}))
    assert "the threads of numba from 1 to 2" in text
    assert "the environment variable LAYERBENCH_NEW from None to yes" in text


@pytest.mark.parametrize(
    ("grown", "is_leak"),
    [
        ([0, 1, 2, 3, 4, 5, 6], True),
        ([0, 0, 1, 1, 2, 2, 3], True),
        ([0, 30, 30, 30, 30, 30, 30], False),
        ([0, 0, 0, 30, 30, 30, 30], False),
        ([0, 1, 2, 3, 4, 3, 2], False),
        ([6, 5, 4, 3, 2, 1, 0], False),
        ([0, 30, 30, 31, 31, 32, 32], False),
        ([0, 1, 2], False),
    ],
    ids=["steadily", "in steps", "at first", "once", "and shrinks", "shrinks", "most at first", "seen too rarely"],
)
def test_memory_leaks_that_grows_in_every_part_of_the_rounds(grown, is_leak):
    calls = [100 * i for i in range(len(grown))]
    assert bool(leak(calls, [50 * MB + g * MB for g in grown])) == is_leak


@pytest.mark.parametrize(("calls", "is_leak"), [(1, True), (10_000, True), (100_000, False)])
def test_what_grows_by_less_than_malloc_hands_out_is_no_leak(calls, is_leak):
    resident = [0, MB // 3, 2 * MB // 3, MB]
    assert bool(leak([i * calls for i in range(4)], resident)) == is_leak


def test_a_leak_says_how_much_a_call():
    assert leak([10, 20, 30, 40], [0, MB, 2 * MB, 3 * MB]) == "memory grew by 1.05e+05 bytes a call over 30 calls"


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_resident_memory_is_what_was_touched():
    before = resident_bytes()
    kept = b"x" * (64 * MB)
    assert 48 * MB < resident_bytes() - before < 80 * MB
    assert len(kept) == 64 * MB


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone counts what a process takes")
def test_no_process_may_allocate_more_than_is_free():
    """In small pieces, none of which is too large by itself."""
    program = (
        "from bench import machine, memory_limit\n"
        "machine.free_memory = lambda: 256 * 2**20\n"
        "memory_limit.limit_memory()\n"
        "kept = [bytearray(2**24) for _ in range(8)]\n"
        "try:\n    kept += [bytearray(2**24) for _ in range(12)]\nexcept MemoryError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"


@pytest.mark.parametrize("i", range(len(STATUSES) - 1))
def test_of_several_statuses_the_one_that_comes_first_is_the_rows(i):
    first, second = (STATUSES[i], "a"), (STATUSES[i + 1], "b")
    assert decided(first, second) == decided(second, first) == first


def test_of_several_reasons_for_one_status_the_first_stands():
    assert decided(("WRONG", "first"), ("WRONG", "second")) == ("WRONG", "first")
