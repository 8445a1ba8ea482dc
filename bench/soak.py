"""Run the program again and again while killing it, its workers and its store, and prove that nothing is lost.

Everything goes on in processes of their own: the program as a user starts it, told to go on with ``--resume`` after
every fault. What has been seen in the store once must be there ever after, bit for bit; at the end of a run every case
must be there exactly once, and every row must be well-formed.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench import timing
from bench.faulty_store import FULL, READ_ONLY
from bench.jobs import Job, Selection, jobs
from bench.pool import ROOT
from bench.results import STATUSES, TIMED, Row
from bench.shared_folders import folders, owner
from bench.store import Store
from bench.suites import Suite
from impls import parse_case

CASES = (*(f"dense:4x8,u{units}" for units in range(1, 5)), "maxpool2d:2x8x8x2,pool2x2")
IMPLEMENTATIONS = ("numpy", "numba_jit")
"""Two: a case's rows are together or not there, and one worker may be killed while the other goes on."""
OPTIONS = (
    *(word for name in IMPLEMENTATIONS for word in ("--impl", name)),
    *("--competitor", "none", "--threads", "1", "--budget", "0.1"),
)
LONGEST_WAIT_S = 4.0
"""A fault comes at any time up to this; a run of CASES takes about as long."""
END_S = 300.0
"""A program that has not ended by then hangs."""
WORKERS_END_S = 5.0
LOCK_TIMEOUT_S = 0.2
MAX_LOSSES = 20
"""After these there is no need for more."""

MAIN, WORKER, BOTH = "kill -9 of the program", "kill -9 of a worker", "kill -9 of both"
LOCKED, CORRUPT = "locked store", "corrupt store"
KINDS = (MAIN, WORKER, BOTH, FULL, READ_ONLY, LOCKED, CORRUPT)
NOTHING = "no fault"

Key = tuple[str, str, str, str]


@dataclass
class Outcome:
    """What was done, and what went wrong."""

    faults: Counter[str] = field(default_factory=Counter)
    """By kind: those that came before the program had finished by itself."""
    runs: int = 0
    resumes: int = 0
    rows: int = 0
    losses: list[str] = field(default_factory=list)
    """Everything that is not as it must be; empty where nothing was lost."""


def soak(
    minutes: float, seed: int, folder: Path, progress: Callable[[Outcome], None] = lambda outcome: None
) -> Outcome:
    """Runs under faults for so many minutes, then the end of the last one; the store is ``folder``/soak.sqlite."""
    made = _Soak(random.Random(seed), folder / "soak.sqlite", progress)
    made.go(timing.CLOCK() + 60 * minutes)
    return made.outcome


def wanted() -> tuple[Job, ...]:
    """The jobs of a run."""
    cases = Suite("cases", tuple(map(parse_case, CASES)))
    return jobs(cases, Selection(implementations=IMPLEMENTATIONS, competitors=("none",)))


def key(row: Row) -> Key:
    """What a row of a run is known by."""
    return row.op, row.spec, row.direction, row.implementation


def incomplete(rows: Iterable[Row]) -> list[str]:
    """The cases of a finished run that are not there exactly once, in words."""
    expected = {(j.case.op, str(j.case.spec), j.direction, name) for j in wanted() for name in j.names}
    found = Counter(map(key, rows))
    return [f"{' '.join(k)} is there {found[k]} times" for k in sorted(expected | set(found)) if found[k] != 1]


def malformed(row: Row) -> str | None:
    """What is not as it must be in a row, or None."""
    name = " ".join(key(row))
    if row.status not in STATUSES:
        return f"{name} has the status {row.status!r}"
    if row.status not in TIMED:
        return None if row.reason else f"{name} is {row.status} without a reason"
    times = (row.low_s, row.median_s, row.high_s, row.min_s, *row.samples_s)
    if not row.samples_s or not all(t is not None and math.isfinite(t) and t > 0 for t in times):
        return f"{name} is {row.status} with times {times}"
    if row.error_bounds is None or not row.error_bounds <= 1:
        return f"{name} is {row.status} with an error of {row.error_bounds} bounds"
    return None


def gone(before: Sequence[Row], now: Sequence[Row]) -> list[str]:
    """The rows that were committed before and are not there now as they were, in words. Rows are only ever appended."""
    same = itertools.zip_longest(before, now[: len(before)])
    return [f"{' '.join(key(was))} was lost or changed" for was, is_now in same if was != is_now]


