"""Everything about one GPU in a few minutes: is it right, how fast is it, against whom, and what bounds it.

The parts go in the order of their worth, each with its share of the time that is left, and each writes one file of
JSON lines as it goes: a cut leaves what is done. Nothing here needs more than NumPy and a CUDA library; what else is
missing is named. ``reports.acceptance`` makes the page.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bench import cuda_sanitized, machine, nvml, suites, timing, truth
from bench.jobs import Job, in_suite
from bench.lines import Lines
from bench.measure import Effort, Session
from bench.memory import BOTH
from bench.programs import records
from bench.results import Failure, Row, Run
from bench.suites import Suite
from impls import OPS, Case, ConvSpec, parse_case
from impls.devices import CUDA
from impls.specs import FORWARD, directions_of

PARTS = ("environment", "ceilings", "correctness", "networks", "sanitizer", "grid")
"""In the order of their worth."""
SHARES: Mapping[str, float] = {
    "environment": 3,
    "ceilings": 2,
    "correctness": 6,
    "networks": 9,
    "sanitizer": 5,
    "grid": 7,
}
"""How the time that is left is divided among the parts that are left; what one does not use goes to those after it."""

MINUTES = 8.0
LEAST_MINUTES = 1.0
RESERVE = 0.05
"""The part of the time that is kept for the page, and for ending the workers."""
ALARM_AGAIN_S = 2.0
"""An alarm can be lost, in a destructor or in code that catches everything: it rings again, as long as it must."""
LAST_RESORT_S = 5.0
"""After so many seconds all workers are ended: a device that one of them keeps busy may keep this process waiting."""
PROOF_SECONDS = 30.0
"""CuPy is imported, compiles and is proven right within this time, or the truth is computed on the host."""
COMPILE_SHARE = 1 / 8
"""The part of the time in which workers compile side by side. One that needs more is ended, and its successor compiles
what it plans."""

CHECKED_BYTES = 4e6
"""Batches are cut to this for the correctness part, which needs every kind of problem and not their size."""
TIMED_MEGABYTES = 16.0
BUDGET_S = 0.25
"""Seconds of timing per case and direction, shared by all."""
EFFORT = Effort(
    designs=2,
    sets=2,
    calibrations=1,
    settle_s=0.0,
    min_rounds=3,
    sample_s=2e-3,
    copied_rounds=1,
    compared=1,
    start_s=60.0,
    plan_s=60.0,
    call_s=15.0,
    is_watched_slowly=False,
)
"""Every kind of problem was judged on all designs before; a truth from the device leaves no host thread spinning."""
COLUMNS = (3, 7, 19)
"""The columns of the published grid that are timed, by the side of their kernels."""
CORE: Mapping[str, tuple[str, ...]] = {
    "networks": (
        "conv2d:1x16x16x32,k3x3,f64,relu",
        "dense:1x3136,u128,relu",
        "maxpool2d:1x28x28x32,pool2x2",
        "conv2d:1x32x32x3,k3x3,f32,relu",
        "conv2d:1x8x8x128,k3x3,f128,relu",
        "conv2d:1x28x28x1,k5x5,f32,relu",
        "dense:1x512,u10",
        "conv2d:1x32x32x32,k5x5,f32,relu",
        "maxpool2d:1x64x64x8,pool4x4",
        "conv2d:1x64x64x1,k9x9,f16,relu",
        "conv2d:1x14x14x64,k3x3,f128,relu",
        "dense:1x3072,u512,relu",
        "conv2d:1x28x28x32,k3x3,f32,relu",
        "conv2d:1x7x7x64,k3x3,f128,relu",
        "conv2d:1x14x14x64,k5x5,f128,relu",
    ),
    "grid": tuple(f"conv2d:1x{s}x{s}x32,k{k}x{k},f32" for s in (32, 8, 64) for k in COLUMNS),
}
"""What is timed first, in this order, whatever its batch: two runs that were cut have these in common. Of the networks
first layers, those in the middle and deep ones, dense ones and pools, in every direction; of the grid forward alone."""

WISHED = (
    *("pandas", "numba_cuda", "cupy", "torch", "jax", "keras", "tensorflow", "pynvml"),
    *("click", "rich", "sqlalchemy", "matplotlib", "jinja2", "scipy", "sklearn", "cv2", "psutil", "threadpoolctl"),
)
"""Packages that are used where they are; none is needed but one of numba-cuda and CuPy."""

LISTING_SECONDS = 60.0
"""Every library that an implementation needs is looked for within this time."""

SANITIZER = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck", "initcheck")
NOT_REACHED = "NOT REACHED"
ERRORS_FOUND = 86
"""The exit status that a sanitizer is told to end with if it found an error."""

Entry = Mapping[str, Any]
"""One implementation of one operation, as bench.listing prints it."""


class NoDeviceError(RuntimeError):
    """Nothing on CUDA can be used here; the message is the reason."""


class OutOfTimeError(BaseException):
    """The whole time is over. Not an Exception, so that little on the way takes it for a mistake of its own."""


@dataclass(frozen=True)
class Options:
    """What is asked for."""

    output: Path
    minutes: float = MINUTES
    megabytes: float = TIMED_MEGABYTES
    budget_s: float = BUDGET_S
    suite: str | None = None
    parts: tuple[str, ...] = PARTS
    threads: int = 1
    seed: int = 0
    device: str | None = None
    page_only: bool = False


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line. Ends the program with status 2 and a sentence for what cannot be."""
    parser = command_line()
    values = vars(parser.parse_args(arguments))
    options = Options(**values | {"parts": tuple(p for p in PARTS if p in values["parts"]) or PARTS})
    problem = _problem(options)
    if problem:
        parser.error(problem)
    return options


