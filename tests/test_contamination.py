"""What else the machine did is read from its files, and decides which rounds count; here both are made up."""

import dataclasses
from itertools import pairwise

import pytest

from bench import measure
from bench.contamination import FOREIGN, SLOWED, STOLEN, THROTTLED, Reading, System, Watch, dirt
from bench.results import Row
from impls import parse_case

GROUPS = {
    "version 2": ("0::/job\n", "fs/cgroup/job/cpu.stat"),
    "version 2 in a container": ("0::/job\n", "fs/cgroup/cpu.stat"),
    "version 1": ("4:cpu,cpuacct:/job\n1:memory:/other\n", "fs/cgroup/cpu,cpuacct/job/cpu.stat"),
    "version 1 in a container": ("4:cpu:/job\n", "fs/cgroup/cpu/cpu.stat"),
}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path):
    """A machine of two cores that has worked for 3.5 s, of which process 7 worked for 2 s."""
    write(tmp_path / "proc/stat", "cpu  100 50 150 9000 70 20 30 40 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n")
    write(tmp_path / "proc/loadavg", "1.25 0.50 0.10 2/300 4000\n")
    write(tmp_path / "proc/7/stat", "7 (a) b) R 1 7 7 0 -1 4194304 900 0 0 0 150 50 0 0 20 0 5 0 1 2 3\n")
    write(tmp_path / "proc/cpuinfo", "cpu MHz\t\t: 2100.5\ncpu MHz\t\t: 2600.0\n")
    return tmp_path


def test_a_look_reads_what_the_machine_says(root):
    found = System(root, clock=lambda: 12.0, tick=0.01).read(frozenset({7, 8}))
    assert found.seconds == 12
    assert found.load == 1.25
    assert found.busy_s == pytest.approx(3.5)
    assert found.steal_s == pytest.approx(0.4)
    assert found.own_s == {7: pytest.approx(2.0), 8: 0.0}
    assert found.mhz == 2600
    assert found.throttled is None


@pytest.mark.parametrize("name", GROUPS)
def test_throttling_is_read_of_every_kind_of_control_group(root, name):
    groups, place = GROUPS[name]
    write(root / "proc/self/cgroup", groups)
    write(root / "sys" / place, "nr_periods 10\nnr_throttled 3\nthrottled_time 77\n")
    assert System(root).read(frozenset()).throttled == 3


def test_a_frequency_driver_knows_better_than_cpuinfo(root):
    for core, kilohertz in enumerate((3_400_000, 800_000)):
        write(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{kilohertz}\n")
    assert System(root).read(frozenset()).mhz == 3400


def test_a_system_without_such_files_says_nothing(tmp_path):
    assert System(tmp_path).read(frozenset({1})) is None
    watch = Watch(System(tmp_path), lambda: frozenset({1}))
    assert not watch.is_seeing
    assert not watch.look()
    assert watch.record() == {}


def two_looks(seconds, foreign, **own):
    """Two looks between which others worked for so long, and each of ours as said."""
    before = Reading(0.0, busy_s=0.0, own_s=dict.fromkeys(own, 0.0))
    return before, Reading(seconds, busy_s=foreign + sum(own.values()), own_s=own)


@pytest.mark.parametrize(("foreign", "is_seen"), [(0.079, False), (0.095, True)])
def test_an_error_of_a_tick_is_let_pass_of_those_alone_who_worked(foreign, is_seen):
    """Of thirty workers one measures, and the others are stopped."""
    idle = {f"idle {i}": 0.0 for i in range(29)}
    assert bool(dirt(*two_looks(0.5, foreign, worker=0.3, **idle))) == is_seen


def test_foreign_work_that_hides_in_the_ticks_of_short_rounds_shows_in_a_window_and_marks_all_of_it():
    """A fifth of a core in twenty rounds of 20 ms; thirty clean ones follow."""
    readings = [Reading(0.02 * i, busy_s=0.0041 * min(i, 20), own_s={7: 0.0}) for i in range(51)]
    assert not any(dirt(*pair) for pair in pairwise(readings))
    watch = Watch(Script(*readings), frozenset)
    assert [watch.look() for _ in range(50)] == [*[0] * 9, 10, *[0] * 9, 10, *[0] * 30]
    assert watch.record()["dirt"][FOREIGN]["rounds"] == 20


def test_a_clock_is_held_against_the_highest_of_the_watch_however_slowly_it_falls():
    speeds = (2000.0, 3000.0, 2700.0, 2450.0, 2390.0)
    watch = Watch(Script(*(Reading(float(i), mhz=mhz) for i, mhz in enumerate(speeds))), frozenset)
    assert [watch.look() for _ in speeds[1:]] == [0, 0, 0, 1]
    assert watch.record()["dirt"][SLOWED]["most"] == pytest.approx(1 - 2390 / 3000)


def a_second_later(**values):
    """Two looks, a second apart, at a machine on which only we work, and what differs."""
    clean = {"busy_s": 1.0, "steal_s": 0.0, "throttled": 0, "mhz": 3000.0, "own_s": {7: 1.0}}
    return Reading(10.0, busy_s=0.0, steal_s=0.0, throttled=0, mhz=3000.0, own_s={7: 0.0}), Reading(
        11.0, **(clean | values)
    )


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, {}),
        ({"busy_s": 1.1}, {}),
        ({"busy_s": 1.5}, {FOREIGN: 0.5}),
        ({"own_s": {7: 0.5}}, {FOREIGN: 0.5}),
        ({"busy_s": 1.5, "own_s": {8: 1.0}}, {}),
        ({"steal_s": 0.02}, {}),
        ({"steal_s": 0.1}, {STOLEN: 0.1}),
        ({"throttled": 2}, {THROTTLED: 2}),
        ({"throttled": None, "steal_s": None, "mhz": None}, {}),
        ({"mhz": 2500.0}, {}),
        ({"mhz": 1500.0}, {SLOWED: 0.5}),
    ],
)
def test_a_round_is_dirty_beyond_each_threshold_and_clean_below(values, found):
    assert dirt(*a_second_later(**values)) == pytest.approx(found)


