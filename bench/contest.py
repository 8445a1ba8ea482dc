"""A training contest: ours and other libraries train the same network in turns, epoch by epoch.

Every contestant is a process of its own. All have the same data, the same initial weights, and the same batches in the
same order; in each turn every contestant trains once, in shuffled order, while the others stand still. What a
contestant has learned is judged here, in one way for all, by the answers that it gives to the test data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import datasets
from bench import experiments, machine, pool
from bench.contestant import KERAS, OURS, PLAIN, TORCH
from bench.experiments import OF_CLASSES, OF_NUMBERS, OF_TWO, Experiment, Turn
from bench.results import Failure, Training
from bench.shared_folders import SharedFolder
from impls.competitors.keras import BACKENDS, backend_name
from impls.nn.losses import EPSILON
from impls.nn.network import EVERY, Network, Options
from impls.nn.optimizers import described
from impls.nn.saving import save
from impls.specs import SpecError

Array = npt.NDArray[Any]

MEMORY_SHARE = 0.8
"""The part of the free memory that training may need."""
BEGIN_SECONDS = 1800.0
TURN_SECONDS = 600.0
"""A turn at the least; more where the first step tells of a longer one."""
TURN_FACTOR = 10.0

FEW = 8
"""Parameters up to which a network's are kept in its row."""

PUBLISHED_BETA_2 = 0.9
PUBLISHED_SETTINGS = {"TF_DETERMINISTIC_OPS": "1"}
"""What the paper's Keras was run with, on one thread."""
AS_PUBLISHED = " as published"

PLAIN_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {"library": "numpy"},
    "cupy": {"library": "cupy"},
    "cupy_copies": {"library": "cupy", "copies": True},
}
"""The straightforward perceptron: on NumPy's arrays, on CuPy's, and with every batch copied to the device."""

