"""The one way of running: check what implementations compute for a case and direction, then time what is right.

Every implementation computes in its own worker. Checking comes first, at the size that is timed; what is wrong is a
row with its reason and is never timed. Timing goes in rounds: in each round every implementation runs once, in
shuffled order, and a speed-up is formed within the round, because the speed of a shared machine drifts by more than
most differences that matter.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import arena, check, contamination, inputs, machine, nvml, pool, precision, statistics, timing
from bench.memory import BOTH, COLD, FLUSHED, HOT, MAX_FLUSHED_CALLS, flush_bytes
from bench.results import RESIDENT_BY_DEVICE, Failure, Row, decided
from bench.shared_folders import SharedFolder
from bench.truth import release
from impls import Case, Unavailable, get
from impls.contract import Implementation
from impls.devices import CPU
from impls.registry import is_foreign
from impls.specs import ITEMSIZE, traffic

Array = npt.NDArray[Any]

MIN_ROUNDS = 5
MIN_ROUNDS_SLOW = 3
"""For what takes more than SLOW times as long as the fastest, and more than one sample has to last."""
SLOW = 10.0
MAX_ROUNDS = 200
PRECISION = 0.02
"""Timing ends when half of the width of every speed-up's interval is below this fraction of it."""
LOOK_EVERY = 5
"""Rounds between two looks at the intervals, and twice that before the first: an interval of five is luck."""
WARM_BELOW_S = 0.25
"""A longer call needs no untimed call before its sample."""
CALIBRATIONS = 3
"""Samples that only set the number of loops: the first has one call, each next one the number found so far."""
TELLING_S = 0.1
"""Of a longer call the larger part is work, whatever the framework: its rate tells of larger cases."""
SETTLE_S = 0.15
"""Idle BLAS threads of this process spin for about 0.1 s after the reference was computed."""
SETS = ((64 * 2**20, 3), (256 * 2**20, 2))
"""(bytes of all arrays, input sets in rotation) up to these sizes; beyond them one, which no cache holds anyway."""
MEMORY_SHARE = 0.8
"""The part of the free memory that a case may need."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What a case and direction get beside their budget of timing. Less of it leaves time for more cases."""

    designs: int | None = None
    """Judge only the first few designs before timing; None judges all. At least two: the first call may compile."""
    sets: int = SETS[0][1]
    """The most input sets that rotate."""
    calibrations: int = CALIBRATIONS
    settle_s: float = SETTLE_S
    min_rounds: int = MIN_ROUNDS
    sample_s: float = timing.SAMPLE_SECONDS
    copied_rounds: int = MAX_ROUNDS
    """The rounds, from the first on, in which the end-to-end time is taken."""
    compared: int | None = None
    """The most results of a sample that are poisoned before it and compared after it, its last ones; None: all sets."""
    start_s: float = math.inf
    """How long all workers together may take to start, beside what each one may."""
    plan_s: float = pool.PLAN_SECONDS
    call_s: float = pool.CALL_SECONDS
    """How long a worker may take to plan, and for a call at the least; then it is replaced."""
    is_watched_slowly: bool = True
    """Whether a look at the GPU that is not quick is taken, before and after the rounds."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one round gave: a sample, and one of every figure beside it."""

    seconds: float
    figures: Mapping[str, float]
    is_dirty: bool = False
    faults: tuple[float, float] | None = None
    """(minor, major) page faults per call, where the system counts them."""


@dataclass
class Contender:
    """One implementation on its way through a case and direction."""

    row: Row
    seconds: float = math.inf
    """The shortest call so far: the first ones of a plan may compile."""
    loops: int = 1
    taken: list[Taken] = field(default_factory=list)
    """Every round's, the dirty ones too."""
    counts_dirty: bool = False
    """Whether dirty rounds count as well: where too few are clean, and all contenders alike."""
    before_gap: int | None = None
    """Rounds taken before the first one that went on without it; None where it was in all."""
    exposed: int = 0
    """Samples of the device's time that contain launch latency."""

    @property
    def name(self) -> str:
        return self.row.implementation

    @property
    def counted(self) -> list[Taken]:
        """The rounds that count: for each contender the first ones of the same sequence, since ratios are formed so.

        Whoever was left out of a round comes back only where that one is dirty; where dirty ones count, it had ended.
        """
        return self.taken[: self.before_gap] if self.counts_dirty else [t for t in self.taken if not t.is_dirty]

    @property
    def aside(self) -> list[Taken]:
        """The rounds that do not count."""
        if self.counts_dirty:
            return [] if self.before_gap is None else self.taken[self.before_gap :]
        return [t for t in self.taken if t.is_dirty]

    @property
    def samples(self) -> list[float]:
        """One sample of every round that counts."""
        return [t.seconds for t in self.counted]

    @property
    def figures(self) -> dict[str, list[float]]:
        """The same for each figure beside it; those that were not taken in every round have fewer."""
        found: dict[str, list[float]] = {}
        for taken in self.counted:
            for name, seconds in taken.figures.items():
                found.setdefault(name, []).append(seconds)
        return found

    @property
    def has_device_clock(self) -> bool:
        """Whether the device's own time can be read."""
        return self.row.clocks == "host and device"

    @property
    def is_running(self) -> bool:
        """Whether nothing has gone wrong so far."""
        return self.row.status == "OK"

    def leave_out(self) -> None:
        """A round goes on without it."""
        if self.before_gap is None:
            self.before_gap = len(self.taken)

    def end(self, status: str, reason: str) -> None:
        """Finish with a status that is not OK; of several the one that comes first stands."""
        status, reason = decided((self.row.status, self.row.reason), (status, reason))
        self.row = replace(self.row, status=status, reason=reason)


