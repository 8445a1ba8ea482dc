"""Launches become a graph, or stay as they are with the reason: against a driver that writes down what it is asked."""

import gc
from contextlib import contextmanager
from enum import Enum, IntEnum
from types import SimpleNamespace

import pytest

from impls import cuda_graph, cuda_setup


class Result(Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class Flags(IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class FakeDriver:
    """cuda.bindings.driver: every function returns a tuple that begins with the error."""

    CUresult = Result
    CUstream_flags = Flags
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed")

    def __init__(self, nodes=2, fails=None):
        self.asked = []
        self.nodes = nodes
        self.fails = fails

    def CUstream(self, handle):
        return handle

    def __getattr__(self, function):
        if not function.startswith("cu"):
            raise AttributeError(function)
        values = {
            "cuStreamCreate": (7,),
            "cuStreamEndCapture": ("graph",),
            "cuGraphGetNodes": ([], self.nodes),
            "cuGraphInstantiate": ("executable",),
        }

        def call(*arguments):
            self.asked.append((function, *arguments))
            if function == self.fails:
                return (Result.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None)
            return (Result.CUDA_SUCCESS, *values.get(function, ()))

        return call


class Kernels:
    """Two launches on whatever stream is set."""

    def __init__(self):
        self.stream = 0
        self.launched = []

    @contextmanager
    def launching_on(self, stream):
        self.stream = stream
        yield
        self.stream = 0

    def __call__(self):
        self.launched += [self.stream] * 2


def captured(driver, run=None, launches=2):
    kernels = Kernels()
    return cuda_graph.capture(run or kernels, launches, kernels.launching_on, driver, lambda handle: f"stream {handle}")


def test_launches_are_captured_on_a_stream_of_their_own_and_replayed_on_the_default_one():
    driver, kernels = FakeDriver(), Kernels()
    graph = cuda_graph.capture(kernels, 2, kernels.launching_on, driver, lambda handle: f"stream {handle}")
    assert kernels.launched == ["stream 7", "stream 7"]
    assert driver.asked == [
        ("cuStreamCreate", 1),
        ("cuStreamBeginCapture", 7, "relaxed"),
        ("cuStreamEndCapture", 7),
        ("cuGraphGetNodes", "graph"),
        ("cuGraphInstantiate", "graph", 0),
        ("cuGraphDestroy", "graph"),
        ("cuStreamDestroy", 7),
    ]
    driver.asked.clear()
    graph()
    graph()
    assert driver.asked == [("cuGraphLaunch", "executable", 0)] * 2
    assert graph.launched == "graph"


def test_a_graph_is_given_back_with_its_call():
    driver = FakeDriver()
    graph = captured(driver)
    del graph
    gc.collect()
    assert driver.asked[-1] == ("cuGraphExecDestroy", "executable")


def test_a_launch_that_went_to_another_stream_is_missed():
    with pytest.raises(cuda_graph.NotCaptured, match="1 of 2 launches were captured"):
        captured(FakeDriver(nodes=1))


@pytest.mark.parametrize(
    "function",
    ["cuStreamCreate", "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphGetNodes", "cuGraphInstantiate"],
)
def test_what_the_driver_refuses_is_the_reason_and_nothing_is_left_behind(function):
    driver = FakeDriver(fails=function)
    with pytest.raises(cuda_graph.NotCaptured, match=f"{function}: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        captured(driver)
    names = [name for name, *_ in driver.asked]
    assert ("cuStreamDestroy" in names) == (function != "cuStreamCreate")
    assert ("cuGraphDestroy" in names) == (function in ("cuGraphGetNodes", "cuGraphInstantiate"))


def test_a_launch_that_raises_ends_the_capture():
    def run():
        raise ValueError("no such block")

    driver = FakeDriver()
    with pytest.raises(cuda_graph.NotCaptured, match="ValueError: no such block"):
        captured(driver, run)
    assert [name for name, *_ in driver.asked][-3:] == ["cuStreamEndCapture", "cuGraphDestroy", "cuStreamDestroy"]


def test_a_replay_that_fails_raises_the_drivers_name_for_it():
    driver = FakeDriver(fails="cuGraphLaunch")
    driver_error = "cuGraphLaunch: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    with pytest.raises(RuntimeError, match=driver_error):
        captured(driver)()


def test_launches_that_are_no_graph_say_why():
    kernels = Kernels()
    launches = cuda_graph.Launches(kernels, "an old driver")
    launches()
    assert kernels.launched == [0, 0]
    assert launches.launched == "launches: an old driver"


def test_a_plan_computes_by_its_launches_where_no_graph_can_be_made():
    """No driver, or, with one, a call that launches nothing on the captured stream."""
    called = []
    run = cuda_setup.captured(lambda: called.append(1), launches=1)
    run()
    assert called[-1:] == [1]
    assert run.launched.startswith("launches: ")
