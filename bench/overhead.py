"""What the harness itself costs: beside every sample, inside the clock, and by giving every implementation a process.

A turn is what one implementation does in one round: its worker goes on, makes an untimed call, takes a sample, looks at
the outputs, answers and stops. In each of some rounds, in shuffled order, there is one turn, the same calls in this
process, and a sample of calls that do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import arena, inputs, pool, timing
from bench.results import Failure, Interval
from bench.shared_folders import SharedFolder
from bench.statistics import median_interval, speedup
from impls import Case, get, parse_case
from impls.specs import FORWARD

ROUNDS = 40
PROBLEMS = (("maxpool2d:8x16x16x8,pool2x2", "numpy"), ("maxpool2d:32x64x64x32,pool2x2", "numpy"))
"""(case, implementation), a short call and a long one; in one thread, so that no pool of this process takes part."""

Ask = Callable[[int], float]
"""Takes a turn of so many calls; seconds per call by the worker's clock."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """Of one problem. Times are seconds."""

    case: str
    implementation: str
    loops: int
    """Calls in a sample."""
    sample: Interval
    beside: Interval
    """A turn less its sample: what a sample costs that nobody times."""
    inside: Interval
    """A call that does nothing: what is timed with every call."""
    isolation: Interval
    """The time of a call in a process of its own over that in this one."""


def measure(threads: int, rounds: int = ROUNDS, clock: timing.Clock = timing.CLOCK) -> tuple[Overhead, ...]:
    """Of all PROBLEMS. Raises Failure where a worker does not answer."""
    return tuple(_of_problem(parse_case(case), name, threads, rounds, clock) for case, name in PROBLEMS)


def costs(case: str, name: str, ask: Ask, call: Callable[[], object], rounds: int, clock: timing.Clock) -> Overhead:
    """Of turns that are asked for, and of the same call in this process."""
    loops = timing.loops_for(min(timing.sample([call], _done, 1, clock=clock).host for _ in range(3)))
    samples: dict[str, list[float]] = {"apart": [], "here": [], "nothing": [], "beside": []}

    def apart() -> None:
        start = clock()
        seconds = ask(loops)
        samples["beside"].append(clock() - start - loops * seconds)
        samples["apart"].append(seconds)

    def here() -> None:
        samples["here"].append(timing.sample([call], _done, loops, clock=clock).host)

    def nothing() -> None:
        samples["nothing"].append(timing.sample([_done], _done, loops, clock=clock).host)

    steps = (apart, here, nothing)
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for i in rng.permutation(len(steps)):
            steps[i]()
    return Overhead(
        case,
        name,
        loops,
        sample=median_interval([loops * seconds for seconds in samples["apart"]]),
        beside=median_interval(samples["beside"]),
        inside=median_interval(samples["nothing"]),
        isolation=speedup(samples["apart"], samples["here"]),
    )


def _of_problem(case: Case, name: str, threads: int, rounds: int, clock: timing.Clock) -> Overhead:
    folder = SharedFolder()
    try:
        with pool.Pool(threads) as workers:
            return costs(str(case), name, _worker(workers, case, name, folder.path), _here(case, name), rounds, clock)
    finally:
        folder.close()


def _worker(workers: pool.Pool, case: Case, name: str, folder: Path) -> Ask:
    """Turns of a worker that has planned and bound one input set, as in a run."""
    spec, given, result = case.spec, folder / "given.in", folder / "result.out"
    arena.write(given, inputs.make(case, FORWARD, inputs.DENSE, 0), spec.dtype)
    arena.create(result, arena.shapes_of(spec, FORWARD, outputs=True), spec.dtype)

    def ask(do: str, **values: Any) -> dict[str, Any]:
        answer = workers.ask(case.op, name, do, pool.CALL_SECONDS, **values)
        if "status" in answer:
            raise Failure(answer["status"], answer["reason"])
        return answer

    ask("plan", case=str(case), implementation=name, direction=FORWARD, sets=1, sharers=1)
    ask("compute", inputs=str(given), result=str(result), keep=True)
    return lambda loops: float(ask("sample", loops=loops, warm=True, results=[str(result)])["seconds"])


def _here(case: Case, name: str) -> Callable[[], object]:
    """The same call, bound in this process to arrays as a worker's are."""
    plan = get(case.op, name).plan(case.spec, (FORWARD,))
    given, outputs = (
        arena.allocate(arena.shapes_of(case.spec, FORWARD, outputs=w), case.spec.dtype) for w in (False, True)
    )
    for target, source in zip(given.arrays, inputs.make(case, FORWARD, inputs.DENSE, 0), strict=True):
        if target is not None and source is not None:
            np.copyto(target, source)
    return plan.bind(FORWARD, *given.arrays, *outputs.arrays)


def _done() -> None:
    """Nothing to do, and nothing to wait for."""