def test_without_two_looks_nothing_is_judged():
    before, after = a_second_later(busy_s=9.0)
    assert dirt(None, after) == dirt(before, None) == dirt(after, before) == {}


class Script:
    """A machine that says what it was told to say."""

    def __init__(self, *readings):
        self.readings = list(readings)

    def read(self, own):
        return self.readings.pop(0)


def test_a_watch_keeps_the_first_and_last_look_and_the_most_of_every_kind():
    steal = (0.0, 0.0, 0.5, 0.6)
    watch = Watch(Script(*(Reading(float(i), steal_s=s) for i, s in enumerate(steal))), frozenset)
    assert [watch.look() for _ in range(3)] == [False, True, True]
    record = watch.record()
    assert record["dirt"] == {STOLEN: {"rounds": 2, "most": 0.5}}
    assert (record["before"]["steal_s"], record["after"]["steal_s"]) == (0.0, 0.6)


def contender(name, *dirty):
    row = Row("dense", "forward", "1x1,u1", name, "cpu", False, "gemm", "float32", "OK")
    return measure.Contender(row, taken=[measure.Taken(float(i), {}, is_dirty=d) for i, d in enumerate(dirty)])


def test_dirty_rounds_are_set_aside_where_enough_are_clean():
    one, other = (contender(name, False, True, False, False) for name in "ab")
    measure._count_enough([one, other])
    measure._keep(one, "budget", None, Watch(Script(Reading(0.0)), frozenset))
    assert one.samples == other.samples == [0.0, 2.0, 3.0]
    assert (one.row.samples_s, one.row.aside_s, one.row.dirty_samples) == ((0.0, 2.0, 3.0), (1.0,), 1)


def test_dirty_rounds_count_for_all_where_one_has_too_few_clean_ones():
    one, other = contender("a", False, False, False, False), contender("b", True, False, True)
    measure._count_enough([one, other])
    measure._keep(other, "budget", None, Watch(Script(Reading(0.0)), frozenset))
    assert (other.row.samples_s, other.row.aside_s, other.row.dirty_samples) == ((0.0, 1.0, 2.0), (), 2)
    assert one.counts_dirty


def test_where_dirty_rounds_count_nobody_has_samples_after_a_round_that_went_on_without_it():
    """The slow one was left out of the fourth and fifth round, and came back when they turned out to be dirty."""
    fast, slow = contender("fast", False, False, *[True] * 4), contender("slow", False, False, True)
    slow.leave_out()
    slow.taken.append(measure.Taken(5.0, {}, is_dirty=True))
    measure._count_enough([fast, slow])
    assert [len(c.samples) for c in (fast, slow)] == [6, 3]
    assert fast.samples[:3] == slow.samples == [0.0, 1.0, 2.0]
    measure._keep(slow, "budget", None, Watch(Script(Reading(0.0)), frozenset))
    assert (slow.row.aside_s, slow.row.dirty_samples) == ((5.0,), 2)


def test_what_was_left_out_stays_out_though_the_fastest_has_ended():
    """Its next round would be another one than that of who was never left out."""
    one = contender("slow", False, False, False)
    one.seconds = 1.0
    assert measure._is_slow_and_done(one, slow=0.1)
    assert not measure._is_slow_and_done(one, slow=10.0)
    one.leave_out()
    assert measure._is_slow_and_done(one, slow=10.0)
    one.taken[2] = dataclasses.replace(one.taken[2], is_dirty=True)
    assert not measure._is_slow_and_done(one, slow=0.1)


def test_a_dirty_round_is_repeated_within_the_budget(monkeypatch):
    """The third round is dirty; with no budget for more the other four count."""

    class Throttled:
        looks = 0

        def read(self, own):
            self.looks += 1
            return Reading(float(self.looks), throttled=int(self.looks > 3))

    with measure.Session(threads=1, host=Throttled()) as session:
        monkeypatch.setattr(measure, "_leave_out_slow", lambda contenders, budget_s: None)
        (row,) = session.run(parse_case("dense:7x33,u5"), "forward", ("numpy",), budget_s=0)
    assert (len(row.samples_s), len(row.aside_s), row.dirty_samples) == (4, 1, 1)
    assert row.host["dirt"] == {THROTTLED: {"rounds": 1, "most": 1}}
