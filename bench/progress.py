"""How far a run or a contest is: a bar on a terminal; of a contest, a line now and then where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.contest import Progress
from bench.experiments import Experiment, Turn
from bench.results import Training

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

LINES = 10
"""Lines of a whole contest where there is no terminal; one for each repetition, if those are more."""


def bar(console: Console) -> Bar:
    """A bar with how many are done, what is being done, and the time left; used in a ``with`` statement."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    whole = Column(no_wrap=True)  # where there is little room the text is broken, and nothing else is
    return Bar(
        BarColumn(bar_width=24, table_column=whole),
        MofNCompleteColumn(table_column=whole),
        TextColumn("{task.description}", table_column=Column()),
        TimeElapsedColumn(table_column=whole),
        TextColumn("left", table_column=whole),
        TimeRemainingColumn(table_column=whole),
        console=console,
        speed_estimate_period=600,
    )


@contextmanager
def of_repetition(console: Console, experiment: Experiment, place: int, count: int) -> Iterator[Progress]:
    """Show the turns of a repetition, which is number ``place``, from 1, of ``count`` that are to be done."""
    turns = experiment.steps or math.ceil(experiment.epochs / experiment.turn_epochs)
    if console.is_terminal:
        with bar(console) as shown:
            task = shown.add_task(f"{place}/{count} starting", total=turns)

            def move(rows: Sequence[Training], turn: Turn) -> None:
                text = f"{place}/{count} {_name(rows)}: {_figures(rows)}"
                shown.update(task, completed=_done(rows), description=text)

            yield move
        return
    every = math.ceil(turns / max(1, LINES // count))
    what = "step" if experiment.steps else "epoch" if experiment.turn_epochs == 1 else "turn"

    def write(rows: Sequence[Training], turn: Turn) -> None:
        done = _done(rows)
        if done % every == 0 or done == turns:
            line = f"{place}/{count} {_name(rows)}, {what} {done} of {turns}: {_figures(rows)}"
            console.print(line, soft_wrap=True, highlight=False)

    yield write


def _name(rows: Sequence[Training]) -> str:
    return f"{rows[0].name}, repetition {rows[0].repetition + 1}"


def _done(rows: Sequence[Training]) -> int:
    """Turns that have been."""
    return max(len(row.seconds) for row in rows)


def _figures(rows: Sequence[Training]) -> str:
    """For each contestant the last turn's seconds, loss and share of right answers, or what became of it."""
    return "; ".join(map(_of_contestant, rows))


def _of_contestant(row: Training) -> str:
    if row.status != "OK":
        return f"{row.contestant} {row.status.lower()}"
    right = row.accuracies[-1]
    figures = f"{row.contestant} {row.seconds[-1]:.3g} s, loss {row.losses[-1]:.4f}"
    return figures if right is None else f"{figures}, {right:.1%} right"
