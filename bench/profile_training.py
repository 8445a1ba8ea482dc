"""Where the time of a training step goes: every layer and direction, what is around them, and the first step.

All figures come from the same steps: every call within a step is timed as it runs, and so is the whole step. What a
step takes beyond its layers is the network's own: activations that no layer has fused, the batch, the loss, the update.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

import numba
import numpy as np
from threadpoolctl import threadpool_limits

from bench import experiments, process
from bench.contestant import options_for
from bench.machine import ROOT
from bench.timing import CLOCK, Clock, lapped
from impls.nn.network import ACTIVATION, Network, Operation, Pass
from impls.nn.structure import Structure, parse
from impls.nn.training import Data, Settings, Trainer
from impls.specs import Shape, SpecError

DEFAULT_BATCH = 32

STEPS = 10
"""Steps that are timed where nobody says how many."""

WARM_STEPS = 2
"""Untimed steps before them: the first one compiles, or reads the compiler's cache, and touches all memory."""

AROUND = {"batch": "gather", "loss": "loss_of", "update": "update"}
"""The parts of a step that are no operations of its pass, and the trainer's methods that do them."""

FIRST_STEP = """\
import json, sys
from bench.profile_training import first_step
text, shape, batch = json.loads(sys.argv[1])
print(json.dumps(first_step(text, tuple(shape), batch)))
"""


@dataclass(frozen=True, slots=True)
class Problem:
    """A network whose training step is profiled: how it is called, its layers, its images, the samples in a step."""

    name: str
    structure: Structure
    image_shape: Shape
    batch: int


@dataclass(frozen=True, slots=True)
class Lap:
    """A part of a step: a layer in a direction, or (with an empty layer) something around them.

    ``seconds``: the median over the steps. ``gflops``: useful floating-point operations per second, in 10^9; None for
    what is no problem of the registry.
    """

    layer: str
    direction: str
    implementation: str
    problem: str
    seconds: float
    gflops: float | None

    @property
    def is_layer(self) -> bool:
        """Whether a layer's own result or gradient is computed."""
        return bool(self.layer) and self.direction != ACTIVATION


@dataclass(frozen=True, slots=True)
class Profile:
    """The parts of a training step in order, the whole step, and the network's share of it.

    ``overhead``: the step without its layers, over the step; the median over the steps.
    """

    structure: str
    batch: int
    steps: int
    laps: tuple[Lap, ...]
    step_s: float
    overhead: float


def profile(trainer: Trainer, batch: int, steps: int = STEPS, clock: Clock = CLOCK) -> Profile:
    """Train for some more steps on the trainer's data, and say where their time went. The weights move."""
    chosen = np.random.default_rng(0).integers(0, len(trainer.data), (WARM_STEPS + steps, batch))
    for indices in chosen[:WARM_STEPS]:
        trainer.step(indices)
    bound = trainer.pass_for(batch)
    around: dict[str, list[float]] = {name: [] for name in AROUND}
    whole: list[float] = []
    with _instrumented(trainer, bound, around, clock) as timed:
        step = lapped(trainer.step, whole, clock)
        for indices in chosen[WARM_STEPS:]:
            step(indices)
    laps = tuple(_lap(operation, seconds) for operation, seconds in timed)
    spent = zip(*(seconds for (_, seconds), lap in zip(timed, laps, strict=True) if lap.is_layer), strict=True)
    overhead = median(1 - sum(calls) / step for calls, step in zip(spent, whole, strict=True))
    others = tuple(Lap("", name, "", "", median(seconds), None) for name, seconds in around.items())
    return Profile(str(trainer.network.structure), batch, steps, (*laps, *others), median(whole), overhead)


def random_trainer(network: Network, batch: int, settings: Settings | None = None) -> Trainer:
    """A trainer on one batch of normally distributed images and random one-hot targets: times ask for no data set."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *network.image_shape), np.float32)
    (units,) = network.output_shape
    return Trainer(network, Data(x, np.eye(units, dtype=np.float32)[rng.integers(0, units, batch)]), settings)


def problems(names: Sequence[str], dataset: str | None = None, structure: str | None = None) -> tuple[Problem, ...]:
    """What a contest of the same names would train: published networks, or a structure on a data set.

    A structure that says the shape of its images needs no data set. Raises SpecError as ``experiments`` does.
    """
    if names:
        return tuple(
            Problem(f"{p.dataset}:{p.number}", p.structure, p.image_shape, p.batch) for p in experiments.find(names)
        )
    parsed = parse(structure) if structure else None
    if parsed and parsed.image_shape and dataset is None:
        return (Problem("network", parsed, parsed.image_shape, DEFAULT_BATCH),)
    own = experiments.own(dataset or "digits", structure)
    return (Problem(own.id, own.structure, own.image_shape, own.batch),)


def profile_problem(problem: Problem, implementation: str, steps: int = STEPS) -> Profile:
    """A profile on random images; ``implementation`` computes what it can. Raises SpecError where that is nothing."""
    options = options_for(implementation, problem.structure, problem.image_shape)
    network = Network(problem.structure, problem.image_shape, options=options)
    return profile(random_trainer(network, problem.batch), problem.batch, steps)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """All thread pools of this process at one size. Raises SpecError for more threads than it can have."""
    most, before = numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()
    if count > most:
        raise SpecError(f"{count} threads are more than the {most} of this process; give fewer with --threads")
    process.set_threads(None, count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        process.set_threads(None, before)


def first_step(text: str, image_shape: Shape, batch: int, clock: Clock = CLOCK) -> float:
    """Seconds from a structure's text to the end of the first training step, in a process that has done nothing yet."""
    laps: list[float] = []

    def start() -> None:
        random_trainer(Network(parse(text), image_shape), batch).step(np.arange(batch))

    lapped(start, laps, clock)()
    return laps[0]


def first_steps(text: str, image_shape: Shape, batch: int) -> tuple[float, float]:
    """``first_step`` in two new processes: with an empty compiler's cache, and with what the first one left there."""
    argument = json.dumps([text, image_shape, batch])
    with tempfile.TemporaryDirectory(prefix="layerbench-") as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        cold, warm = (
            float(
                subprocess.run(
                    (sys.executable, "-c", FIRST_STEP, argument),
                    env=environment,
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                ).stdout
            )
            for _ in range(2)
        )
    return cold, warm


@contextmanager
def _instrumented(
    trainer: Trainer, bound: Pass, around: Mapping[str, list[float]], clock: Clock
) -> Iterator[list[tuple[Operation, list[float]]]]:
    """Every operation of a pass with the list that its laps go into; afterwards all is as it was."""
    timed: list[tuple[Operation, list[float]]] = []

    def with_laps(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
        found = [(operation, list[float]()) for operation in operations]
        timed.extend(found)
        return tuple(replace(operation, run=lapped(operation.run, laps, clock)) for operation, laps in found)

    before = bound.forward_operations, bound.backward_operations
    bound.forward_operations, bound.backward_operations = map(with_laps, before)
    for name, laps in around.items():
        setattr(trainer, AROUND[name], lapped(getattr(trainer, AROUND[name]), laps, clock))
    try:
        yield timed
    finally:
        bound.forward_operations, bound.backward_operations = before
        for name in around:
            delattr(trainer, AROUND[name])


def _lap(operation: Operation, laps: list[float]) -> Lap:
    seconds, case = median(laps), operation.case
    gflops = None if case is None else case.spec.flops / seconds / 1e9
    problem = "" if case is None else str(case)
    return Lap(operation.layer, operation.direction, operation.implementation, problem, seconds, gflops)
