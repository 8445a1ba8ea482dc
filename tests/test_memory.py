"""Calls are timed with the caches in the state that was asked for, and their page faults are counted."""

import mmap

import numpy as np
import pytest

from bench import caches, memory, memory_limit
from bench.contamination import Nobody
from bench.measure import Session
from impls import parse_case


@pytest.mark.parametrize(
    ("found", "size"),
    [((caches.Cache(1, 2**15, 1), caches.Cache(2, 2**23, 4)), 2**25), (caches.ASSUMED, 2**27)],
    ids=["told", "assumed"],
)
def test_several_times_the_last_cache_is_written(monkeypatch, found, size):
    monkeypatch.setattr(caches, "read", lambda: found)
    assert memory.flush_bytes() == size


@pytest.mark.parametrize(
    ("state", "names", "warm"),
    [
        ("cold", ("x", "w", "b", "out"), ""),
        ("cold-weights", ("x", "w", "b", "out"), "x out"),
        ("cold-weights", ("x", "dy", "dw", "db"), "x dy"),
        ("cold-weights", ("x", "out"), "x out"),
    ],
)
def test_all_but_the_weights_is_read_again_after_a_flush(state, names, warm):
    arrays = [np.full(2, i) for i in range(len(names))]
    found = memory.kept_warm(state, names, arrays)
    assert [names[int(a[0])] for a in found] == warm.split()


def test_a_flush_writes_its_whole_buffer_and_changes_no_array():
    flusher = memory.Flusher(size=100)
    array = np.array([np.nan, 1.0], np.float32)
    flusher.flush([array, None])
    flusher.flush()
    assert (flusher._buffer == 3).all()
    assert array[1] == 1


def test_touching_new_pages_is_counted_per_call():
    before = memory.faults()
    pages = mmap.mmap(-1, 64 * mmap.PAGESIZE)
    for i in range(64):
        pages[i * mmap.PAGESIZE] = 1
    minor, major = memory.faults_per_call(before, memory.faults(), calls=2)
    pages.close()
    assert minor >= 0.5
    assert major >= 0
    assert memory.faults_per_call(None, None, calls=1) is None


def test_where_the_system_hides_what_a_process_has_taken_nothing_is_limited(monkeypatch):
    def refuse(*unused, **options):
        raise PermissionError

    monkeypatch.setattr(memory_limit.Path, "read_text", refuse)
    monkeypatch.setattr(memory_limit.machine, "free_memory", lambda: pytest.fail("it was limited"))
    memory_limit.limit_memory()


@pytest.mark.parametrize("state", ["cold", "cold-weights"])
def test_a_cold_row_says_so_and_is_right(state):
    with Session(threads=1, memory=state, host=Nobody()) as session:
        (row,) = session.run(parse_case("dense:64x256,u64"), "forward", ("numpy",), budget_s=0.1)
    assert row.status in ("OK", "NOISY"), row.reason
    assert row.state == state
    assert row.loops <= memory.MAX_FLUSHED_CALLS
    assert row.repeatable
    assert row.minor_faults is not None
    assert row.grown_bytes >= 0
