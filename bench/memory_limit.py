"""A limit on what this process may allocate: too much is a MemoryError here, and not the end of another process."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

from bench import machine


def limit_memory() -> None:
    """Allow this process to allocate as much as is free now, and no more. Linux alone counts what it takes.

    It is RLIMIT_DATA that is set, because RLIMIT_AS counts what frameworks only reserve. Called again, it is set anew.
    """
    if sys.platform != "linux":
        return
    import resource

    status = ""
    with contextlib.suppress(OSError):  # /proc may be hidden
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
    if not found:
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wished = int(found[1]) * 1024 + machine.free_memory()
    resource.setrlimit(resource.RLIMIT_DATA, (wished if most == resource.RLIM_INFINITY else min(wished, most), most))
