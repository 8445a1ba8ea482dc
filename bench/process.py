"""A process that is asked: reads requests from standard input, answers on what was standard output.

A request is one line of JSON, {"do": name, ...plain values}; its answer is one line, {...} or {"status", "reason"}.
Whatever libraries print goes to standard error. The process ends with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from impls import Unavailable
from impls.devices import is_lost, is_out_of_memory
from impls.wording import worded

Answer = dict[str, Any]


class Responder:
    """What answers: a subclass has a method do_NAME for every request, taking its values and returning the answer."""

    def answer(self, request: Answer) -> Answer:
        """Do what is asked. An exception is an answer: a status, and its text as the reason."""
        action: Callable[..., Answer] = getattr(self, f"do_{request.pop('do')}")
        try:
            return action(**request)
        except Exception as error:  # whatever a library or a kernel raises becomes a row
            return _failure(error)


def serve(responder: Responder) -> None:
    """Answer requests until standard input ends."""
    _end_with_parent()
    _be_the_first_to_go()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = _private_output()
    for line in sys.stdin:
        pipe.write(json.dumps(responder.answer(json.loads(line))) + "\n")
        pipe.flush()


def set_threads(library: Any, count: int) -> dict[str, int]:
    """Give every thread pool in this process the same size, and read back what is in force.

    ``library``: what may have ``set_threads(count)`` and ``threads()`` of its own, a plan's type or a module; or None.
    """
    if hasattr(library, "set_threads"):
        library.set_threads(count)
    if "cv2" in sys.modules:
        import cv2

        cv2.setNumThreads(count)
    if "numba" in sys.modules:
        import numba

        numba.set_num_threads(count)
    return threads_of(library)


def threads_of(library: Any) -> dict[str, int]:
    """The size of every thread pool in this process, by name."""
    pools: dict[str, int] = {}
    if "cv2" in sys.modules:
        import cv2

        pools["opencv"] = cv2.getNumThreads()
    if "numba" in sys.modules:
        import numba

        pools["numba"] = numba.get_num_threads()
    pools |= _native_pools()
    if hasattr(library, "threads"):
        pools |= library.threads()
    return pools


def _native_pools() -> dict[str, int]:
    """Threads of the BLAS and OpenMP libraries in this process; unknown, and left out, without threadpoolctl."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return {}
    return {str(pool["internal_api"]): int(pool["num_threads"]) for pool in threadpool_info()}


def _failure(error: Exception) -> Answer:
    """An exception as an answer. After CRASHED this process is to be replaced: its device is gone."""
    if isinstance(error, Unavailable):
        return {"status": "UNAVAILABLE", "reason": worded(error, named=False)}
    text = worded(error)
    if is_lost(error):
        return {"status": "CRASHED", "reason": text}
    if is_out_of_memory(error):
        return {"status": "OUT_OF_MEMORY", "reason": worded(error, named=False) or "memory ran out"}
    return {"status": "ERROR", "reason": text}


def _end_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends; elsewhere the closed pipe does it."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if hasattr(select, "poll"):  # a parent that had ended by then sends no signal
        poll = select.poll()
        poll.register(sys.stdin, 0)
        if any(event & select.POLLHUP for _, event in poll.poll(0)):
            sys.exit("the parent is gone")


def _be_the_first_to_go() -> None:
    """Where memory runs out, the system is to end this process and not the one that keeps the results."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _private_output() -> TextIO:
    """The pipe to the parent; from here on whatever is printed goes to standard error."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return pipe
