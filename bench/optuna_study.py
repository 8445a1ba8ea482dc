"""The search itself: Optuna's TPE proposes, trials without hope end early, a storage keeps all of it.

A study can be interrupted, gone on with, and worked on by several processes. The sampler of a trial is seeded by the
study's seed and the trial's place, so that processes do not repeat each other. A trial that was cut is begun anew in
its place: an interrupted study of one process goes on as it would have. Optuna is imported when it is needed; everybody
else is given ``Trial``.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import psutil
from sqlalchemy.exc import DatabaseError

from bench.holdout import Holdout
from bench.tuning import OBJECTIVES, Choice, Search, Space, train
from impls.nn.training import Record

if TYPE_CHECKING:
    import optuna

TRIALS = 100
STORAGE = "sqlite:///layerbench-tune.sqlite"
JOURNAL = "journal:"
"""How the address of a journal file begins; any other is SQLAlchemy's."""
OPENINGS = 5
"""Attempts to open a storage: where two processes make its tables at once, one of them finds some made already."""
BUSY_SECONDS = 60
"""How long a process waits for a SQLite file that another one writes to."""

STARTUP, WARM_EPOCHS = 5, 5
"""Trials that are finished before one is pruned, and epochs after which a trial cannot be pruned yet."""
ENOUGH = 10
"""Finished trials from which it can be said what mattered."""

ABOUT = "about"
"""The attribute of a study that holds what its trials have in common."""
FAILURE, LAPS = "failure", "laps"
"""Attributes of a trial: why its training ended before its time; the seconds of training after each epoch."""
OWNER, PLACE = "owner", "place"
"""Attributes of a trial: the machine and the process that train it; its place, where that was one's that was cut."""

FINISHED = ("COMPLETE", "PRUNED")


class TuneError(RuntimeError):
    """A search cannot be made, or gone on with; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial, as it is stored. ``curve``: the judging figure by epoch; ``seconds``: of its training in all.

    ``on_front``: no other trial is better in every value; of one value, the best trials.
    """

    number: int
    state: str
    values: tuple[float, ...]
    params: Mapping[str, Any]
    curve: tuple[float, ...]
    seconds: float
    failure: str
    on_front: bool


Watch: TypeAlias = Callable[[int, int, Record], object]
"""Called after every epoch with the trial's number, the epoch from 1, and its record."""


def suggest(trial: optuna.trial.BaseTrial, space: Space) -> Choice:
    """A point of the space, as the trial's sampler, or a trial that has been, has it."""
    layers = trial.suggest_int("layers", *space.layers)
    clip = str(trial.suggest_categorical("clip", space.clips))
    return Choice(
        widths=tuple(trial.suggest_int(f"width_{number}", *space.widths) for number in range(1, layers + 1)),
        dropout=trial.suggest_float("dropout", *space.dropout),
        rate=trial.suggest_float("rate", *space.rates, log=True),
        initializer=str(trial.suggest_categorical("initializer", space.initializers)),
        clip=clip,
        clip_at=None if clip == "none" else trial.suggest_float("clip_at", *space.clip_at),
        batch=int(str(trial.suggest_categorical("batch", space.batches))),
        implementation=str(trial.suggest_categorical("implementation", space.implementations)),
    )