Progress = Callable[[Sequence[Training], Turn], None]
"""Called after each turn with the rows of all contestants as they stand."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """Who takes part: a kind of contestant, its options, threads, and environment variables."""

    name: str
    kind: str
    threads: int
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


def entrants(
    implementations: Sequence[str],
    against: Sequence[str],
    threads: int,
    as_published: bool = False,
    on_cuda: bool = False,
) -> tuple[Entrant, ...]:
    """Ours, once for each implementation, then the others: keras, keras:BACKEND, torch. ``none`` is nobody.

    ``as_published``: Keras with the paper's Adam (beta_2 0.9), deterministic, on one thread. ``on_cuda``: Keras on the
    GPU. Implementations may be PLAIN_OPTIONS. Raises SpecError for an unknown competitor, listing those that there are,
    and for what is on the CPU only where ``on_cuda`` is asked for.
    """
    if on_cuda and as_published:
        raise SpecError("--as-published is Keras on the CPU: leave out --device cuda")
    found = [
        Entrant(name, PLAIN, threads, PLAIN_OPTIONS[name])
        if name in PLAIN_OPTIONS
        else Entrant(OURS if name == "auto" else f"{OURS}:{name}", OURS, threads, {"implementation": name})
        for name in implementations or ("auto",)
    ]
    known = (KERAS, *(f"{KERAS}:{backend}" for backend in BACKENDS), TORCH, "none")
    for name in against:
        if name not in known:
            raise SpecError(f"unknown competitor {name!r}; known: {', '.join(known)}")
        if on_cuda and name == TORCH:
            raise SpecError("torch trains on the CPU only: leave it, or --device cuda, out")
        kind, _, backend = name.partition(":")
        settings = {"KERAS_BACKEND": backend} if backend else {}
        if kind == KERAS and on_cuda:
            settings["KERAS_BACKEND"] = backend = backend or backend_name()
            found.append(Entrant(f"{name} cuda", f"{KERAS}_{backend}_cuda", threads, {}, settings))
        elif kind == KERAS and as_published:
            settings |= PUBLISHED_SETTINGS
            found.append(Entrant(name + AS_PUBLISHED, kind, 1, {"beta_2": PUBLISHED_BETA_2}, settings))
        elif kind != "none":
            found.append(Entrant(name, kind, threads, {}, settings))
    return tuple({entrant.name: entrant for entrant in found}.values())


def check(wanted: Iterable[Experiment], entrants: Sequence[Entrant]) -> None:
    """Raises SpecError for the first experiment that cannot be, before anything is started or stored."""
    by_dataset: dict[str, list[Experiment]] = {}
    for experiment in wanted:
        by_dataset.setdefault(experiment.dataset, []).append(experiment)
    for dataset, group in by_dataset.items():
        split, classes, _ = experiments.images(dataset, 0)
        free = MEMORY_SHARE * machine.free_memory()
        for experiment in group:
            experiments.require_fit(experiment, len(split.x_train), classes, free, len(entrants))


@dataclass
class _Runner:
    """An entrant on its way through a repetition."""

    entrant: Entrant
    row: Training
    answers: Array | None = None

    @property
    def is_running(self) -> bool:
        return self.row.status == "OK"


@dataclass(frozen=True, slots=True)
class Learned:
    """What a contestant has learned: its row, the data, its answers (test samples, units), and its network.

    ``network`` is one for all contestants of a repetition: it holds these weights until the next ones are asked for.
    """

    row: Training
    split: datasets.Split
    answers: Array
    network: Network

    @property
    def labels(self) -> Array:
        """The classes that it takes the test samples for. Only where there are classes."""
        return labels_of(self.answers)

    def save(self, folder: Path) -> Path:
        """Save the network as impls.nn.saving does, whoever trained it; returns the file."""
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", f"{self.row.experiment} {self.row.contestant} {self.row.repetition}")
        path = folder / f"{name}.safetensors"
        save(self.network, path)
        return path


class Contest:
    """The contestants' processes and a folder of shared arrays; used in a ``with`` statement."""

    def __init__(self, entrants: Sequence[Entrant], seed: int = 0) -> None:
        self.entrants = entrants
        self.seed = seed
        self._processes: dict[str, pool.WorkerProcess] = {}
        self._refusals: dict[str, dict[str, Any]] = {}
        self._runners: list[_Runner] = []
        self._data: tuple[datasets.Split, Network] | None = None
        self._shared = SharedFolder()
        self._folder = self._shared.path

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *unused: object) -> None:
        for process in self._processes.values():
            process.kill()
        self._shared.close()

    def run(self, experiment: Experiment, repetition: int, progress: Progress | None = None) -> list[Training]:
        """One repetition: a row for every contestant, whatever became of it.

        What ``check`` refuses fails here, in every contestant.
        """
        self._data = None  # the memory of the repetition before
        split, classes, _ = experiments.images(experiment.dataset, repetition, experiment.scaling)
        options = {EVERY: Options(initializer=experiment.initializer)}
        network = Network(experiment.structure, experiment.image_shape, options=options, seed=self.seed + repetition)
        self._share(split, experiments.targets(experiment.loss, split.y_train, classes), network)
        self._data = split, network
        self._runners = [_Runner(entrant, _row(experiment, repetition, entrant)) for entrant in self.entrants]
        runners = self._runners
        self._start()
        for runner in runners:
            self._begin(runner, experiment, repetition)
        rng = np.random.default_rng((self.seed, repetition))
        for turn in experiment.turns(len(split.x_train)):
            for i in rng.permutation(len(runners)):
                if runners[i].is_running:
                    self._train(runners[i], turn)
            if not any(runner.is_running for runner in runners):
                break
            if progress:
                progress([runner.row for runner in runners], turn)
        for runner in runners:
            self._judge(runner, split.y_test, experiment.loss, network)
        return [runner.row for runner in runners]

    def learned(self) -> Iterator[Learned]:
        """What those have learned who came to the end of the latest repetition, each fetched when it is asked for."""
        path = self._folder / "trained.npz"
        for runner in self._runners:
            if self._data and runner.answers is not None and self._asked_for(runner, "weights", path):
                split, network = self._data
                _fill(network, path)
                yield Learned(runner.row, split, runner.answers, network)

    def _share(self, split: datasets.Split, targets: Array, network: Network) -> None:
        """Put the arrays where every contestant maps them; what it has mapped before stays as it was."""
        for name, array in (("x_train", split.x_train), ("t_train", targets), ("x_test", split.x_test)):
            path = self._folder / f"{name}.npy"
            path.unlink(missing_ok=True)
            np.save(path, array)
        np.savez(self._folder / "weights.npz", **network.named_weights())  # type: ignore[arg-type]  # any keyword

    def _start(self) -> None:
        """Start those that are not there, side by side, and stop them when they have loaded their libraries.

        One that cannot load has refused for as long as the contest lasts.
        """
        new = [entrant for entrant in self.entrants if entrant.name not in self._processes]
        for e in new:
            self._processes[e.name] = pool.WorkerProcess(
                "bench.contestant", e.threads, e.settings, kind=e.kind, options=dict(e.options)
            )
        for entrant in new:
            process = self._processes[entrant.name]
            try:
                answer = process.greet()
            except Failure as error:
                answer = {"status": error.status, "reason": error.reason}
            if "status" in answer:
                self._refusals[entrant.name] = answer
            process.pause()

    def _ask(self, runner: _Runner, do: str, seconds: float, **values: Any) -> dict[str, Any]:
        """Ask while all others stand still; what goes wrong ends the runner, and the answer is empty."""
        name = runner.entrant.name
        try:
            answer = self._refusals.get(name) or self._processes[name].take_turn(do, seconds, **values)
        except Failure as error:
            self._processes.pop(name).kill()
            answer = {"status": error.status, "reason": error.reason}
        if "status" in answer:
            runner.row = replace(runner.row, status=answer["status"], reason=answer["reason"])
            return {}
        return answer

    def _begin(self, runner: _Runner, experiment: Experiment, repetition: int) -> None:
        answer = self._ask(
            runner,
            "begin",
            BEGIN_SECONDS,
            structure=str(experiment.structure),
            image_shape=list(experiment.image_shape),
            folder=str(self._folder),
            settings=experiments.to_plain(experiment.settings),
            seed=self.seed + repetition,
        )
        if answer:
            runner.row = replace(runner.row, **answer)

    def _train(self, runner: _Runner, turn: Turn) -> None:
        row, count = runner.row, turn.epochs * (turn.last - turn.first)
        limit = TURN_SECONDS + TURN_FACTOR * count * (row.first_step_s or 0.0)
        answer = self._ask(runner, "train", limit, **asdict(turn))
        if answer:
            runner.row = replace(
                row,
                steps=(*row.steps, count),
                seconds=(*row.seconds, answer["seconds"]),
                losses=(*row.losses, answer["loss"]),
                accuracies=(*row.accuracies, answer["accuracy"]),
                peak_bytes=answer["peak_bytes"],
            )

    def _judge(self, runner: _Runner, y: Array, loss: str, network: Network) -> None:
        path = self._folder / "answers.npy"
        if not runner.is_running or not self._asked_for(runner, "answer", path):
            return
        runner.answers = np.load(path)
        accuracy, value = judged(runner.answers, y, loss)
        runner.row = replace(runner.row, test_accuracy=accuracy, test_loss=value, test_samples=len(y))
        weights = self._folder / "trained.npz"
        if sum(step.parameters for step in network.steps) <= FEW and self._asked_for(runner, "weights", weights):
            _fill(network, weights)
            kept = np.concatenate([parameter.of(network.weights).ravel() for parameter in network.parameters])
            runner.row = replace(runner.row, parameters=tuple(kept.tolist()))

    def _asked_for(self, runner: _Runner, do: str, path: Path) -> bool:
        """Whether the contestant has written what was asked for."""
        self._ask(runner, do, TURN_SECONDS + TURN_FACTOR * sum(runner.row.seconds), path=str(path))
        return runner.is_running


