"""The clocks, the host's and a device's, are read exactly where they should be."""

from functools import partial

import pytest

from bench import timing


class Tape:
    """Writes down what happens, and gives out times."""

    def __init__(self, times):
        self.events = []
        self.times = iter(times)

    def call(self, name="call"):
        return lambda: self.events.append(name)

    def wait(self):
        self.events.append("wait")

    def clock(self):
        self.events.append("clock")
        return next(self.times)


class FakeTimer:
    """A device's clock on the same tape; ``passed`` says in turn what the first marks are found to be."""

    def __init__(self, tape, spans=(), passed=()):
        self.tape = tape
        self.spans = iter(spans)
        self.answers = iter(passed)
        self.held = []

    def mark(self):
        self.tape.events.append("mark")
        return "mark"

    def passed(self, mark):
        self.tape.events.append("passed?")
        return next(self.answers)

    def seconds(self, first, last):
        self.tape.events.append("span")
        return next(self.spans)

    def hold(self, seconds):
        self.tape.events.append("hold")
        self.held.append(seconds)

    def flush(self):
        self.tape.events.append("flush")


def test_a_sample_warms_up_outside_the_clock_and_waits_inside():
    tape = Tape([10.0, 16.0])
    loop = timing.sample([tape.call()], tape.wait, loops=3, clock=tape.clock)
    assert tape.events == ["call", "wait", "clock", "call", "call", "call", "wait", "clock"]
    assert loop == timing.Loop(host=2.0, device=None)


def test_a_sample_without_warm_up_starts_with_the_clock():
    tape = Tape([0.0, 1.0])
    timing.sample([tape.call()], tape.wait, loops=1, warm=False, clock=tape.clock)
    assert tape.events == ["clock", "call", "wait", "clock"]


def test_a_sample_rotates_over_its_calls():
    tape = Tape([0.0, 1.0])
    timing.sample([tape.call(name) for name in "abc"], tape.wait, loops=5, warm=False, clock=tape.clock)
    assert tape.events == ["clock", "a", "b", "c", "a", "b", "wait", "clock"]


@pytest.mark.parametrize(
    ("seconds", "loops"),
    [(1.0, 1), (0.010, 1), (0.004, 3), (1e-6, 10_000), (0.0, timing.MAX_LOOPS)],
)
def test_short_calls_are_looped_until_a_sample_is_long_enough(seconds, loops):
    assert timing.loops_for(seconds, target=0.010) == loops


def test_the_marks_of_the_device_lie_within_the_readings_of_the_host():
    tape = Tape([10.0, 16.0])
    timer = FakeTimer(tape, spans=[4.5])
    loop = timing.sample([tape.call()], tape.wait, loops=3, warm=False, clock=tape.clock, timer=timer)
    assert tape.events == ["clock", "mark", "call", "call", "call", "mark", "wait", "clock", "span"]
    assert loop == timing.Loop(host=2.0, device=1.5)
    assert loop.longer == 2.0


def test_calls_queue_up_behind_a_device_that_is_held():
    tape = Tape([0.0, 1.0])
    timer = FakeTimer(tape, spans=[6.0], passed=[False])
    found = timing.queued([tape.call("a"), tape.call("b")], tape.wait, 3, timer, 0.25, clock=tape.clock)
    assert tape.events == ["clock", "hold", "mark", "a", "b", "a", "mark", "passed?", "clock", "wait", "span"]
    assert found == timing.Queued(seconds=2.0, hidden=True, held=0.25)


def test_every_call_on_cold_caches_is_timed_alone():
    tape = Tape([0.0, 1.0])
    timer = FakeTimer(tape, spans=[3.0, 5.0], passed=[False])
    found = timing.queued([tape.call()], tape.wait, 2, timer, flush=True, clock=tape.clock)
    cold = ["flush", "mark", "call", "mark"]
    assert tape.events == ["clock", "hold", *cold, *cold, "passed?", "clock", "wait", "span", "span"]
    assert found.seconds == 4.0


def test_a_device_that_was_not_held_for_long_enough_is_held_for_longer():
    tape = Tape([0.0, 0.002, 0.0, 0.002])
    timer = FakeTimer(tape, spans=[9.0, 1.0], passed=[True, False])
    found = timing.queued([tape.call()], tape.wait, 1, timer, 0.001, clock=tape.clock)
    assert timer.held == [0.001, 0.006]
    assert found == timing.Queued(seconds=1.0, hidden=True, held=0.006)


def test_what_cannot_be_enqueued_in_time_is_marked():
    tape = Tape([0.0, 1.0] * timing.HOLD_ATTEMPTS)
    timer = FakeTimer(tape, spans=[1.0] * 9, passed=[True] * 9)
    found = timing.queued([tape.call()], tape.wait, 1, timer, clock=tape.clock)
    assert not found.hidden
    assert max(timer.held) == timing.MAX_HOLD_SECONDS


def test_no_more_calls_are_queued_than_a_driver_takes():
    tape = Tape([0.0, 1.0])
    timer = FakeTimer(tape, spans=[timing.MAX_QUEUED], passed=[False])
    found = timing.queued([tape.call()], tape.wait, 10_000, timer, clock=tape.clock)
    assert tape.events.count("call") == timing.MAX_QUEUED
    assert found.seconds == 1.0


@pytest.mark.parametrize(
    ("host", "device", "loops", "wrong"),
    [
        ([0.010] * 3, [0.00999] * 3, 1, None),
        ([0.010] * 3, [0.0101] * 3, 1, None),
        ([0.010] * 3, [0.0104] * 3, 1, "was not waited for"),
        ([0.00001] * 3, [0.000012] * 3, 1, None),
        ([0.00001] * 3, [0.000012] * 3, 1000, "was not waited for"),
        ([0.010] * 3, [0.004] * 3, 1, "not in the order of the stream"),
        ([0.010, 0.010, 9.0], [0.0099, 0.0099, 0.01], 1, None),
        ([], [], 1, None),
        ([0.01], [], 1, None),
    ],
    ids=[
        "they agree",
        "two clocks drift",
        "the device works on after the host has waited",
        "a short call within the resolution",
        "a short call in a long loop",
        "the work is elsewhere",
        "one interrupted round",
        "nothing was timed",
        "no device clock",
    ],
)
def test_two_clocks_that_cannot_both_be_right_are_told(host, device, loops, wrong):
    found = timing.disagreement(host, device, loops)
    assert found is None if wrong is None else wrong in found


def test_each_call_after_its_preparation_is_timed_alone():
    events = []
    clock = iter([0.0, 2.0, 10.0, 13.0, 20.0, 24.0])

    def read():
        events.append("clock")
        return next(clock)

    steps = [(partial(events.append, f"flush {i}"), partial(events.append, f"call {i}")) for i in range(2)]
    found = timing.prepared(steps, partial(events.append, "wait"), loops=3, clock=read)
    assert events == [e for i in (0, 1, 0) for e in (f"flush {i}", "clock", f"call {i}", "wait", "clock")]
    assert found.host == 3.0