class _Soak:
    """One soak: its store, and what has been seen in it."""

    def __init__(self, rng: random.Random, path: Path, progress: Callable[[Outcome], None]) -> None:
        self.outcome = Outcome()
        self._rng = rng
        self._path = path
        self._progress = progress
        self._kinds = self._shuffled()
        self._seen: dict[int, list[Row]] = {}
        """By run: the rows that were committed."""
        self._pids: set[int] = set()
        """Of every program that was started."""

    def go(self, end: float) -> None:
        """Runs until ``end``; the last one is brought to its end without faults."""
        while timing.CLOCK() < end and len(self.outcome.losses) < MAX_LOSSES:
            self.outcome.runs += 1
            while not self._step(next(self._kinds) if timing.CLOCK() < end else NOTHING):
                self._progress(self.outcome)
                if len(self.outcome.losses) >= MAX_LOSSES:
                    return
            self._judge_rows()
            self._progress(self.outcome)
        left = [path for path in folders() if owner(path) in self._pids]
        self.outcome.losses += [f"{path} is left over" for path in left]

    def _shuffled(self) -> Iterator[str]:
        """Every kind of fault, in another order each time."""
        while True:
            yield from self._rng.sample(KINDS, len(KINDS))

    def _step(self, kind: str) -> bool:
        """Start the program, let a fault come, and look at the store; whether the run has finished."""
        if kind == CORRUPT:
            self._corrupt_a_copy()
            return False
        is_resumed = len(self._seen) == self.outcome.runs
        self.outcome.resumes += is_resumed
        with self._program(self._path, kind, resume=is_resumed) as program:
            if kind in (MAIN, WORKER, BOTH, LOCKED):
                self._harm(program, kind)
            code, output = _end(program)
        self._look()
        return self._judge_end(code, output, kind)

    @contextlib.contextmanager
    def _program(self, path: Path, kind: str, *, resume: bool) -> Iterator[subprocess.Popen[str]]:
        """The program at work on a store, in a process that is gone afterwards."""
        start = ["bench.faulty_store", kind] if kind in (FULL, READ_ONLY) else ["bench"]
        cases = [word for case in CASES for word in ("--case", case)]
        store = ["--db", f"sqlite:///{path}?timeout={LOCK_TIMEOUT_S}", *(["--resume"] if resume else [])]
        command = [sys.executable, "-m", *start, "run", *cases, *OPTIONS, *store]
        program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._pids.add(program.pid)
        try:
            yield program
        finally:
            program.kill()
            program.communicate()

    def _harm(self, program: subprocess.Popen[str], kind: str) -> None:
        """Wait for some time, then do it, unless the program has ended before."""
        process = psutil.Process(program.pid)
        while kind in (WORKER, BOTH) and program.poll() is None and not _workers(process):
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(self._rng.uniform(0, LONGEST_WAIT_S))
            return
        if kind == LOCKED:
            self._lock_until_it_ends(program)
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = _workers(process)
            victims = {MAIN: [process], WORKER: workers[:1], BOTH: [*workers[:1], process]}[kind]
            for victim in victims:
                victim.kill()
            self.outcome.faults[kind] += bool(victims)
            if process in victims:
                alive = psutil.wait_procs(workers, timeout=WORKERS_END_S)[1]
                self.outcome.losses += [f"worker {worker.pid} outlived its program" for worker in alive]

    def _lock_until_it_ends(self, program: subprocess.Popen[str]) -> None:
        """Hold the store, so that nobody else reads or writes it."""
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(END_S)
            holder.execute("ROLLBACK")

    def _corrupt_a_copy(self) -> None:
        """A copy whose pages are damaged, all but the first, is refused in words."""
        page = 4096
        if not self._path.exists() or self._path.stat().st_size <= page:
            return
        copy = self._path.with_name("corrupt.sqlite")
        shutil.copyfile(self._path, copy)
        with copy.open("r+b") as file:
            file.seek(page)
            file.write(self._rng.randbytes(copy.stat().st_size - page))
        with self._program(copy, CORRUPT, resume=True) as program:
            self._judge_end(*_end(program), CORRUPT)

    def _judge_end(self, code: int | None, output: str, kind: str) -> bool:
        """Whether the run has finished. Any other end that its fault does not explain is a loss."""
        is_said = "Traceback" not in output
        if code in (0, 1) and is_said and kind != CORRUPT:  # 1: it has a row of a worker that was killed
            return True
        is_refused = code == 2 and is_said and f"the store sqlite:///{self._path.parent}" in output
        if is_refused and kind in (FULL, READ_ONLY, LOCKED, CORRUPT):
            self.outcome.faults[kind] += 1
        elif not (code == -signal.SIGKILL and kind in (MAIN, BOTH)):
            self.outcome.losses.append(f"after {kind}: exit status {code}: {output.strip()[-300:]}")
        return False

    def _look(self) -> None:
        """What was in the store before is still there, bit for bit; then remember what is there now."""
        if not self._path.exists():
            return
        store = Store(self._path)
        now: dict[int, list[Row]] = {run.id or 0: [] for run in store.runs()}
        for run_id, row in store.rows():
            now[run_id].append(row)
        store.close()
        for run_id, before in self._seen.items():
            self.outcome.losses += [f"run {run_id}: {text}" for text in gone(before, now.get(run_id, []))]
        self._seen = now
        self.outcome.rows = sum(map(len, now.values()))

    def _judge_rows(self) -> None:
        """The run that has finished is complete and well-formed, and only killed workers cost a row."""
        rows = self._seen[max(self._seen)]
        self.outcome.losses += [*incomplete(rows), *filter(None, map(malformed, rows))]
        failed = [row for run in self._seen.values() for row in run if row.status not in TIMED]
        killed = self.outcome.faults[WORKER] + self.outcome.faults[BOTH]
        if len(failed) > killed or any(row.status != "CRASHED" for row in failed):
            reasons = "; ".join(f"{row.status}: {row.reason}" for row in failed)
            self.outcome.losses.append(f"{killed} killed workers do not explain {len(failed)} rows: {reasons}")


def _workers(program: psutil.Process) -> list[psutil.Process]:
    """Its workers, also those that are only starting; it starts other programs that are none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in program.children() if "bench.worker" in child.cmdline()]
    return []


def _end(program: subprocess.Popen[str]) -> tuple[int | None, str]:
    """How it ended and what it said; None where it did not end in time."""
    try:
        output, _ = program.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        return None, f"it did not end in {END_S:g} s"
    return program.returncode, output