def _fill(network: Network, path: Path) -> None:
    """Give a network the weights that a contestant has written."""
    with np.load(path, allow_pickle=False) as stored:
        network.load_weights(dict(stored))


def judged(answers: Array, y: Array, loss: str = OF_CLASSES) -> tuple[float | None, float]:
    """Accuracy (numbers have none) and mean loss, in float64, of answers (n, units) where y is right.

    Probabilities are kept within EPSILON of 0 and 1, as Keras does.
    """
    answers = answers.astype(np.float64)
    if loss == OF_NUMBERS:
        return None, float(np.square(answers[:, 0] - y).mean())
    if loss == OF_TWO:
        chosen = np.where(y, answers[:, 0], 1 - answers[:, 0])
    else:
        chosen = answers[np.arange(len(y)), y] / answers.sum(axis=1)
    value = -np.log(np.clip(chosen, EPSILON, 1 - EPSILON)).mean()
    return float((labels_of(answers) == y).mean()), float(value)


def labels_of(answers: Array) -> Array:
    """The classes that answers (n, units) stand for: the largest unit, or of one unit its side of one half."""
    labels: Array = answers.argmax(axis=1) if answers.shape[1] > 1 else (answers[:, 0] > 0.5).astype(np.int64)
    return labels


def missing(
    wanted: Iterable[tuple[Experiment, int]], entrants: Sequence[Entrant], finished: Iterable[Training]
) -> list[tuple[Experiment, int]]:
    """The repetitions that lack a contestant's row. One that lacks any is done whole again: epochs are compared."""
    done = {(row.experiment, row.structure, row.plan, row.repetition, row.contestant) for row in finished}
    return [
        (e, repetition)
        for e, repetition in wanted
        if any((e.id, str(e.structure), e.plan, repetition, entrant.name) not in done for entrant in entrants)
    ]


def _row(experiment: Experiment, repetition: int, entrant: Entrant) -> Training:
    return Training(
        experiment=experiment.id,
        dataset=experiment.dataset,
        structure=str(experiment.structure),
        plan=experiment.plan,
        repetition=repetition,
        contestant=entrant.name,
        competitor=entrant.kind != OURS,
        status="OK",
        batches=experiment.batches,
        batch=None if experiment.batches else experiment.batch,
        turn_epochs=0 if experiment.steps else experiment.turn_epochs,
        learning_rate=described(experiment.optimizer)["learning_rate"],
        threads=entrant.threads,
    )
