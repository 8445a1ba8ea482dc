"""The clock is read exactly where it should be."""

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


def test_a_single_call_is_timed_from_launch_to_idle():
    tape = Tape([1.0, 1.5])
    assert timing.once(tape.call(), tape.wait, tape.clock) == 0.5
    assert tape.events == ["clock", "call", "wait", "clock"]


@pytest.mark.parametrize(
    ("seconds", "loops"),
    [(1.0, 1), (0.010, 1), (0.004, 3), (1e-6, 10_000), (0.0, timing.MAX_LOOPS)],
)
def test_short_calls_are_looped_until_a_sample_is_long_enough(seconds, loops):
    assert timing.loops_for(seconds, target=0.010) == loops
