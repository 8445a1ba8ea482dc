"""How far a study or a search is: a line on a terminal that changes, lines now and then where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench import optuna_study, studies
from bench.progress import bar
from impls.nn.training import Record

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 10
"""Trials between two lines where there is no terminal."""


@contextmanager
def of_study(console: Console, name: str) -> Iterator[studies.Watch]:
    """Show the epochs of a study's arms as they are logged."""
    if console.is_terminal:
        with console.status(name) as status:
            yield lambda arm, epoch, record: status.update(f"{name}: {_arm(arm, epoch, record)}")
        return
    yield lambda arm, epoch, record: console.print(
        f"{name}: {_arm(arm, epoch, record)}", soft_wrap=True, highlight=False
    )


@contextmanager
def of_search(console: Console, study: optuna_study.OptunaStudy, trials: int) -> Iterator[optuna_study.Watch]:
    """Show the trials of a search, those of other processes counted, and the epoch of the one that is trained here."""
    metric = study.objective.metric
    if console.is_terminal:
        with bar(console) as shown:
            task = shown.add_task("starting", total=trials, completed=study.finished)

            def move(trial: int, epoch: int, record: Record) -> None:
                done = study.finished if epoch == 1 else None
                text = f"trial {trial}, epoch {epoch}: {metric} {record[metric]:.4f}"
                shown.update(task, completed=done, description=text)

            yield move
            shown.update(task, completed=study.finished, description="done")
        return

    def write(trial: int, epoch: int, record: Record) -> None:
        if epoch == 1 and trial % EVERY == 0:
            line = f"{study.finished} of {trials} trials finished, now trial {trial}"
            console.print(line, soft_wrap=True, highlight=False)

    yield write


def _arm(arm: studies.Arm, epoch: int, record: Record) -> str:
    figures = f"loss {record['loss']:.4f}, validation loss {record['val_loss']:.4f}, {record['val_accuracy']:.1%} right"
    return f"{arm.name}, epoch {epoch} of {arm.settings.epochs}: {figures}"
