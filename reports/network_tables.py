"""Tables of the network: where a training step's time goes, and what the choices of "auto" cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from itertools import groupby

import pandas as pd

from bench.auto import Regret
from bench.profile_training import Lap, Profile
from reports.formats import MISSING, Line, Section, Table, number, ratio


def profile_table(profile: Profile) -> Table:
    """Per layer and direction, in the order of a step: time, share of the step, GFLOP/s, implementation, problem."""
    frame = pd.DataFrame.from_records([asdict(lap) for lap in profile.laps], columns=[f.name for f in fields(Lap)])
    frame["share"] = frame["seconds"] / profile.step_s
    lines = [_lap_line(lap, profile.step_s) for lap in profile.laps]
    lines.append(Line(("step", "", number(profile.step_s * 1e3), f"{1:.1%}", "", "", ""), strong=True))
    notes = (
        f"medians over {profile.steps} steps of {profile.batch} samples; lines without a layer are around them",
        f"{profile.overhead:.1%} of a step is beyond the layers: activations, batch, loss, update; dropout is a layer",
    )
    headings = ("layer", "direction", "ms", "share", "GFLOP/s", "implementation", "problem")
    left = ("layer", "direction", "implementation", "problem")
    return Table(f"Training step of {profile.structure}", headings, (Section("", tuple(lines)),), frame, left, notes)


def regret_table(regrets: Iterable[Regret]) -> Table:
    """Per operation and direction: what each rule costs against the fastest measured, the cheapest rule first."""
    found = tuple(regrets)
    sections = tuple(
        Section(f"{op} {direction}", tuple(map(_regret_line, group)))
        for (op, direction), group in groupby(found, key=lambda regret: (regret.op, regret.direction))
    )
    return Table(
        "What a choice costs",
        ("rule", "problems", "mean", "worst", "worst problem"),
        sections,
        pd.DataFrame.from_records([asdict(regret) for regret in found], columns=[f.name for f in fields(Regret)]),
        left=("rule", "worst problem"),
        notes=("time of what is chosen / time of the fastest; the mean is geometric, over what was timed",),
    )


def _lap_line(lap: Lap, step_s: float) -> Line:
    share = f"{lap.seconds / step_s:.1%}"
    texts = lap.implementation or MISSING, lap.problem or MISSING
    return Line((lap.layer, lap.direction, number(lap.seconds * 1e3), share, number(lap.gflops), *texts))


def _regret_line(regret: Regret) -> Line:
    numbers = str(regret.problems), number(regret.mean, 4), ratio(regret.worst)
    return Line((regret.rule, *numbers, regret.worst_case))
