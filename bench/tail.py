"""The end of what a process says. The rest is dropped as it comes, so that a flood fills no disk and no memory."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import IO

KEPT_BYTES = 8192
LINE_CHARACTERS = 300
END_SECONDS = 1.0
"""How long the end of a process's output is waited for: its own children may hold the pipe for longer."""


class Tail:
    """Reads a pipe until it is closed, in a thread of its own, and remembers the last KEPT_BYTES."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._kept = b""
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def lines(self, count: int, *, has_ended: bool) -> list[str]:
        """The last lines, printable and at most LINE_CHARACTERS each; ``has_ended``: wait for what is still to come."""
        if has_ended:
            self._thread.join(END_SECONDS)
        found = self._kept.decode(errors="replace").strip().splitlines()[-count:]
        return ["".join(c for c in line if c.isprintable())[:LINE_CHARACTERS] for line in found]

    def _read(self, stream: IO[bytes]) -> None:
        with stream, contextlib.suppress(OSError):
            while part := os.read(stream.fileno(), 1 << 16):
                self._kept = (self._kept + part)[-KEPT_BYTES:]
