"""A device that is not there: a thread that does what is enqueued, in order, with a clock and memory of its own.

Plans on it, each with the one fault in its name, are registered as another package's would be and run in workers;
tests/test_zoo.py says which status each must get.
"""

import functools
import queue
import threading
import time
from pathlib import Path

import numpy as np

from impls import reference
from impls.contract import DIRECT, FLOAT32, Implementation, Plan
from impls.devices import Device

WORK_SECONDS = 0.002
MARKER = Path(__file__).with_name("device_is_gone")


class Stream:
    """What is enqueued is done one after the other, by a thread."""

    def __init__(self):
        self._todo = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def enqueue(self, action):
        self._todo.put(action)

    def wait(self):
        self._todo.join()

    def _work(self):
        while True:
            self._todo.get()()
            self._todo.task_done()


@functools.cache
def stream(number):
    return Stream()


def wait_for_all():
    for number in (0, 1):
        stream(number).wait()


class Event:
    def __init__(self):
        self.happened = threading.Event()
        stream(0).enqueue(self._happen)

    def _happen(self):
        self.time = time.perf_counter()
        self.happened.set()


class Timer:
    def mark(self):
        return Event()

    def passed(self, mark):
        return mark.happened.is_set()

    def seconds(self, first, last):
        last.happened.wait()
        return last.time - first.time

    def hold(self, seconds):
        stream(0).enqueue(lambda: time.sleep(seconds))

    def flush(self):
        stream(0).enqueue(lambda: None)


def get(source, out):
    wait_for_all()
    np.copyto(out, source)


def put(target, source):
    wait_for_all()
    np.copyto(target, source)


def device(**changes):
    return Device(
        **{
            "name": "thread",
            "missing": lambda: None,
            "put": np.copy,
            "get": get,
            "set": put,
            "wait": wait_for_all,
            "timer": Timer,
        }
        | changes
    )


class Right(Plan):
    """No fault."""

    device = device()
    offers = ("forward",)
    stream = 0

    def prepare(self):
        self._exact = reference("conv2d").plan(self.spec, ("forward",))

    def forward(self, x, w, b, out):
        stream(self.stream).enqueue(lambda: self.work(x, w, b, out))

    def work(self, x, w, b, out):
        y = np.empty(self.spec.y_shape)
        self._exact.forward(x, w, b, y)
        time.sleep(WORK_SECONDS)
        out[...] = y


class WaitsForNothing(Right):
    device = device(wait=lambda: None)


class OnAnotherStream(Right):
    stream = 1


class WritesBesideItsOutput(Right):
    def work(self, x, w, b, out):
        super().work(x, w, b, out)
        np.lib.stride_tricks.as_strided(out.reshape(-1), (out.size + 1,))[-1] = 1


class WritesToItsInput(Right):
    def work(self, x, w, b, out):
        super().work(x, w, b, out)
        x[0, 0, 0, 0] += 1


class LeavesOneOut(Right):
    def work(self, x, w, b, out):
        last = out[-1, -1, -1, -1]
        super().work(x, w, b, out)
        out[-1, -1, -1, -1] = last


class ComputesWhenBound(Right):
    """And never again."""

    def bind(self, direction, *arrays):
        call = super().bind(direction, *arrays)
        call()
        wait_for_all()
        call.run = lambda: None
        return call


class LosesItsDevice(Right):
    device = device(missing=lambda: "it fell off the bus" if MARKER.exists() else None)

    def forward(self, x, w, b, out):
        MARKER.touch()
        raise RuntimeError("[700] Call to cuCtxSynchronize results in CUDA_ERROR_ILLEGAL_ADDRESS")


class DoesNotFit(Right):
    device = device(free_bytes=lambda: 100_000)


class KeepsTensorsOfItsOwn(Right):
    """As a competitor's library does: the device's arrays are the host's, and inputs were copied before the call."""

    device = device(put=lambda array: array)


class HasABrokenClock(Right):
    device = device(timer=lambda: 1 // 0)


RECORDS = {
    name: Implementation(kind, DIRECT, FLOAT32)
    for name, kind in {
        "right": Right,
        "waits_for_nothing": WaitsForNothing,
        "on_another_stream": OnAnotherStream,
        "writes_beside_its_output": WritesBesideItsOutput,
        "writes_to_its_input": WritesToItsInput,
        "leaves_one_out": LeavesOneOut,
        "computes_when_bound": ComputesWhenBound,
        "loses_its_device": LosesItsDevice,
        "does_not_fit": DoesNotFit,
        "keeps_tensors_of_its_own": KeepsTensorsOfItsOwn,
        "has_a_broken_clock": HasABrokenClock,
    }.items()
}
"""The records, by name."""

globals().update(RECORDS)
