"""A folder in shared memory is there for as long as its program, and no longer than until the next one."""

import os
import subprocess
import sys

import pytest

from bench import shared_folders
from bench.shared_folders import SharedFolder, folders, owner

pytest.importorskip("fcntl", reason="this system locks no files")


@pytest.fixture(autouse=True)
def parent(tmp_path, monkeypatch):
    """A folder where no other program has its own."""
    monkeypatch.setattr(shared_folders, "_parent", lambda: tmp_path)
    return tmp_path


def _left_by_a_killed_program(parent):
    """A folder whose program was killed while it was in use; its name."""
    program = (
        "import os, pathlib, signal, sys\nfrom bench import shared_folders\n"
        "shared_folders._parent = lambda: pathlib.Path(sys.argv[1])\n"
        "folder = shared_folders.SharedFolder()\n(folder.path / 'array').write_bytes(bytes(100))\n"
        "print(folder.path, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, parent], capture_output=True, text=True, check=False)
    return parent / done.stdout.strip().rpartition("/")[2]


def test_what_a_killed_program_left_is_removed_by_the_next(parent):
    left = _left_by_a_killed_program(parent)
    assert (left / "array").exists()
    made = SharedFolder()
    assert not left.exists()
    made.close()


def test_a_program_that_lives_keeps_its_folder(parent):
    first, second = SharedFolder(), SharedFolder()
    assert first.path.exists()
    assert set(folders()) == {first.path, second.path}
    assert owner(first.path) == os.getpid()
    for each in (first, second):
        each.close()
    assert folders() == ()


def test_a_folder_without_a_lock_is_its_owners_while_that_lives(parent):
    own, dead = parent / f"layerbench-{os.getpid()}-a", parent / "layerbench-999999999-b"
    for path in (own, dead, parent / "layerbench-of-somebody-else"):
        path.mkdir()
    SharedFolder().close()
    assert own.exists()
    assert not dead.exists()
    assert (parent / "layerbench-of-somebody-else").exists()