def command_line() -> argparse.ArgumentParser:
    """The options, and their help."""
    parser = argparse.ArgumentParser("cuda-acceptance", description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="of the whole, kept even if a kernel hangs (%(default)g)"
    )
    parser.add_argument(
        "--megabytes",
        type=float,
        default=TIMED_MEGABYTES,
        help="batches are cut until the arrays of a timed call take at most this; inf: as published (%(default)g)",
    )
    parser.add_argument(
        "--budget",
        dest="budget_s",
        type=float,
        default=BUDGET_S,
        help="seconds of timing per case and direction (%(default)g)",
    )
    parser.add_argument("--suite", metavar="NAME|FILE", help="these cases in place of awkward, networks and grid")
    parser.add_argument(
        "--part", dest="parts", action="append", choices=PARTS, help="only this part; may be repeated", default=[]
    )
    parser.add_argument("--threads", type=int, default=machine.usable_cores(), help="of the host's libraries")
    parser.add_argument("--seed", type=int, default=0, help="of all random inputs")
    parser.add_argument("--device", metavar="N|UUID", help="the GPU, as nvidia-smi counts them, or a slice of one")
    parser.add_argument(
        "--page-only",
        action="store_true",
        help="make the page anew from the files in DIR, and figures where matplotlib is",
    )
    return parser


def _problem(options: Options) -> str | None:
    """What is wrong with the options, with its remedy, or None."""
    if not options.minutes >= LEAST_MINUTES:
        fits = f"{LEAST_MINUTES:g} is enough for the ceilings and a part of the checks, {MINUTES:g} for all parts"
        return f"--minutes {options.minutes:g} is too little: {fits}"
    for name, value in (("megabytes", options.megabytes), ("budget", options.budget_s), ("threads", options.threads)):
        if not value > 0:
            return f"--{name} must be above 0"
    if options.seed < 0:
        return "--seed must be at least 0"
    folder = options.output
    if options.page_only:
        return None if files(folder) else f"{folder} holds no part of an earlier run"
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return f"{folder} cannot be written: {there} is no folder, or not yours to write"
    if folder.is_dir() and any(folder.iterdir()):
        return f"{folder} is not empty, and two runs are never mixed: name a new one"
    return None


def files(folder: Path) -> dict[str, Path]:
    """The files of the parts that were begun, by the part's name."""
    paths = {part: folder / f"{number}-{part}.jsonl" for number, part in enumerate(PARTS, start=1)}
    return {part: path for part, path in paths.items() if path.is_file()}


def slice_of(seconds: float, left: Sequence[str]) -> float:
    """What the first of the parts that are left may take of these seconds."""
    return seconds * SHARES[left[0]] / sum(SHARES[part] for part in left)


