"""A contestant of a training contest in its own process, asked as ``bench.process`` says: it trains one network.

All contestants of a contest get the same arrays, initial weights, and batches in the same order: which samples are in a
batch follows from the seed and the epoch, and is worked out here, outside the clock. What is timed is what training is
for whoever uses the library: gathering a batch from the data, a step, and reading the loss.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bench import plain_network, process, timing
from bench.experiments import from_plain
from bench.machine import peak_memory
from bench.process import Answer, Responder
from impls import OPS, SpecError, names, registry
from impls.devices import CPU
from impls.nn.network import Network, Options
from impls.nn.structure import Structure, parse, steps
from impls.nn.training import Data, Settings, Trainer, TrainingError, predict, sampled
from impls.specs import Shape, directions_of

Array = npt.NDArray[Any]

OURS = "ours"
KERAS = "keras"
TORCH = "torch"
PLAIN = "plain"

LEAST_ANSWERED = 32
"""Test samples that are answered at once, at the least: with training batches of one it would take for ever."""


Means: TypeAlias = tuple[float, float | None]
"""Loss and accuracy over some batches; no accuracy where there are no classes."""


class Trainee(Protocol):
    """A network in training, whichever library it is made with."""

    def begin(
        self, structure: Structure, image_shape: Shape, x: Array, targets: Array, settings: Settings, seed: int
    ) -> None:
        """Make a new network for images x (n, H, W, C) and targets (n, units)."""

    def restart(self, weights: Mapping[str, Array]) -> None:
        """Bring it to these weights, no step taken; what was compiled is kept."""

    def train(self, parts: Iterable[Array]) -> Means:
        """A step on each of these batches of samples; mean loss and accuracy while the weights moved."""

    def predict(self, x: Array, batch: int) -> Array:
        """The answers (n, units): probabilities where there are classes."""

    def weights(self) -> dict[str, Array]:
        """All parameters by a network's names, in its layout."""


class OurTrainee:
    """A network of ``impls.nn``; ``implementation`` computes what it can, "auto" chooses for the rest."""

    def __init__(self, implementation: str = "auto") -> None:
        self.implementation = implementation

    def begin(
        self, structure: Structure, image_shape: Shape, x: Array, targets: Array, settings: Settings, seed: int
    ) -> None:
        """A new network and its trainer; raises SpecError where the implementation can compute nothing of it."""
        options = options_for(self.implementation, structure, image_shape)
        self.network = Network(structure, image_shape, options=options, seed=seed)
        self.trainer = Trainer(self.network, Data(x, targets), settings)

    def restart(self, weights: Mapping[str, Array]) -> None:
        """These weights, and an optimizer that has taken no step; the bound passes are kept."""
        self.network.load_weights(weights)
        self.trainer.reset()

    def train(self, parts: Iterable[Array]) -> Means:
        """Raises TrainingError where the loss stops being finite."""
        record = self.trainer.train(parts)
        return record["loss"], record.get("accuracy")

    def predict(self, x: Array, batch: int) -> Array:
        """The answers (n, units)."""
        return predict(self.network, x, batch)

    def weights(self) -> dict[str, Array]:
        """By the network's names."""
        return self.network.named_weights()


def options_for(implementation: str, structure: Structure, image_shape: Shape) -> dict[str, Options]:
    """Options that have an implementation compute every layer and direction that it can; "auto" the rest.

    Raises SpecError for one that does not exist (listing those that do) or that can compute nothing of the structure.
    """
    if implementation == "auto":
        return {}
    known = dict.fromkeys(name for op in OPS for name in names(op))
    if implementation not in known:
        raise SpecError(f"unknown implementation {implementation!r}; known: auto, {', '.join(known)}")
    options = {}
    for step in steps(structure, image_shape):
        case = step.case(batch=1)
        if case is None or implementation not in names(case.op):
            continue
        record = registry.get(case.op, implementation)
        offered = [d for d in directions_of(case.op) if record.device is CPU and not record.supports(case.spec, d)]
        if offered:
            options[step.name] = Options(implementations=dict.fromkeys(offered, implementation))
    if not options:
        raise SpecError(f"{implementation} computes no layer of {structure} in the computer's memory")
    return options