class OptunaStudy:
    """A study in a storage; made there if it is not there yet."""

    def __init__(self, search: Search, space: Space, address: str = STORAGE, name: str = "") -> None:
        """Raises TuneError without Optuna, for a storage that cannot be opened, and for a study of something else."""
        self.search, self.space, self.address = search, space, address
        self.name = name or search.name
        self.objective = OBJECTIVES[search.objective]
        self._optuna = _import_optuna()
        self._study = self._open()
        about = json.dumps(asdict(search) | {"space": asdict(space)}, sort_keys=True)
        found = self._study.user_attrs.get(ABOUT)
        if found is None:
            self._study.set_user_attr(ABOUT, about)
        elif found != about:
            differences = ", ".join(_differences(json.loads(found), json.loads(about)))
            raise TuneError(
                f"study {self.name} in {address} was made with other options ({differences}): "
                "give the same ones to go on with it, or another --name"
            )

    def run(self, data: Holdout, trials: int = TRIALS, watch: Watch | None = None) -> None:
        """Go on until the study has so many finished trials, those of other processes and sittings counted.

        What was cut before, of processes that have ended, comes first.
        """
        states = [self._optuna.trial.TrialState[name] for name in FINISHED]
        left = trials - self.finished
        if left <= 0:
            return
        self._begin_anew()

        def objective(trial: optuna.Trial) -> tuple[float, ...]:
            trial.set_user_attr(OWNER, _this_process())
            self._study.sampler = self._sampler(_places(self._study.get_trials(deepcopy=False))[trial.number])
            return self._try(trial, data, watch)

        enough = self._optuna.study.MaxTrialsCallback(trials, states=states)
        self._study.optimize(objective, n_trials=left, callbacks=[enough])

    @property
    def finished(self) -> int:
        """Trials that were judged or pruned."""
        return sum(trial.state.name in FINISHED for trial in self._study.get_trials(deepcopy=False))

    def trials(self) -> tuple[Trial, ...]:
        """All that there are, in their order."""
        front = {trial.number for trial in self._front()}
        return tuple(_trial(each, each.number in front) for each in self._study.get_trials(deepcopy=False))

    def best(self) -> Choice:
        """The best choice; of a front, the one with the best first value. Raises TuneError where none was judged."""
        front = self._front()
        if not front:
            raise TuneError(f"study {self.name} has no finished trial yet; give more --trials")
        sign = 1 if self.objective.directions[0] == "maximize" else -1
        best = max(front, key=lambda trial: sign * trial.values[0])
        return suggest(self._optuna.trial.FixedTrial(best.params), self.space)

    def importance(self) -> dict[str, float]:
        """The share of the first value's variance that each parameter of all trials explains; {} for too few trials.

        Functional ANOVA on a random forest (F. Hutter, H. Hoos, K. Leyton-Brown, ICML 2014).
        """
        values = [trial.values[0] for trial in self._complete() if math.isfinite(trial.values[0])]
        if len(values) < ENOUGH or len(set(values)) < 2:
            return {}
        evaluator = self._optuna.importance.FanovaImportanceEvaluator(seed=self.search.seed)
        found = self._optuna.importance.get_param_importances(
            self._study, evaluator=evaluator, target=lambda trial: trial.values[0]
        )
        return {name: float(share) for name, share in found.items() if share > 0}

    def _try(self, trial: optuna.Trial, data: Holdout, watch: Watch | None) -> tuple[float, ...]:
        """Train a trial's choice; its values. Raises TrialPruned; what else is raised is noted with the trial."""
        hopeless = False

        def judge(epoch: int, record: Record) -> bool:
            nonlocal hopeless
            if watch:
                watch(trial.number, epoch, record)
            if not self.objective.timed:  # Optuna prunes by one value only
                trial.report(record[self.objective.metric], epoch)
                hopeless = bool(trial.should_prune())
            return hopeless

        try:
            trained = train(self.search, suggest(trial, self.space), data.train, data.validation, judge)
        except Exception as error:  # it would fail again
            trial.set_user_attr(FAILURE, f"{type(error).__name__}: {error}")
            raise
        trial.set_user_attr(LAPS, trained.seconds)
        trial.set_user_attr(FAILURE, trained.failure)
        if hopeless:
            raise self._optuna.TrialPruned
        value, epoch = self.objective.best(trained.history)
        if not self.objective.timed:
            return (value,)
        return value, trained.seconds[epoch - 1] if epoch else math.inf

    def _begin_anew(self) -> None:
        """Have the next trials take the places of those that were cut, as far as nobody has taken them."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING" and _is_abandoned(trial):
                with suppress(ValueError, RuntimeError):  # another process has been faster
                    self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        trials = self._study.get_trials(deepcopy=False)
        placed = list(zip(_places(trials), map(_was_cut, trials), strict=True))
        for place in sorted({place for place, cut in placed if cut} - {place for place, cut in placed if not cut}):
            self._study.enqueue_trial({}, user_attrs={PLACE: place})

    def _front(self) -> list[Any]:
        return list(self._study.best_trials) if self._complete() else []

    def _complete(self) -> list[Any]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]

    def _sampler(self, place: int) -> Any:
        seed = int(np.random.SeedSequence((self.search.seed, place)).generate_state(1)[0])
        return self._optuna.samplers.TPESampler(seed=seed, multivariate=False)

    def _open(self) -> Any:
        try:
            for _ in range(OPENINGS - 1):
                with suppress(DatabaseError):
                    return self._create()
            return self._create()
        except Exception as error:  # whatever a database's driver raises
            raise TuneError(f"the storage {self.address} cannot be opened: {error.__cause__ or error}") from error

    def _create(self) -> Any:
        first = WARM_EPOCHS + 1  # epoch in which a trial may be pruned: they count from 1, Optuna's steps from 0
        return self._optuna.create_study(
            storage=self._storage(),
            study_name=self.name,
            directions=self.objective.directions,
            pruner=self._optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=first),
            load_if_exists=True,
        )

    def _storage(self) -> Any:
        storages = self._optuna.storages
        if self.address.startswith(JOURNAL):
            path = self.address.removeprefix(JOURNAL)
            return storages.JournalStorage(storages.journal.JournalFileBackend(path))
        waiting = {"connect_args": {"timeout": BUSY_SECONDS}} if self.address.startswith("sqlite") else {}
        return storages.RDBStorage(self.address, engine_kwargs=waiting)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise TuneError("layerbench tune needs Optuna: pip install -e '.[tune]' -c constraints.txt") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what fails is raised
    return optuna


def _places(trials: Sequence[Any]) -> list[int]:
    """Of all trials in their order: the number that each would have, had none been cut and begun anew."""
    found: list[int] = []
    again = 0
    for trial in trials:
        own = trial.user_attrs.get(PLACE)
        found.append(trial.number - again if own is None else own)
        again += own is not None
    return found


def _this_process() -> tuple[str, int]:
    """The machine, and the number that the process has there."""
    return platform.node(), os.getpid()


def _was_cut(trial: Any) -> bool:
    """Whether it was ended from outside, so that it can go well another time."""
    return trial.state.name == "FAIL" and FAILURE not in trial.user_attrs


def _is_abandoned(trial: Any) -> bool:
    """Whether the process that began it is known to have ended: one of this machine, killed or switched off with it."""
    machine, number = trial.user_attrs.get(OWNER, ("", 0))
    if machine != platform.node():
        return False
    try:
        started = psutil.Process(number).create_time()
    except psutil.NoSuchProcess:
        return True
    return bool(started > trial.datetime_start.timestamp())  # another process has got its number


def _trial(found: Any, on_front: bool) -> Trial:
    laps = found.user_attrs.get(LAPS) or [math.nan]
    values = tuple(found.values or ())
    curve = tuple(found.intermediate_values[epoch] for epoch in sorted(found.intermediate_values))
    failure = found.user_attrs.get(FAILURE, "")
    return Trial(found.number, found.state.name, values, dict(found.params), curve, laps[-1], failure, on_front)


def _differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [f"{key} {stored.get(key)}, now {value}" for key, value in now.items() if stored.get(key) != value]
