"""Folders of arrays that processes share, and what is left of those whose program was killed.

Such a folder is usually in memory, and nobody gives that back when its program is gone. So each holds a file that its
program keeps locked; the system unlocks it when the program ends, however it does, and the next one to make a folder
removes those that nobody holds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

PREFIX = "layerbench-"
LOCK = "lock"


class SharedFolder:
    """A new folder for as long as this object is used; ``close`` removes it with everything in it."""

    def __init__(self, parent: Path | None = None) -> None:
        """In ``parent``, or in memory that processes share where the system has a folder for it."""
        parent = parent or Path(_in_memory() or tempfile.gettempdir())
        _remove_leftovers(parent)
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
        self._lock = _locked(self.path)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _in_memory() -> str | None:
    """Memory that processes share, or None for the temporary folder."""
    folder = "/dev/shm"
    return folder if os.path.isdir(folder) and os.access(folder, os.W_OK) else None


def _locked(folder: Path) -> IO[bytes]:
    """The folder's file, open and locked. It gets its name when it is locked, so that none is found in between."""
    unnamed = folder / "new"
    file = unnamed.open("wb")
    _lock(file)
    unnamed.rename(folder / LOCK)
    return file


def _lock(file: IO[bytes]) -> bool:
    """Whether nobody else holds it, and this process does now. Where files cannot be locked, somebody may hold it."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders whose program is gone. What another user left is not ours to remove."""
    for path in parent.glob(f"{PREFIX}*/{LOCK}"):
        try:
            with path.open("r+b") as file:
                if _lock(file):
                    shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:
            continue
