"""Arrays share a file, and what is written around them is seen, on a device too."""

import numpy as np
import pytest

from bench import arena
from impls.devices import CPU, Device

SHAPES = ((2, 3), None, (5,))


def arrays():
    return (np.arange(6, dtype=np.float32).reshape(2, 3), None, np.arange(5, dtype=np.float32))


def test_arrays_come_back_from_their_file(tmp_path):
    arena.write(tmp_path / "a", arrays(), "float32")
    opened = arena.open_private(tmp_path / "a", SHAPES, "float32")
    assert np.array_equal(opened.arrays[0], arrays()[0])
    assert opened.arrays[1] is None
    assert np.array_equal(opened.arrays[2], arrays()[2])
    assert opened.guards_intact()


def test_arrays_start_at_a_cache_line():
    assert all(a.ctypes.data % 64 == 0 for a in arena.allocate(SHAPES, "float32").arrays if a is not None)


def test_a_private_change_is_seen_and_does_not_reach_the_file(tmp_path):
    arena.write(tmp_path / "a", arrays(), "float32")
    opened = arena.open_private(tmp_path / "a", SHAPES, "float32")
    assert arena.unchanged(opened, tmp_path / "a")
    opened.arrays[2][0] = 7
    assert not arena.unchanged(opened, tmp_path / "a")
    again = arena.open_private(tmp_path / "a", SHAPES, "float32")
    assert again.arrays[2][0] == 0


def test_a_shared_change_reaches_the_file(tmp_path):
    arena.create(tmp_path / "a", SHAPES, "float32")
    arena.open_shared(tmp_path / "a", SHAPES, "float32").arrays[0][...] = 3
    assert (arena.open_private(tmp_path / "a", SHAPES, "float32").arrays[0] == 3).all()


@pytest.mark.parametrize("offset", ["before", "between", "after"])
def test_a_write_outside_is_seen(offset):
    block = arena.allocate(SHAPES, "float32")
    first = block.arrays[0].ctypes.data - block.block.ctypes.data
    place = {"before": first - 1, "between": first + 24, "after": block.block.size - 1}[offset]
    assert block.guards_intact()
    block.block[place] = 0
    assert not block.guards_intact()


def test_poison_is_not_a_number():
    block = arena.allocate(SHAPES, "float32")
    block.poison()
    assert np.isnan(block.arrays[0]).all()
    assert block.guards_intact()


def test_a_file_of_another_size_is_refused(tmp_path):
    arena.write(tmp_path / "a", arrays(), "float32")
    with pytest.raises(ValueError, match="cannot hold"):
        arena.open_private(tmp_path / "a", ((999, 999),), "float32")


ELSEWHERE = Device(
    "elsewhere",
    missing=lambda: None,
    put=np.copy,
    get=lambda source, out: np.copyto(out, source),
    set=np.copyto,
    wait=lambda: None,
)


def test_on_the_cpu_an_arena_is_resident_as_it_is():
    host = arena.allocate(SHAPES, "float32")
    there = arena.put(host, CPU)
    assert there.block is host.block
    assert [None if a is None else a.ctypes.data for a in there.arrays] == [
        None if a is None else a.ctypes.data for a in host.arrays
    ]


def test_on_a_device_arrays_are_views_of_one_block_between_guards():
    host = arena.allocate(SHAPES, "float32")
    there = arena.put(host, ELSEWHERE)
    there.poison()
    assert np.isnan(there.arrays[0]).all()
    assert [None if a is None else a.shape for a in there.arrays] == list(SHAPES)
    there.arrays[0][...] = 7
    assert np.isnan(host.arrays[0]).all()
    there.fetch()
    assert (host.arrays[0] == 7).all()
    assert host.guards_intact()


def test_an_overrun_on_a_device_comes_back_with_its_block():
    host = arena.allocate(SHAPES, "float32")
    there = arena.put(host, ELSEWHERE)
    there.poison()
    np.lib.stride_tricks.as_strided(there.arrays[2], (6,))[5] = 0
    assert host.guards_intact()
    there.fetch()
    assert not host.guards_intact()