def run(options: Options, say: Callable[[str], None] = print) -> None:
    """Do every part that is asked for, within the time. The folder holds a file for each that was begun.

    Raises NoDeviceError or nvml.DeviceError before anything is written, OSError if the folder cannot be, SpecError for
    an unknown suite.
    """
    os.environ.update(nvml.settings(options.device))  # before this process, or a child, looks for devices
    end = timing.CLOCK() + 60 * options.minutes * (1 - RESERVE)
    chosen = _suites(options)
    with (
        Session(options.threads, options.seed, device=options.device, memory=BOTH) as session,
        contextlib.suppress(OutOfTimeError),
        _alarm(end - timing.CLOCK(), session.kill),
    ):
        session.effort = EFFORT
        entries, unlisted = _listed()
        _require_device(entries, unlisted)
        options.output.mkdir(parents=True, exist_ok=True)
        work = _Work(options, session, entries, unlisted, chosen)
        for number, part in enumerate(options.parts):
            now = timing.CLOCK()
            work.do(part, now + slice_of(max(end - now, 0), options.parts[number:]), say)


def _suites(options: Options) -> dict[str, Suite]:
    """The cases of every part that has some."""
    if options.suite:
        given = suites.load(options.suite)
        return {part: replace(given, name=f"{given.name} as {part}") for part in ("correctness", "networks", "grid")}
    networks, published = suites.load("networks"), suites.load("paper-large-kernels")
    columns = tuple(c for c in published.cases if isinstance(c.spec, ConvSpec) and c.spec.kernel[0] in COLUMNS)
    checked = (*suites.load("awkward").cases, *suites.within(networks, CHECKED_BYTES).cases)
    return {
        "correctness": Suite("awkward and networks", checked),
        "networks": suites.within(networks, options.megabytes * 1e6),
        "grid": suites.within(replace(published, cases=columns), options.megabytes * 1e6),
    }


def _listed() -> tuple[tuple[Entry, ...], str]:
    """Every implementation, and the reason why the list ends early, or nothing."""
    entries: list[Entry] = []
    try:
        entries.extend(records(["bench.listing"], LISTING_SECONDS))
    except Failure as failure:
        return tuple(entries), str(failure)
    return tuple(entries), ""


def _require_device(entries: Sequence[Entry], unlisted: str) -> None:
    """Raises NoDeviceError with the commonest reason if no implementation of ours on CUDA can be used."""
    reasons = [entry["missing"] for entry in entries if entry["device"] == CUDA.name and not entry["competitor"]]
    if None not in reasons:
        raise NoDeviceError(unlisted or max(reasons, key=reasons.count, default="no implementation on CUDA was found"))


