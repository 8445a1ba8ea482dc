"""The tables of the adaptive models: what the studies found, and the contest, losses included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

import pandas as pd

from bench.adaptive import ADAPTIVE, PARTICLES, Result
from bench.adaptive_studies import Study
from impls.nn.adaptive.polish import STEPS
from reports.formats import Line, Section, Table, number


def findings(study: Study) -> Table:
    """What a study found."""
    lines = tuple(Line(finding) for finding in study.findings)
    frame = pd.DataFrame(study.findings, columns=["what", "found"])
    return Table(study.title, ("what", "found"), (Section("", lines),), frame, left=("what", "found"))


def contest(results: Sequence[Result]) -> Table:
    """Every contestant by problem, the smallest error in bold; a note says how often the adaptive model lost."""
    sections, lost = [], []
    for name, group in groupby(results, lambda result: result.problem):
        ranked = sorted(group, key=lambda result: result.error)
        own = next(result for result in ranked if result.contestant == ADAPTIVE)
        if ranked[0] is not own:
            lost.append(f"{name} (to {ranked[0].contestant}, {number(own.error / ranked[0].error)} times its error)")
        lines = tuple(_line(result, result is ranked[0]) for result in ranked)
        sections.append(Section(f"{name}, noise {number(ranked[0].floor)}", lines))
    verdict = f"the adaptive model loses on {len(lost)} of {len(sections)} problems" + "".join(
        f"{': ' if k == 0 else '; '}{each}" for k, each in enumerate(lost)
    )
    notes = (
        "error: root mean square on held-out samples, in deviations of their response; noise: that of the truth itself",
        "parameters: learned numbers, of trees one per node; the adaptive model's with its output's location and scale",
        f"epochs: the adaptive model's move {PARTICLES} particles each, and up to {STEPS} Gauss-Newton steps follow",
        "seconds: of one fit each, one after the other, by the clock on the wall; kernel ridge's with its search",
        verdict,
    )
    headings = ("contestant", "error", "parameters", "epochs", "seconds")
    frame = pd.DataFrame([asdict(result) for result in results])
    return Table("Adaptive model and others", headings, tuple(sections), frame, left=("contestant",), notes=notes)


def _line(result: Result, best: bool) -> Line:
    epochs = "-" if result.epochs is None else str(result.epochs)
    cells = (result.contestant, number(result.error), str(result.parameters), epochs, number(result.seconds))
    return Line(cells, best)
