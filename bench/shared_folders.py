"""Folders of arrays that processes share, and what is left of those whose program was killed.

Such a folder is usually in memory, and nobody gives that back when its program is gone. So each holds a file that its
program keeps locked; the system unlocks it when the program ends, however it does, and the next one to make a folder
removes those that nobody holds.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import IO

PREFIX = "layerbench-"
NAME = re.compile(rf"{PREFIX}(\d+)-")
"""With the number of the process that made it."""
LOCK = "lock"


class SharedFolder:
    """A new folder for as long as this object is used; ``close`` removes it with everything in it."""

    def __init__(self) -> None:
        """In memory that processes share, where the system has a folder for it; else in the temporary folder."""
        for each in folders():
            if _is_left_over(each):
                shutil.rmtree(each, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_parent()))
        unnamed = self.path / "new"
        self._lock = unnamed.open("wb")
        _lock(self._lock)
        unnamed.rename(self.path / LOCK)  # so that nobody finds it unlocked

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def folders() -> tuple[Path, ...]:
    """Those that there are, of whatever program."""
    return tuple(path for path in _parent().glob(f"{PREFIX}*") if NAME.match(path.name))


def owner(folder: Path) -> int:
    """The number of the process that made it."""
    found = NAME.match(folder.name)
    assert found
    return int(found[1])


def _parent() -> Path:
    folder = "/dev/shm"
    return Path(folder if os.path.isdir(folder) and os.access(folder, os.W_OK) else tempfile.gettempdir())


def _is_left_over(folder: Path) -> bool:
    """Whether its program is gone; False where nobody can say, as about another user's.

    The lock tells, and not the owner's number, which means nothing in another container that shares the memory. Only
    of one that was killed before it had a lock the number must do.
    """
    try:
        with (folder / LOCK).open("r+b") as file:
            return _lock(file)
    except FileNotFoundError:
        return Path("/proc/self").exists() and not Path(f"/proc/{owner(folder)}").exists()
    except OSError:
        return False


def _lock(file: IO[bytes]) -> bool:
    """Whether nobody else held the file; it is locked then. Where the system locks none, somebody may hold it."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
