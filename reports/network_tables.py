"""Tables of the network: where a training step's time goes, and what the choices of "auto" cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import groupby

import pandas as pd

from bench.auto import Regret
from bench.ceilings import Ceiling, binding, in_words
from bench.profile_training import Lap, Profile
from bench.results import Run
from impls import parse_case
from impls.nn.network import ACTIVATION
from reports.formats import MISSING, Line, Report, Section, Table, number, ratio
from reports.tables import heading


def profile_report(run: Run, profiles: Mapping[tuple[str, str], Profile], limits: Sequence[Ceiling] = ()) -> Report:
    """A table for each network and implementation that was asked for; the frame has the parts of all."""
    tables = tuple(profile_table(profile, limits, ", ".join(names)) for names, profile in profiles.items())
    frames = {key: table.frame for key, table in zip(profiles, tables, strict=True)}
    frame = pd.concat(frames, names=["network", "asked_for", "part"]).reset_index(["network", "asked_for"])
    return Report(heading(run, ()), tables, frame)


def profile_table(profile: Profile, limits: Sequence[Ceiling] = (), name: str = "network") -> Table:
    """Per layer and direction, in the order of a step: time, share of the step, GFLOP/s, implementation, problem.

    ``limits``: the machine's ceilings with the threads that trained; each problem is then held against what binds it.
    """
    frame = pd.DataFrame.from_records([asdict(lap) for lap in profile.laps], columns=[f.name for f in fields(Lap)])
    frame["share"] = frame["seconds"] / profile.step_s
    columns = {
        "layer": [*frame["layer"], "step"],
        "direction": [*frame["direction"], ""],
        "ms": [number(seconds * 1e3) for seconds in (*frame["seconds"], profile.step_s)],
        "share": [f"{share:.1%}" for share in (*frame["share"], 1)],
        "GFLOP/s": [*map(number, frame["gflops"]), ""],
    }
    if limits:
        frame["fraction"] = [_fraction(lap, limits) for lap in profile.laps]
        columns["of peak"] = [*(MISSING if share != share else f"{share:.0%}" for share in frame["fraction"]), ""]
    for column in ("implementation", "problem"):
        columns[column] = [*(text or MISSING for text in frame[column]), ""]
    lines = [Line(cells) for cells in zip(*columns.values(), strict=True)]
    lines[-1] = replace(lines[-1], strong=True)
    unfused = sum(lap.seconds for lap in profile.laps if lap.direction == ACTIVATION) / profile.step_s
    notes: tuple[str, ...] = (
        f"medians over {profile.steps} steps of {profile.batch} samples; lines without a layer are around them",
        "share: of the median step; medians of parts need not add up to it where the machine is disturbed",
        f"{profile.overhead:.1%} of a step is beyond the layers: {unfused:.1%} activations that none of them fuses; "
        "batch, loss, update. Dropout is a layer",
    )
    if limits:
        notes += (f"of peak: the least time that {in_words(limits)} allow, over the time taken; what binds, counts",)
    left = ("layer", "direction", "implementation", "problem")
    title = f"Training step of {name}: {profile.structure}"
    return Table(title, tuple(columns), (Section("", tuple(lines)),), frame, left, notes)


def _fraction(lap: Lap, limits: Sequence[Ceiling]) -> float:
    """The least time that the machine's ceilings allow, over the time that was taken; NaN for what is no problem."""
    bound = binding(parse_case(lap.problem), lap.direction, limits) if lap.problem else None
    return bound.seconds / lap.seconds if bound else math.nan


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


def _regret_line(regret: Regret) -> Line:
    numbers = str(regret.problems), number(regret.mean, 4), ratio(regret.worst)
    return Line((regret.rule, *numbers, regret.worst_case))