class Session:
    """Workers, a folder of shared arrays, and what was learned about speeds; used in a ``with`` statement."""

    def __init__(
        self,
        threads: int,
        seed: int = 0,
        precision: float = PRECISION,
        device: str | None = None,
        memory: str = HOT,
        reader: nvml.Reader | None = None,
        xp: Any = np,
        host: contamination.Reader | None = None,
    ) -> None:
        """``device``: the GPU that workers see, an index or a UUID; ``memory``: one of bench.memory.MEMORY.

        ``reader`` looks at the GPU while it is timed; ``xp``: the array module in which the float64 truth is computed,
        see bench.truth; ``host`` looks at the machine. Raises nvml.DeviceError for a device that does not exist.
        """
        self.seed = seed
        self.precision = precision
        self.memory = memory
        self.effort = Effort()
        self.deadline = math.inf
        """The time of timing.CLOCK after which nothing is asked any more, and nobody waited for."""
        self.xp = xp
        self._pool = pool.Pool(threads, nvml.settings(device))
        self._reader = reader or nvml.reader(device)
        self._host = host or contamination.reader()
        self._shared = SharedFolder()
        self._folder = self._shared.path
        self._rates: dict[tuple[str, str, str], float] = {}
        self._loaded: set[tuple[str, str]] = set()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *unused: object) -> None:
        self._pool.__exit__()
        self._shared.close()

    def start(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Start the workers for these (op, name) side by side and wait until all are idle.

        A competitor that is not there gets no process.
        """
        there = [pair for pair in pairs if not _absent(*pair)]
        self._pool.start(there, self.effort.start_s, self.effort.plan_s)

    def compile(self, pairs: Sequence[tuple[str, str]], seconds: float) -> dict[str, dict[str, Any]]:
        """Have the started workers of these (op, name) compile all their CUDA kernels side by side; answers by name."""
        return self._pool.compile(pairs, seconds)

    def kill(self) -> None:
        """End all workers, from whatever thread: a request that waits fails, a device that hangs is given free."""
        self._pool.kill()

    def look(self) -> nvml.Reading | None:
        """What the GPU says now."""
        return self._reader.read()

    def compute(
        self, name: str, case: Case, direction: str, arrays: Sequence[Array | None]
    ) -> tuple[Array | None, ...]:
        """One result from the implementation's worker. Raises Failure with the status and reason of what went wrong."""
        contender = self._enter(case, direction, name)
        if contender.is_running:
            self._plan(contender, case, sets=1, sharers=1)
        if contender.is_running:
            path = self._write(case, "given", arrays)
            outputs = self._compute(contender, case, direction, path)
            path.unlink()
            if contender.is_running:
                return outputs
        raise Failure(contender.row.status, contender.row.reason)

    def verify(self, case: Case, direction: str, names: Sequence[str]) -> list[Row]:
        """Judge every implementation on the designed inputs and on one dense set."""
        contenders = [self._enter(case, direction, name) for name in names]
        self._leave_out_large(case, direction, contenders, sets=1)
        self._check(case, direction, contenders, sets=1, budget_s=None)
        self._check_dense(case, direction, contenders, count=1)
        self._pool.release(self.effort.call_s)
        return [c.row for c in contenders]

    def run(self, case: Case, direction: str, names: Sequence[str], budget_s: float) -> list[Row]:
        """Judge every implementation, then time those that are right, within ``budget_s`` seconds of timing."""
        contenders = [self._enter(case, direction, name) for name in names]
        count = min(_sets(case, direction), self.effort.sets)
        self._leave_out_large(case, direction, contenders, count)
        self._check(case, direction, contenders, count, budget_s, self.effort.designs)
        _leave_out_slow(contenders, budget_s)
        truths = self._check_dense(case, direction, contenders, count)
        self._time(case, direction, contenders, truths, budget_s)
        self._pool.release(self.effort.call_s)
        return _finished(case, direction, contenders, self.precision)

    # --- one implementation, one question ---

    def _enter(self, case: Case, direction: str, name: str) -> Contender:
        """A contender with what its record declares; one without a usable record has ended already."""
        row = Row(case.op, direction, str(case.spec), name, "", False, "", "", "OK")
        try:
            record = self._record(case.op, name)
        except Unavailable as reason:
            return Contender(replace(row, status="UNAVAILABLE", reason=str(reason)))
        except Failure as failure:
            return Contender(replace(row, status=failure.status, reason=failure.reason))
        state = self.memory if self.memory in FLUSHED and str(record.device) == str(CPU) else HOT
        row = replace(row, device=str(record.device), competitor=record.competitor, state=state)
        absent = _absent(case.op, name)
        if absent:
            return Contender(replace(row, status="UNAVAILABLE", reason=absent))
        try:
            declared = record.algorithm_of(case.spec, direction), record.arithmetic_of(case.spec, direction)
        except Exception as error:  # another package's mistake is a row, and must not stop the run
            return Contender(replace(row, status="ERROR", reason=f"its record: {type(error).__name__}: {error}"))
        return Contender(replace(row, algorithm=declared[0], arithmetic=declared[1]))

    def _record(self, op: str, name: str) -> Implementation:
        """Its record. Another package is imported here only when its worker has survived that. Raises Failure."""
        if is_foreign(op, name) and (op, name) not in self._loaded:
            answer = self._pool.ask(op, name, "load", self.effort.plan_s, op=op, name=name)
            if "status" in answer:
                raise Failure(answer["status"], answer["reason"])
            self._loaded.add((op, name))
        return get(op, name)

    def _ask(
        self, contender: Contender, do: str, seconds: float, *, until: float | None = None, **values: Any
    ) -> dict[str, Any]:
        """Ask its worker; whatever goes wrong there ends the contender, and the answer is empty.

        So does an answer that would come after ``until``, by default the deadline.
        """
        left = (self.deadline if until is None else until) - timing.CLOCK()
        too_late = {"status": "OVER_BUDGET", "reason": "the time for all cases was over"}
        try:
            if left > 0:
                answer = self._pool.ask(contender.row.op, contender.name, do, min(seconds, left), **values)
            else:
                answer = too_late
        except Failure as error:
            is_cut = error.status == "TIMEOUT" and left < seconds
            answer = too_late if is_cut else {"status": error.status, "reason": error.reason}
        if "status" in answer:
            contender.end(answer["status"], answer["reason"])
            return {}
        if answer.get("side_effect"):
            contender.end("SIDE_EFFECT", answer["side_effect"])
            self._pool.replace(contender.name)  # what was changed stays changed in that process
        if answer.get("leak"):
            contender.end("LEAK", answer["leak"])
        seen = {name: answer[name] for name in ("peak_bytes", "grown_bytes") if name in answer}
        contender.row = replace(contender.row, **seen)
        return answer

    def _plan(self, contender: Contender, case: Case, sets: int, sharers: int) -> None:
        """Have it plan, for ``sets`` of arrays at a time beside ``sharers`` of its device, itself included."""
        answer = self._ask(
            contender,
            "plan",
            self.effort.plan_s,
            case=str(case),
            implementation=contender.name,
            direction=contender.row.direction,
            sets=sets,
            sharers=sharers,
        )
        if answer:
            measured = {name: answer[name] for name in ("setup_s", "workspace_bytes", "clocks")}
            contender.row = replace(contender.row, **measured, threads=_with_sizes({}, answer))

    def _compute(
        self, contender: Contender, case: Case, direction: str, path: Path, *, keep: bool = False
    ) -> tuple[Array | None, ...]:
        """The outputs for an input file; empty if the contender ended."""
        result = self._result(case, direction)
        seconds = self.effort.call_s + 4 * self._predicted(contender, case)
        answer = self._ask(contender, "compute", seconds, inputs=str(path), result=str(result), keep=keep)
        if not answer:
            return ()
        contender.seconds = min(contender.seconds, answer["seconds"])
        if contender.row.first_call_s is None:
            setup = (contender.row.setup_s or 0.0) + answer["bind_s"]
            contender.row = replace(
                contender.row, setup_s=setup, first_call_s=answer["first_call_s"], launched=answer["launched"]
            )
        return self._read(case, direction, result)

    def _predicted(self, contender: Contender, case: Case) -> float:
        """Seconds of one call at the rate of the last case, or 0 where that could not tell."""
        rate = self._rates.get(_key(contender))
        return case.spec.flops / rate if rate else 0.0

    def _learn(self, contender: Contender, case: Case) -> None:
        """Remember the rate of a call that was long enough to tell, and forget an older one if it was not.

        Of a short call most is overhead: its rate says nothing about a larger case.
        """
        self._rates.pop(_key(contender), None)
        if contender.seconds > TELLING_S:
            self._rates[_key(contender)] = case.spec.flops / contender.seconds

    # --- checking ---

    def _leave_out_large(self, case: Case, direction: str, contenders: Sequence[Contender], sets: int) -> None:
        """End all where the arrays of this process and of the workers would not fit into what is free."""
        shared, own = _memory_needed(case, direction, sets, len(contenders))
        own += flush_bytes() if self.memory in FLUSHED else 0  # of one worker at a time
        free, folder = machine.free_memory(), shutil.disk_usage(self._folder).free
        reason = ""
        if shared + own > MEMORY_SHARE * free:
            reason = f"needs about {(shared + own) / 1e9:.1f} GB; {free / 1e9:.1f} GB of memory are free"
        elif shared > MEMORY_SHARE * folder:
            reason = f"shares about {shared / 1e9:.1f} GB; {folder / 1e9:.1f} GB are free in {self._folder.parent}"
        for contender in contenders:
            if reason and contender.is_running:
                contender.end("OUT_OF_MEMORY", f"{reason}; try a smaller --batch, or fewer --impl")

    def _check(
        self,
        case: Case,
        direction: str,
        contenders: Sequence[Contender],
        sets: int,
        budget_s: float | None,
        designs: int | None = None,
    ) -> None:
        """Plan all, then judge each on every designed input. Competitors' errors are reported, not judged."""
        devices = Counter(c.row.device for c in contenders if c.is_running)
        for contender in contenders:
            predicted = self._predicted(contender, case)
            if not contender.is_running:
                continue
            if budget_s is not None and MIN_ROUNDS_SLOW * predicted > budget_s:
                reason = f"{MIN_ROUNDS_SLOW} calls, predicted to take {predicted:.2g} s each, exceed the budget"
                contender.end("OVER_BUDGET", f"{reason} of {budget_s:g} s")
            else:
                self._plan(contender, case, sets, devices[contender.row.device])
        for design in inputs.judged(case)[:designs]:
            if not any(c.is_running for c in contenders):
                return
            arrays = inputs.make(case, direction, design, self.seed)
            truth = self._expected(case, direction, arrays)
            path = self._write(case, design, arrays)
            for contender in contenders:
                if contender.is_running:
                    outputs = self._compute(contender, case, direction, path)
                    if contender.is_running:
                        _judge(contender, case, direction, design, arrays, outputs, truth)
            path.unlink()
        if designs is None and precision.tells(case):
            self._infer(case, direction, contenders)

    def _infer(self, case: Case, direction: str, contenders: Sequence[Contender]) -> None:
        """Find out what arithmetic and algorithm ran; also of what is wrong: another arithmetic may be the reason.

        What is less exact than declared is MISDECLARED, unless it is a competitor.
        """
        asked = [c for c in contenders if c.row.status in ("OK", "WRONG")]
        if not asked:
            return
        arrays = inputs.make(case, direction, inputs.IMPULSE, self.seed)
        known = precision.probe(case, direction, arrays)
        path = self._write(case, inputs.IMPULSE, arrays)
        for contender in asked:
            outputs = self._compute(contender, case, direction, path)
            row = contender.row
            if not outputs or row.status == "SIDE_EFFECT":
                continue
            found = precision.infer(known, outputs)
            contender.row = replace(row, ran_arithmetic=found.arithmetic, ran_algorithm=found.algorithm)
            reason = precision.misfit(row.algorithm, row.arithmetic, found)
            if reason and not row.competitor:
                contender.end("MISDECLARED", reason)
        path.unlink()

    def _check_dense(
        self, case: Case, direction: str, contenders: Sequence[Contender], count: int
    ) -> list[tuple[tuple[Array | None, ...], check.Expected]]:
        """Bind every dense set in every worker; its result can reject, and is what timed results must equal."""
        truths = []
        for i in range(count if any(c.is_running for c in contenders) else 0):
            arrays = inputs.make(case, direction, inputs.DENSE, self.seed + 1 + i)
            truth = self._expected(case, direction, arrays)
            path = self._write(case, f"dense{i}", arrays)
            for contender in contenders:
                if not contender.is_running:
                    continue
                outputs = self._compute(contender, case, direction, path, keep=True)
                if contender.is_running:
                    _judge(contender, case, direction, inputs.DENSE, arrays, outputs, truth)
                    error = check.dense_error(case, direction, outputs, truth)
                    contender.row = replace(contender.row, dense_error=max(error, contender.row.dense_error or 0.0))
            truths.append((arrays, truth))
        for contender in contenders:
            if contender.is_running:
                self._learn(contender, case)
        return truths

    def _expected(self, case: Case, direction: str, arrays: Sequence[Array | None]) -> check.Expected:
        """The truth for these inputs, and no more of the device than it takes."""
        found = check.expected(case, direction, arrays, self.xp)
        release(self.xp)
        return found

    # --- timing ---

    def _time(
        self,
        case: Case,
        direction: str,
        contenders: Sequence[Contender],
        truths: Sequence[tuple[tuple[Array | None, ...], check.Expected]],
        budget_s: float,
    ) -> None:
        """Rounds in shuffled order until every interval is narrow enough or the budget is spent."""
        active = [c for c in contenders if c.is_running]
        if not active:
            return
        time.sleep(self.effort.settle_s)
        for contender in active:
            contender.row = replace(contender.row, repeatable=True)
            self._calibrate(contender, case, direction, truths)
        active = [c for c in active if c.is_running]
        if not active:
            return
        rng = np.random.default_rng(self.seed)
        is_worth_it = self._reader.is_quick or self.effort.is_watched_slowly
        is_watched = is_worth_it and any(c.has_device_clock for c in active)
        watch = _Watch(self._reader, self._pids()) if is_watched else None
        host = contamination.Watch(self._host, self._pids)
        started = last = timing.CLOCK()
        stop, slow = "rounds", math.inf
        counts: list[list[int]] = []
        """Before each round: how many every contender had taken."""
        for done in range(MAX_ROUNDS):
            running = [c for c in active if c.is_running]
            if not running:
                break
            if len({c.before_gap for c in running}) == 1:  # left out of the same rounds, they go on together
                for contender in running:
                    contender.before_gap = None
            slow = max(SLOW * min(c.seconds for c in running), self.effort.sample_s)
            now = timing.CLOCK()
            next_ends = now + (now - last)
            if done >= self.effort.min_rounds and (next_ends - started > budget_s or next_ends > self.deadline):
                stop = "budget"
                break
            last = now
            if done == 1:
                self._read_threads(running, "threads")
            if done == 2 * LOOK_EVERY:  # what was dirty from the first is as it is: nothing cleaner is waited for
                _count_enough(active)
            clean = max(len(c.samples) for c in running)
            if clean >= 2 * LOOK_EVERY and done % LOOK_EVERY == 0 and _precise(active, self.precision):
                stop = "precision"
                break
            counts.append([len(c.taken) for c in active])
            for i in rng.permutation(len(active)):
                contender = active[i]
                if not contender.is_running:
                    continue
                if _is_slow_and_done(contender, slow):
                    contender.leave_out()
                else:
                    self._round(contender, case, direction, truths, copied=done < self.effort.copied_rounds)
            is_device_dirty = bool(watch and watch.is_quick and watch.look())
            dirty = max(host.look(), is_device_dirty)
            if dirty:
                _mark_dirty(active, counts[-dirty])
        if watch and not watch.is_quick and watch.look():
            _mark_dirty(active, [0] * len(active))
        _count_enough(active)
        self._read_threads([c for c in active if c.is_running], "inspect", until=math.inf)  # what is timed is kept
        for contender in active:
            _keep(contender, "rounds" if _is_slow_and_done(contender, slow) else stop, watch, host)

    def _read_threads(self, contenders: Sequence[Contender], do: str, until: float | None = None) -> None:
        """Ask each something whose answer has the thread pools in force, and keep their sizes."""
        for contender in contenders:
            answer = self._ask(contender, do, self.effort.call_s, until=until)
            contender.row = replace(contender.row, threads=_with_sizes(contender.row.threads, answer))

    def _pids(self) -> frozenset[int]:
        """The processes of ours that may be on the device: this one computes the truth there."""
        return self._pool.pids() | {os.getpid()}

    def _calibrate(
        self,
        contender: Contender,
        case: Case,
        direction: str,
        truths: Sequence[tuple[tuple[Array | None, ...], check.Expected]],
    ) -> None:
        """Find out how many warm calls make a sample; these samples are not kept."""
        for _ in range(self.effort.calibrations if contender.seconds < WARM_BELOW_S else 0):
            answer = self._sample(contender, case, direction, truths)
            if not contender.is_running:
                return
            contender.seconds = min(contender.seconds, answer["longer_seconds"])
            most = MAX_FLUSHED_CALLS if contender.row.state in FLUSHED else timing.MAX_LOOPS
            contender.loops = min(most, timing.loops_for(contender.seconds, self.effort.sample_s))
            if contender.loops == 1:
                break
        self._learn(contender, case)
        contender.row = replace(contender.row, loops=contender.loops)

    def _round(
        self,
        contender: Contender,
        case: Case,
        direction: str,
        truths: Sequence[tuple[tuple[Array | None, ...], check.Expected]],
        *,
        copied: bool,
    ) -> None:
        """One sample of every figure; ``copied``: also end to end.

        All are kept, or none: the samples of a round belong together.
        """
        answer = self._sample(contender, case, direction, truths)
        if not answer:
            return
        figures: dict[str, float] = {}
        if contender.has_device_clock:
            flush = self.memory in (BOTH, COLD)
            more = self._timed(contender, "figures", case, direction, truths, flush=flush, copied=copied)
            if not more:
                return
            figures = {RESIDENT_BY_DEVICE: answer["device_seconds"], **more["figures"]}
            contender.exposed += not more["hidden"]
        contender.taken.append(Taken(answer["seconds"], figures, faults=answer["faults"]))

    def _sample(
        self,
        contender: Contender,
        case: Case,
        direction: str,
        truths: Sequence[tuple[tuple[Array | None, ...], check.Expected]],
    ) -> dict[str, Any]:
        """One sample of the resident figure; empty if the contender ended."""
        warm = contender.seconds < WARM_BELOW_S
        return self._timed(contender, "sample", case, direction, truths, warm=warm, state=contender.row.state)

    def _timed(
        self,
        contender: Contender,
        do: str,
        case: Case,
        direction: str,
        truths: Sequence[tuple[tuple[Array | None, ...], check.Expected]],
        **values: Any,
    ) -> dict[str, Any]:
        """Ask for timed calls; a result that is not the verified one bit for bit is judged again."""
        results = [str(self._result(case, direction, i)) for i in range(len(truths))]
        seconds = self.effort.call_s + 4 * contender.loops * contender.seconds
        values |= {"loops": contender.loops, "results": results, "compared": self.effort.compared}
        answer = self._ask(contender, do, seconds, **values)
        for i in answer.get("differs", ()):
            contender.row = replace(contender.row, repeatable=False)
            arrays, truth = truths[i]
            outputs = self._read(case, direction, Path(results[i]))
            _judge(contender, case, direction, inputs.DENSE, arrays, outputs, truth)
        if contender.row.status == "WRONG":  # is it an input that the call before changed?
            self._ask(contender, "inspect", self.effort.call_s)
        return answer

    # --- shared arrays ---

    def _write(self, case: Case, name: str, arrays: Sequence[Array | None]) -> Path:
        path = self._folder / f"{name}.in"
        path.unlink(missing_ok=True)
        arena.write(path, arrays, case.spec.dtype)
        return path

    def _result(self, case: Case, direction: str, i: int = 0) -> Path:
        """A result file of the right size, with old contents: the worker writes all of it."""
        path = self._folder / f"result{i}.out"
        shapes = arena.shapes_of(case.spec, direction, outputs=True)
        if not path.exists() or path.stat().st_size != arena.size_of(shapes, case.spec.dtype):
            path.unlink(missing_ok=True)
            arena.create(path, shapes, case.spec.dtype)
        return path

    def _read(self, case: Case, direction: str, path: Path) -> tuple[Array | None, ...]:
        shapes = arena.shapes_of(case.spec, direction, outputs=True)
        arrays = arena.open_shared(path, shapes, case.spec.dtype).arrays
        return tuple(None if a is None else a.copy() for a in arrays)


class _Watch:
    """Looks at the GPU before, between and after the rounds, outside everything that is timed."""

    def __init__(self, reader: nvml.Reader, own: frozenset[int]) -> None:
        """``own``: process numbers of ours."""
        self._reader = reader
        self._own = own
        self._first = self._last = reader.read()
        self._dirt: dict[str, None] = {}
        self.is_quick = reader.is_quick

    @property
    def is_seeing(self) -> bool:
        """Whether there was anything to read."""
        return self._first is not None and self._last is not None

    def look(self) -> bool:
        """Whether the time since the last look was dirty."""
        before, self._last = self._last, self._reader.read()
        found = nvml.dirt(before, self._last, self._own)
        self._dirt |= dict.fromkeys(found)
        return bool(found)

    def record(self) -> dict[str, Any]:
        """What is kept with a row."""
        if self._first is None or self._last is None:
            return {}
        return {"before": self._first.as_record(), "after": self._last.as_record(), "dirt": list(self._dirt)}


def _with_sizes(before: Mapping[str, tuple[int, ...]], answer: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """The sizes of all thread pools, with those of an answer; 0 where a pool is not there. As before without any."""
    if "threads" not in answer:
        return before
    now = answer["threads"]
    looks = max(map(len, before.values()), default=0)
    return {pool: (*before.get(pool, (0,) * looks), now.get(pool, 0)) for pool in {**before, **now}}


def _mark_dirty(active: Sequence[Contender], before: Sequence[int]) -> None:
    """Mark what was taken since each contender had this many rounds. It is repeated: rounds go on without it."""
    for contender, count in zip(active, before, strict=True):
        contender.taken[count:] = [replace(taken, is_dirty=True) for taken in contender.taken[count:]]


def _count_enough(active: Sequence[Contender]) -> None:
    """Let dirty rounds count where anybody has too few clean ones; for all alike, since ratios are formed in rounds."""
    if any(c.is_running and len(c.samples) < min(MIN_ROUNDS_SLOW, len(c.taken)) for c in active):
        for contender in active:
            contender.counts_dirty = True


def _keep(contender: Contender, stop: str, watch: _Watch | None, host: contamination.Watch) -> None:
    """Put every raw sample into the row, and end it where its two clocks cannot both be right."""
    contender.row = replace(
        contender.row,
        stop=stop if contender.is_running else "",
        samples_s=tuple(contender.samples),
        figures={name: tuple(samples) for name, samples in contender.figures.items()},
        host=host.record(),
        **_page_faults(contender.taken),
    )
    if host.is_seeing or (watch and watch.is_seeing):
        dirty = sum(taken.is_dirty for taken in contender.taken)
        aside = tuple(taken.seconds for taken in contender.aside)
        contender.row = replace(contender.row, dirty_samples=dirty, aside_s=aside)
    if not contender.has_device_clock:
        return
    contender.row = replace(contender.row, exposed_samples=contender.exposed)
    if watch and watch.is_seeing:
        contender.row = replace(contender.row, gpu=watch.record())
    by_device = contender.figures.get(RESIDENT_BY_DEVICE, ())
    wrong = timing.disagreement(contender.samples, by_device, contender.loops)
    if wrong and contender.is_running:
        contender.end("ASYNC_MISMATCH", wrong)


def _page_faults(taken: Sequence[Taken]) -> dict[str, Any]:
    """The row's fields of page faults per call; none where nobody counted."""
    counted = [t.faults for t in taken if t.faults is not None]
    if not counted:
        return {}
    minor, major = (sum(faults) / len(counted) for faults in zip(*counted, strict=True))
    return {"minor_faults": minor, "major_faults": major}


def _absent(op: str, name: str) -> str | None:
    """The reason why a competitor of ours cannot be used here, or None.

    Asked in this process, since a competitor's library is looked for and not imported. Ours are asked in their workers:
    whether a GPU can be used shows by using it.
    """
    if is_foreign(op, name):
        return None
    try:
        record = get(op, name)
    except Unavailable:
        return None
    return record.missing() if record.competitor else None


def _sets(case: Case, direction: str) -> int:
    """How many input sets rotate."""
    size = traffic(case.spec, direction)
    return next((count for most, count in SETS if size <= most), 1)


def _memory_needed(case: Case, direction: str, sets: int, workers: int) -> tuple[int, int]:
    """Bytes of the shared files, and of everything else: float64 truth here, results and verified copies in workers.

    Per output this process holds three float64 arrays for every set and as many while it computes them, and for its
    inputs two copies in the spec's dtype and one in float64; a worker holds two of each result.
    """
    item = ITEMSIZE[case.spec.dtype]
    inputs, outputs = (
        item * sum(math.prod(s) for s in arena.shapes_of(case.spec, direction, outputs=which) if s is not None)
        for which in (False, True)
    )
    parent = 3 * (sets + 1) * outputs * 8 // item + sets * inputs + 2 * inputs + inputs * 8 // item
    return sets * (inputs + outputs), parent + workers * 2 * sets * outputs


def _leave_out_slow(contenders: Sequence[Contender], budget_s: float) -> None:
    """End those whose fewest rounds alone would take longer than the budget; they have been judged."""
    for contender in contenders:
        if contender.is_running and MIN_ROUNDS_SLOW * contender.seconds > budget_s:
            reason = f"{MIN_ROUNDS_SLOW} calls of {contender.seconds:.2g} s exceed the budget of {budget_s:g} s"
            contender.end("OVER_BUDGET", reason)


def _judge(
    contender: Contender,
    case: Case,
    direction: str,
    design: str,
    arrays: Sequence[Array | None],
    outputs: Sequence[Array | None],
    truth: check.Expected,
) -> None:
    """Keep the worst error on designed inputs; end what is wrong, unless it is a competitor.

    What the checker cannot judge, such as an arithmetic that has no bound, is no pass.
    """
    row = contender.row
    try:
        judgement = check.verdict(case, direction, design, arrays, outputs, truth, row.algorithm, row.arithmetic)
    except Exception as error:
        contender.end("ERROR", f"it cannot be judged: {type(error).__name__}: {error}")
        return
    if design in inputs.judged(case):
        contender.row = replace(row, error_bounds=max(judgement.bounds, row.error_bounds or 0.0))
    if not judgement.is_right and not row.competitor:
        contender.end("WRONG", f"on {design} inputs {judgement.where}: {judgement.bounds:.3g} times its bound")


def _precise(active: Sequence[Contender], precision: float) -> bool:
    """Whether every interval that is judged is narrow enough; what runs only a few rounds is not waited for."""
    running = [c for c in active if c.is_running]
    rounds = max((len(c.samples) for c in running), default=0)
    waited_for = [c for c in running if len(c.samples) == rounds]
    return bool(waited_for) and all(_width(c, waited_for) <= precision for c in waited_for)


def _is_slow_and_done(contender: Contender, slow: float) -> bool:
    """Whether it takes so long that it gets a few rounds only, and has them; ``slow``: seconds of a call.

    What was left out of a round is not let in again because the fastest has ended: its next sample would be of another
    round than that of the others by the same number.
    """
    is_slow = contender.seconds > slow or contender.before_gap is not None
    return is_slow and len(contender.samples) >= MIN_ROUNDS_SLOW


def _width(contender: Contender, contenders: Sequence[Contender]) -> float:
    """The widest relative interval of its speed-ups over competitors with as many rounds.

    Where there is no competitor, over the first of the others on its device; of its own median if it is alone there.
    """
    others = [c for c in contenders if c is not contender and len(c.samples) >= len(contender.samples)]
    rivals = _rivals(contender, others) or [c for c in others if c.row.device == contender.row.device][:1]
    intervals = [statistics.speedup(rival.samples, contender.samples) for rival in rivals]
    return max(map(statistics.relative_width, intervals or [statistics.median_interval(contender.samples)]))


def _finished(case: Case, direction: str, contenders: Sequence[Contender], precision: float) -> list[Row]:
    """Rows with everything that follows from the samples."""
    timed = [c for c in contenders if c.is_running and c.samples]
    return [
        _timed_row(c, case, direction, _rivals(c, timed), _width(c, timed), precision)
        if c.is_running and c.samples
        else c.row
        for c in contenders
    ]


def _rivals(contender: Contender, contenders: Sequence[Contender]) -> list[Contender]:
    """The competitors that it is compared with: others on a device of the same name."""
    return [c for c in contenders if c.row.competitor and c is not contender and c.row.device == contender.row.device]


def _key(contender: Contender) -> tuple[str, str, str]:
    """What a rate is remembered by."""
    return contender.name, contender.row.op, contender.row.direction


def _timed_row(
    contender: Contender, case: Case, direction: str, rivals: Sequence[Contender], width: float, precision: float
) -> Row:
    interval = statistics.median_interval(contender.samples)
    speedups = {r.name: statistics.speedup(r.samples, contender.samples) for r in rivals}
    noisy = not width <= precision  # a width that is not to be had is NaN
    return replace(
        contender.row,
        status="NOISY" if noisy else "OK",
        reason=f"an interval is {width:.1%} wide to each side, more than {precision:.1%}" if noisy else "",
        median_s=interval.median,
        low_s=interval.low,
        high_s=interval.high,
        min_s=min(contender.samples),
        gflops=case.spec.flops / interval.median / 1e9,
        gbytes_per_s=case.least_traffic(direction) / interval.median / 1e9,
        speedups=speedups,
    )
