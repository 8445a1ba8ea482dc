"""Tables of a search: its best trials, what mattered, and the network that was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from bench.optuna_study import Trial
from bench.tuning import Chosen, Objective
from reports.formats import MISSING, Line, Report, Section, Table, number

BEST = 10
"""Trials that are shown where there is no front."""


def report(
    heading: Sequence[tuple[str, str]],
    objective: Objective,
    trials: Sequence[Trial],
    importance: Mapping[str, float],
    chosen: Chosen,
) -> Report:
    """The best trials, or the front; the importance of each parameter; the chosen network's figures."""
    tables = [_best(objective, trials)]
    if importance:
        tables.append(_importance(importance))
    tables.append(_chosen(chosen))
    return Report(tuple(heading), tuple(tables), frame(objective, trials))


def frame(objective: Objective, trials: Sequence[Trial]) -> pd.DataFrame:
    """Every trial: number, state, values, parameters, epochs, seconds."""
    names = (objective.metric, "seconds_until_then")
    return pd.DataFrame(
        {
            "trial": trial.number,
            "state": trial.state,
            **dict(zip(names, trial.values, strict=False)),
            **trial.params,
            "seconds": trial.seconds,
            "failure": trial.failure,
            "on_front": trial.on_front,
        }
        for trial in trials
    )


def _best(objective: Objective, trials: Sequence[Trial]) -> Table:
    sign = -1 if objective.directions[0] == "maximize" else 1
    judged = sorted((t for t in trials if t.state == "COMPLETE"), key=lambda t: (sign * t.values[0], *t.values[1:]))
    shown = [trial for trial in judged if trial.on_front] if objective.timed else judged[:BEST]
    states = ", ".join(f"{sum(t.state == s for t in trials)} {s.lower()}" for s in sorted({t.state for t in trials}))
    headings = (
        *("trial", _value(objective), *(["seconds until then"] if objective.timed else [])),
        *("layers", "dropout", "rate", "weights", "clipped", "batch", "computed by"),
    )
    title = "The front: nothing is both better and sooner" if objective.timed else f"The best {len(shown)} trials"
    lines = tuple(Line(_cells(trial)) for trial in shown)
    left = ("layers", "weights", "clipped", "computed by")
    return Table(title, headings, (Section("", lines),), frame(objective, shown), left, (f"trials: {states}",))


def _cells(trial: Trial) -> tuple[str, ...]:
    p = trial.params
    widths = "-".join(str(p[f"width_{layer}"]) for layer in range(1, p["layers"] + 1))
    clipped = p["clip"] if p["clip"] == "none" else f"{p['clip']}, {number(p['clip_at'], 2)}"
    values = (f"{trial.values[0]:.4f}", *(number(value) for value in trial.values[1:]))
    how = (number(p["dropout"], 2), number(p["rate"], 2), p["initializer"], clipped, str(p["batch"]))
    return (str(trial.number), *values, widths, *how, p["implementation"])


def _value(objective: Objective) -> str:
    return objective.metric.replace("val_", "val. ")


def _importance(importance: Mapping[str, float]) -> Table:
    ordered = sorted(importance.items(), key=lambda item: -item[1])
    lines = tuple(Line((name, f"{share:.1%}")) for name, share in ordered)
    note = "share of the variance of the finished trials' values that a parameter explains, by functional ANOVA"
    shown = pd.DataFrame(ordered, columns=["parameter", "importance"])
    return Table("What mattered", ("parameter", "importance"), (Section("", lines),), shown, ("parameter",), (note,))


def _chosen(chosen: Chosen) -> Table:
    rows = {
        "best.safetensors": ("as it was judged", chosen.validation, None),
        "retrained.safetensors": (f"on all training data, {chosen.epoch} epochs", None, chosen.test),
    }
    lines = tuple(
        Line((name, how, *(cell for figures in (validation, test) for cell in _figures(figures))))
        for name, (how, validation, test) in rows.items()
    )
    headings = ("file", "trained", "val. loss", "val. accuracy", "test loss", "test accuracy")
    shown = pd.DataFrame([line.cells for line in lines], columns=list(headings))
    structure = str(chosen.judged.structure)
    note = "the test part was looked at once, with the second one"
    return Table(f"Chosen: {structure}", headings, (Section("", lines),), shown, ("file", "trained"), (note,))


def _figures(record: Mapping[str, float] | None) -> tuple[str, str]:
    return (MISSING, MISSING) if record is None else (number(record["loss"]), f"{record['accuracy']:.2%}")
