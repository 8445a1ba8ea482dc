"""The launches of a call as a CUDA graph: one launch in place of many, and none of them made by Python again.

Captured through the driver API (CUDA Driver API, Stream Management and Graph Management), so that the kernels stay
Numba's. Where it cannot be done, the reason is kept and the launches stay as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


class NotCaptured(RuntimeError):
    """No graph could be made; the message is the reason."""


class Launches:
    """What could not be captured, launched one by one; ``launched`` says why."""

    __slots__ = ("_run", "launched")

    def __init__(self, run: Callable[[], None], reason: str) -> None:
        self._run = run
        self.launched = f"launches: {reason}"

    def __call__(self) -> None:
        self._run()


class Graph:
    """An instantiated graph. Calling it enqueues it on the default stream; its addresses are those of the capture."""

    launched = "graph"

    def __init__(self, driver: Any, executable: Any, captured: Callable[[], None]) -> None:
        """``captured`` is kept, and with it the arrays whose addresses the graph has."""
        self._launch = driver.cuGraphLaunch
        self._executable = executable
        self._stream = driver.CUstream(0)
        self._captured = captured
        self._success = driver.CUresult.CUDA_SUCCESS
        weakref.finalize(self, driver.cuGraphExecDestroy, executable)

    def __call__(self) -> None:
        """Enqueue the whole of it. Raises RuntimeError with the driver's name for what went wrong."""
        error = self._launch(self._executable, self._stream)[0]
        if error != self._success:
            raise RuntimeError(f"cuGraphLaunch: {error.name}")


def capture(
    run: Callable[[], None],
    launches: int,
    launching_on: Callable[[Any], Any],
    driver: Any,
    external_stream: Callable[[int], Any],
) -> Graph:
    """The graph of what ``run`` launches while ``launching_on(stream)`` sends its launches to the captured stream.

    ``driver``: the module cuda.bindings.driver. ``launches``: how many kernels ``run`` must be seen to launch; what
    went to another stream is missing from the graph, and would never be computed. Raises NotCaptured.

    The stream is one that does not wait for the default stream, which nothing may touch during a capture. The capture
    is relaxed: memory that Python happens to free meanwhile would end a stricter one.
    """

    def ask(function: str, *arguments: Any) -> Any:
        error, *values = getattr(driver, function)(*arguments)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise NotCaptured(f"{function}: {error.name}")
        return values[0] if len(values) == 1 else tuple(values)

    stream = ask("cuStreamCreate", int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
    graph = None
    try:
        ask("cuStreamBeginCapture", stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            with launching_on(external_stream(int(stream))):
                run()
        except BaseException as error:
            _, graph = driver.cuStreamEndCapture(stream)
            if isinstance(error, Exception):
                raise NotCaptured(f"{type(error).__name__}: {error}") from error
            raise
        graph = ask("cuStreamEndCapture", stream)
        _, found = ask("cuGraphGetNodes", graph)
        if found != launches:
            raise NotCaptured(f"{found} of {launches} launches were captured")
        return Graph(driver, ask("cuGraphInstantiate", graph, 0), run)
    finally:
        if graph is not None:
            driver.cuGraphDestroy(graph)
        driver.cuStreamDestroy(stream)
