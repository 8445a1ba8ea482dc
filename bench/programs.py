"""Programs of ours that print lines of JSON, each run apart so that no crash of a driver reaches who asks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.machine import ROOT
from bench.results import Failure


def records(
    module: Sequence[str], seconds: float, prefix: Sequence[str] = (), settings: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """The lines of JSON that a module prints as a program of its own, as they come.

    ``settings``: environment variables beside those that there are. Raises Failure if it ends with an error, or not
    within ``seconds``; no process is left behind.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    environment |= settings or {}
    late = threading.Event()
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [*prefix, sys.executable, "-m", *module],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        ) as process,
    ):

        def stop() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(max(seconds, 0), stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(b"{"):
                    yield json.loads(line)
            code = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                _kill(process)
        if late.is_set():
            raise Failure("TIMEOUT", f"{module[0]} was cut off after {seconds:.0f} s")
        if code:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-3:]
            raise Failure("CRASHED", " | ".join([f"{module[0]} ended with status {code}", *last]))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