@dataclass
class _Work:
    """What the parts share."""

    options: Options
    session: Session
    entries: tuple[Entry, ...]
    unlisted: str
    """Why there may be more of them, or empty."""
    suites: Mapping[str, Suite]
    started: dict[tuple[str, str], None] = field(default_factory=dict)
    """The (op, name) whose workers were started."""

    @cached_property
    def machine(self) -> dict[str, Any]:
        """What is measured on. Asked once: it takes a process that uses the device."""
        return machine.describe(self.options.device)

    def do(self, part: str, until: float, say: Callable[[str], None]) -> None:
        """One part into its file. What goes wrong in it is its last line, and the next part begins."""
        lines = Lines(self.options.output / f"{PARTS.index(part) + 1}-{part}.jsonl")
        seconds = max(until - timing.CLOCK(), 0)
        say(f"{part}: at most {seconds:.0f} s")
        lines.add("part", {"name": part, "seconds": seconds})
        left_out = "cut off when the whole time was over"
        try:
            left_out = getattr(self, f"_{part}")(lines, until)
        except Exception as error:  # one part's mistake must not take the others with it
            left_out = f"ended by {type(error).__name__}: {error}"
        finally:
            lines.add("end", {"left_out": left_out, "seconds": seconds - until + timing.CLOCK()})
            say(f"{part}: {left_out or 'complete'}")

    def _environment(self, lines: Lines, until: float) -> str:
        """The machine, what is installed, every implementation with the reason why it cannot run; kernels compile."""
        lines.add("options", asdict(self.options))
        lines.add("missing", {name: find_spec(name) is None for name in WISHED})
        for entry in self.entries:
            lines.add("entry", entry)
        lines.add("machine", self.machine)
        lines.add("readings", {"nvidia-smi": _nvidia_smi()})
        self._start(lines, [(op, name) for op in OPS for name in self._names(op, competitors=False)])
        return self.unlisted

    def _start(self, lines: Lines, pairs: Sequence[tuple[str, str]]) -> None:
        """Start the workers that were not yet, side by side, and have them compile; first of all find the truth."""
        if not self.started:
            self.session.xp, why_host = _array_module()
            lines.add("truth", {"on": "host" if why_host else "device", "reason": why_host})
        new = [pair for pair in pairs if pair not in self.started]
        if not new:
            return
        self.started |= dict.fromkeys(new)
        begun = timing.CLOCK()
        self.session.start(new)
        between = timing.CLOCK()
        answers = self.session.compile(new, 60 * self.options.minutes * COMPILE_SHARE)
        seconds = {"start_seconds": between - begun, "compile_seconds": timing.CLOCK() - between}
        lines.add("workers", {**seconds, "kernels": answers})

    def _ceilings(self, lines: Lines, until: float) -> str:
        """What the device can do at most, measured; what was not, and why."""
        missing = []
        for record in records(["bench.cuda_ceilings"], until - timing.CLOCK()):
            if "missing" in record:
                missing.append(f"{record['missing']} ({record['reason']})")
            else:
                lines.add("ceiling", record)
        return f"not measured: {'; '.join(missing)}" if missing else ""

    def _sanitizer(self, lines: Lines, until: float) -> str:
        """Entries of ours under each tool of compute-sanitizer, each with an equal share of the time left."""
        path = shutil.which(SANITIZER)
        if path is None:
            return f"{SANITIZER} is not installed"
        cases = [str(case) for case in self.suites["correctness"].cases] if self.options.suite else []
        left_out: list[str] = []
        for done, tool in enumerate(TOOLS):
            log = self.options.output / f"{SANITIZER}-{tool}.txt"
            command = [path, "--tool", tool, "--error-exitcode", str(ERRORS_FOUND), "--log-file", str(log)]
            share = (until - timing.CLOCK()) / (len(TOOLS) - done)
            status, reason, calls = "OK", "", 0
            wanted = cuda_sanitized.wanted(cases)
            try:
                for record in records(["bench.cuda_sanitized", *cases], share, command):
                    lines.add("call", {"tool": tool, **record})
                    calls += 1
            except Failure as failure:
                status, reason = failure.status, failure.reason
            for call in wanted[calls:]:
                lines.add(
                    "call", {"tool": tool, **cuda_sanitized.described(call), "status": NOT_REACHED, "reason": reason}
                )
            lines.add("tool", {"name": tool, "status": status, "reason": reason, "calls": calls, "log": log.name})
            if calls < len(wanted):
                left_out.append(f"{tool} reached {calls} of {len(wanted)} calls")
        return "; ".join(left_out)

    def _correctness(self, lines: Lines, until: float) -> str:
        """Every implementation of ours on every design of inputs; nothing is timed."""
        jobs = self._jobs("correctness", competitors=False)
        return self._rows(
            lines, until, "correctness", jobs, lambda j: self.session.verify(j.case, j.direction, j.names)
        )

    def _networks(self, lines: Lines, until: float) -> str:
        """The layers of the published networks against every competitor."""
        return self._timed(lines, until, "networks", self._jobs("networks", competitors=True))

    def _grid(self, lines: Lines, until: float) -> str:
        """Columns of the published grid: forward first, since only that was published."""
        jobs = self._jobs("grid", competitors=True)
        return self._timed(lines, until, "grid", sorted(jobs, key=lambda job: job.direction != FORWARD))

    def _timed(self, lines: Lines, until: float, part: str, jobs: Sequence[Job]) -> str:
        run, budget = self.session.run, self.options.budget_s
        return self._rows(lines, until, part, jobs, lambda j: run(j.case, j.direction, j.names, budget))

    def _jobs(self, part: str, *, competitors: bool) -> list[Job]:
        """Every case and direction with all that can run here: the core of the part, then the others shuffled.

        So a cut leaves some of every kind, and what is compared with another run.
        """
        names = {op: self._names(op, competitors=competitors) for op in OPS}
        core = {parse_case(text): place for place, text in enumerate(CORE.get(part, ()))}
        jobs = [
            Job(case, direction, names[case.op])
            for case in self.suites[part].cases
            for direction in directions_of(case.op)
            if names[case.op]
        ]
        random.Random(self.options.seed).shuffle(jobs)
        return sorted(jobs, key=lambda job: core.get(_of_one(job.case), len(core)))

    def _names(self, op: str, *, competitors: bool) -> tuple[str, ...]:
        """What can run here on CUDA."""
        return tuple(
            entry["name"]
            for entry in self.entries
            if entry["op"] == op and entry["device"] == CUDA.name and entry["missing"] is None
            if competitors or not entry["competitor"]
        )

    def _rows(
        self, lines: Lines, until: float, part: str, jobs: Sequence[Job], action: Callable[[Job], list[Row]]
    ) -> str:
        """The rows of as many jobs as the time allows; what was left out is returned in words."""
        suite = self.suites[part]
        lines.add("run", asdict(_run_record(suite, self.options, self.machine)))
        lines.add("planned", Counter(f"{job.case.op} {job.direction}" for job in jobs))
        reading = self.session.look()
        lines.add("gpu", reading.as_record() if reading else {})
        self._start(lines, list(dict.fromkeys((job.case.op, name) for job in jobs for name in job.names)))
        self.session.deadline = until + EFFORT.call_s
        for done, job in enumerate(jobs):
            if timing.CLOCK() > until:
                return f"{len(jobs) - done} of {len(jobs)} cases and directions: the time of this part was over"
            try:
                rows = action(job)
            except Exception as error:  # a device lost under the reference, a disk that is full
                rows = [_failed_row(job, name, error) for name in job.names]
            for row in rows:
                lines.add_row(in_suite(row, suite))
        return ""


