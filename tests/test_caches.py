"""Caches are read as the system tells them, and every thread stays in the level that is measured."""

from itertools import pairwise

import pytest

from bench import caches
from bench.caches import ASSUMED, DRAM, Cache

KIB, MIB = 2**10, 2**20
TWO_CORES = (Cache(1, 48 * KIB, 1), Cache(2, MIB, 1), Cache(3, 32 * MIB, 2))
LARGE_L2 = (Cache(1, 32 * KIB, 1), Cache(2, 2 * MIB, 1), Cache(3, 24 * MIB, 16))


@pytest.fixture
def sysfs(tmp_path):
    """A machine of 8 cores, of which 4 share an L3, and two threads a core."""
    entries = [
        ("Data", 1, "48K", "2,6"),
        ("Instruction", 1, "32K", "2,6"),
        ("Unified", 2, "1024K", "2,6"),
        ("Unified", 3, "32M", "0-3,4-7"),
    ]
    for number, entry in enumerate(entries):
        folder = tmp_path / "cpu2" / "cache" / f"index{number}"
        folder.mkdir(parents=True)
        for name, value in zip(("type", "level", "size", "shared_cpu_list"), entry, strict=True):
            (folder / name).write_text(f"{value}\n")
    return tmp_path


def test_data_caches_are_read_with_the_usable_cores_that_share_them(sysfs):
    assert caches.read([2, 3], sysfs) == TWO_CORES
    assert [cache.sharers for cache in caches.read([2, 3, 6, 7], sysfs)] == [2, 2, 4]


def test_where_the_system_does_not_tell_small_caches_are_assumed(sysfs):
    assert caches.read([0], sysfs) == ASSUMED
    (sysfs / "cpu2" / "cache" / "index0" / "size").unlink()
    assert [cache.level for cache in caches.read([2], sysfs)] == [2, 3]


def test_this_machine_has_caches():
    found = caches.read()
    assert found
    assert all(a.bytes <= b.bytes for a, b in pairwise(found))


@pytest.mark.parametrize("machine", [TWO_CORES, LARGE_L2, ASSUMED])
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_a_threads_part_of_a_level_does_not_fit_into_the_one_before(machine, threads):
    sets = caches.working_sets(machine, threads, most=2**40)
    assert [s.level for s in sets] == ["L1", "L2", "L3", DRAM]
    for part, before in zip(sets[1:], machine, strict=True):
        assert part.bytes_per_thread >= 1.5 * (before.bytes // min(threads, before.sharers))
    assert sets[3].bytes_per_thread * threads > 2 * sum(cache.held_by(threads) for cache in machine)


def test_nothing_has_to_come_from_beyond_caches_whose_size_nobody_tells():
    sets = caches.working_sets(ASSUMED, 1, most=2**40)
    assert [s.beyond for s in sets] == [0, *[caches.UNTOLD] * 3]


def test_what_lies_before_a_level_is_all_that_the_threads_caches_hold():
    alone, both = (caches.working_sets(TWO_CORES, threads, most=2**40) for threads in (1, 2))
    assert [s.beyond for s in alone] == [0, 48 * KIB, 48 * KIB + MIB, 48 * KIB + 33 * MIB]
    assert [s.beyond for s in both] == [0, 96 * KIB, 96 * KIB + 2 * MIB, 96 * KIB + 34 * MIB]


def test_memory_is_measured_in_no_more_than_is_given():
    assert caches.working_sets(TWO_CORES, 2, most=64 * MIB)[-1].bytes_per_thread == 32 * MIB