class Contestant(Responder):
    """What this process holds between requests: its trainee, the data, and what the batches follow from."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.trainee: Trainee | None = None
        self.epoch = -1
        self.parts: list[Array] = []

    def do_load(self, kind: str, options: dict[str, Any]) -> Answer:
        """Import what it computes with, and set its threads; ``options`` are the trainee's."""
        library = None
        if kind == PLAIN:
            if reason := plain_network.missing(**options):
                return {"status": "UNAVAILABLE", "reason": reason}
        elif kind != OURS:
            record = registry.get("dense", kind)
            reason, library = record.missing(), record.plan_type
            if reason:
                return {"status": "UNAVAILABLE", "reason": reason}
        pools = process.set_threads(library, self.threads)
        self.trainee = _trainee(kind, options)
        return {"threads": pools}

    def do_begin(
        self,
        structure: str,
        image_shape: list[int],
        folder: str,
        settings: dict[str, Any],
        seed: int,
    ) -> Answer:
        """Map the data, make the network, take one step that compiles, and go back to the initial weights.

        ``setup_s`` is all of that but the step; ``first_step_s`` the step, with whatever is compiled or traced then.
        """
        self.x, targets, self.x_test = (_mapped(folder, name) for name in ("x_train", "t_train", "x_test"))
        with np.load(Path(folder) / "weights.npz", allow_pickle=False) as stored:
            self.initial = dict(stored)
        self.settings, self.seed, self.epoch = from_plain(settings), seed, -1
        trainee = self._trainee
        start = timing.CLOCK()
        trainee.begin(parse(structure), (*image_shape,), self.x, targets, self.settings, seed)
        trainee.restart(self.initial)
        setup = timing.CLOCK() - start
        sizes = {len(part): part for part in self._parts(0)}
        first_step = timing.sample([lambda: trainee.train([next(iter(sizes.values()))])], _done, 1, warm=False).host
        trainee.train(sizes.values())
        trainee.restart(self.initial)
        return {"setup_s": setup, "first_step_s": first_step}

    def do_train(self, epoch: int, first: int, last: int, epochs: int = 1) -> Answer:
        """Train on the batches of a Turn; loss and accuracy are means while the weights move."""
        trainee = self._trainee
        parts = [part for each in range(epoch, epoch + epochs) for part in self._parts(each)[first:last]]
        found: list[Means] = []
        try:
            seconds = timing.sample([lambda: found.append(trainee.train(parts))], _done, 1, warm=False).host
        except TrainingError as error:
            return {"status": "DIVERGED", "reason": str(error)}
        loss, accuracy = found[0]
        if not math.isfinite(loss):
            where = f"epoch {epoch + 1}" if epochs == 1 else f"epochs {epoch + 1} to {epoch + epochs}"
            return {"status": "DIVERGED", "reason": f"the loss became {loss} in {where}"}
        return {"seconds": seconds, "loss": loss, "accuracy": accuracy, "peak_bytes": peak_memory()}

    def do_answer(self, path: str) -> Answer:
        """Write the answers to the test images."""
        size = max(LEAST_ANSWERED, *(len(part) for part in self._parts(0)))
        np.save(path, self._trainee.predict(self.x_test, min(size, len(self.x_test))))
        return {}

    def do_weights(self, path: str) -> Answer:
        """Write all parameters by a network's names."""
        np.savez(path, **self._trainee.weights())  # type: ignore[arg-type]  # the stub takes any keyword for allow_pickle
        return {}

    @property
    def _trainee(self) -> Trainee:
        if self.trainee is None:
            raise RuntimeError("nothing is loaded")
        return self.trainee

    def _parts(self, epoch: int) -> list[Array]:
        """The batches of an epoch, worked out once."""
        if epoch != self.epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self.parts = list(sampled(len(self.x), self.settings, rng))
            self.epoch = epoch
        return self.parts


def _trainee(kind: str, options: dict[str, Any]) -> Trainee:
    if kind == OURS:
        return OurTrainee(**options)
    if kind == PLAIN:
        return plain_network.PlainTrainee(**options)
    if kind.startswith(KERAS):
        from bench.keras_network import KerasTrainee

        return KerasTrainee(**options)
    from bench.torch_network import TorchTrainee

    return TorchTrainee(**options)


def _mapped(folder: str, name: str) -> Array:
    """An array that all contestants share; who writes to it has a copy of that page."""
    return np.asarray(np.load(Path(folder) / f"{name}.npy", mmap_mode="c"))


def _done() -> None:
    """A step has finished when it returns: its loss has been read."""


if __name__ == "__main__":
    process.serve(Contestant(threads=int(sys.argv[1])))