def _of_one(case: Case) -> Case:
    """The case for a single sample."""
    return Case(case.op, replace(case.spec, batch=1))


def _array_module() -> tuple[Any, str]:
    """What bench.truth finds, once a process of its own has found it: a hanging device costs PROOF_SECONDS."""
    try:
        reason = "".join(str(record["reason"]) for record in records(["bench.truth"], PROOF_SECONDS))
    except Failure as failure:
        reason = str(failure)
    return (np, reason) if reason else truth.array_module()


def _run_record(suite: Suite, options: Options, described: Mapping[str, Any]) -> Run:
    """What the rows of one part have in common."""
    return Run(
        command=shlex.join(["layerbench", *sys.argv[1:]]),
        suite=suite.name,
        seed=options.seed,
        threads=options.threads,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=described,
    )


def _failed_row(job: Job, name: str, error: Exception) -> Row:
    """The row of an implementation whose case could not be computed by the harness."""
    reason = f"the harness: {type(error).__name__}: {error}"
    return Row(job.case.op, job.direction, str(job.case.spec), name, CUDA.name, False, "", "", "ERROR", reason)


def _nvidia_smi() -> str:
    """What nvidia-smi says of every device, or why it says nothing."""
    try:
        found = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    return found.stdout or found.stderr


@contextlib.contextmanager
def _alarm(seconds: float, last_resort: Callable[[], None]) -> Iterator[None]:
    """Raise OutOfTimeError in here after so many seconds, and again and again, where the system has such an alarm.

    LAST_RESORT_S later ``last_resort`` is called by another thread: what waits for a device hears no alarm.
    """
    net = threading.Timer(max(seconds, 0) + LAST_RESORT_S, last_resort)
    net.daemon = True
    net.start()
    try:
        with _ringing(seconds) if hasattr(signal, "setitimer") else contextlib.nullcontext():
            yield
    finally:
        net.cancel()


@contextlib.contextmanager
def _ringing(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in here after so many seconds, and every ALARM_AGAIN_S from then on."""

    def ring(*unused: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), ALARM_AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
