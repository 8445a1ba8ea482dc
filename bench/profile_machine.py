"""Measure what the machine can do at most: every figure once in each round, in shuffled order, in processes apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from bench import cpu_ceilings, machine, nvml
from bench.ceilings import CUDA, IN_RUN, Ceiling, Limits, MachineProfile, ceiling_of
from bench.pool import WorkerProcess
from bench.programs import records
from bench.results import Failure, Run

CPU_MODULE, CUDA_MODULE = "bench.cpu_ceilings", "bench.cuda_ceilings"

ROUNDS = 40
SHORT_ROUNDS = 20
"""For a run, before it begins, and again where a row lies beyond what was found."""
WARM_ROUNDS = 1
SAMPLE_SECONDS = 120.0
"""A sample of one figure: the first one compiles."""
CUDA_SECONDS = 180.0

Progress = Callable[[int, int], None]
"""Told how many rounds are done, and of how many."""


class Process(Protocol):
    """What a process of figures is to who asks it: bench.pool.WorkerProcess."""

    def greet(self) -> dict[str, Any]:
        """The answer to what it was started with."""

    def take_turn(self, do: str, seconds: float, **values: Any) -> dict[str, Any]:
        """Let it go on, ask it, and stop it again."""

    def pause(self) -> None:
        """Stop it where it is."""

    def kill(self) -> None:
        """End it."""


Start = Callable[[str, int], Process]
"""A new process with this group of figures and so many threads."""


@dataclass
class _Group:
    """A process, its figures, and their samples so far."""

    name: str
    process: Process
    threads: int
    figures: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """``blas, 2 threads``."""
        return f"{self.name}, {self.threads} thread{'s' * (self.threads != 1)}"

    def ask(self, figure: str) -> float:
        """One sample. Raises Failure."""
        return float(_raised(self.process.take_turn("sample", SAMPLE_SECONDS, name=figure))["value"])

    def ceilings(self) -> Iterator[Ceiling]:
        """What was measured."""
        for name, samples in self.samples.items():
            if samples:
                yield ceiling_of({**self.figures[name], "samples": samples, "threads": self.threads})


def full(threads: int) -> tuple[tuple[str, int], ...]:
    """All groups of figures with all threads, and what computes or moves data with one thread too."""
    counts = dict.fromkeys((1, threads))
    both = tuple((group, count) for group in (cpu_ceilings.VECTORS, cpu_ceilings.BLAS) for count in counts)
    return (*both, (cpu_ceilings.SYSTEM, threads))


def profile(threads: int, device: str | None = None, progress: Progress | None = None) -> MachineProfile:
    """Everything about this machine, and about the GPU if there is one. Raises nvml.DeviceError for a wrong one."""
    about = machine.describe(device)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    found, missing = measure(full(threads), ROUNDS, progress=progress)
    if about["cuda_device"]:
        more, why = cuda_ceilings(nvml.settings(device))
        found, missing = (*found, *more), missing | why
    else:
        missing |= {CUDA: "no device"}
    return MachineProfile(about, threads, started, found, missing)


def with_ceilings(run: Run, device: str | None = None) -> Run:
    """A run that has not begun, with what its rows are held against measured now, and stored with its machine."""
    return holding(run, _of_run(run, device))


def holding(run: Run, ceilings: Iterable[Ceiling]) -> Run:
    """A run that keeps these as what its rows are held against."""
    return replace(run, machine={**run.machine, IN_RUN: [ceiling.record() for ceiling in ceilings]})


def limits_of(run: Run, device: str | None = None) -> Limits:
    """What a run's rows are held against; a run of before there were ceilings has none, and holds them to nothing."""
    stored = tuple(map(ceiling_of, run.machine.get(IN_RUN, ())))
    return Limits(stored, run.threads, lambda: _of_run(run, device))


def _of_run(run: Run, device: str | None) -> tuple[Ceiling, ...]:
    """Rates of operations and of memory with the run's threads, and of its GPU if it has one, in a few seconds.

    What cannot be measured is not there, and nothing is held against it.
    """
    found, _ = measure([(cpu_ceilings.VECTORS, run.threads)], SHORT_ROUNDS)
    return (*found, *cuda_ceilings(nvml.settings(device))[0]) if run.machine.get("cuda_device") else found


def cuda_ceilings(settings: Mapping[str, str]) -> tuple[tuple[Ceiling, ...], dict[str, str]]:
    """What the GPU does at most, as far as its program came; what is missing, and why it came no further."""
    found: list[Ceiling] = []
    missing: dict[str, str] = {}
    try:
        for record in records([CUDA_MODULE], CUDA_SECONDS, settings=settings):
            if "missing" in record:
                missing[f"{CUDA}, {record['missing']}"] = record["reason"]
            else:
                found.append(ceiling_of(record))
    except Failure as failure:
        missing[CUDA] = str(failure)
    return tuple(found), missing


def _raised(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer. Raises Failure where it says that something went wrong."""
    if "status" in answer:
        raise Failure(answer["status"], answer["reason"])
    return answer


def _process(group: str, threads: int) -> Process:
    return WorkerProcess(CPU_MODULE, threads, {}, group=group)


def measure(
    wanted: Sequence[tuple[str, int]],
    rounds: int,
    start: Start = _process,
    progress: Progress | None = None,
    seed: int = 0,
) -> tuple[tuple[Ceiling, ...], dict[str, str]]:
    """The figures of these (group, threads), and the reasons why a group, or the rest of it, is missing.

    A warm-up, then rounds in which every figure is sampled once, while all processes but its own stand still.
    """
    missing: dict[str, str] = {}
    order = random.Random(seed)
    with _started(wanted, start, missing) as groups:
        for done in range(-WARM_ROUNDS, rounds):
            turns = [(group, figure) for group in groups for figure in group.figures]
            order.shuffle(turns)
            for group, figure in turns:
                if group.label in missing:
                    continue
                try:
                    value = group.ask(figure)
                except Failure as failure:
                    missing[group.label] = str(failure)
                    continue
                if done >= 0:
                    group.samples[figure].append(value)
            if progress:
                progress(done + WARM_ROUNDS + 1, rounds + WARM_ROUNDS)
        return tuple(ceiling for group in groups for ceiling in group.ceilings()), missing


@contextmanager
def _started(wanted: Iterable[tuple[str, int]], start: Start, missing: dict[str, str]) -> Iterator[list[_Group]]:
    """Processes side by side, stopped once they are ready; those that cannot be are in ``missing``."""
    groups = [_Group(name, start(name, threads), threads) for name, threads in wanted]
    try:
        for group in groups:
            try:
                figures = _raised(group.process.greet())["figures"]
            except Failure as failure:
                missing[group.label] = str(failure)
                continue
            group.figures = {figure["name"]: figure for figure in figures}
            group.samples = {name: [] for name in group.figures}
            group.process.pause()
        yield groups
    finally:
        for group in groups:
            group.process.kill()
