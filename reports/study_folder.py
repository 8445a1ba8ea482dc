"""A study as it is shown and kept: its table, its figures, and every epoch as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from bench import signals, studies
from bench.holdout import Holdout
from impls.specs import SpecError
from reports import plots, study_plots, study_tables
from reports.formats import Report, text

NAMES = (signals.NAME, *studies.STUDIES)
"""Every study; the one that trains nothing comes first."""


@dataclass(frozen=True, slots=True)
class Found:
    """What came out of a study; ``figures`` by file stem."""

    name: str
    report: Report
    figures: Mapping[str, Figure]


def known(names: Sequence[str]) -> tuple[str, ...]:
    """These studies in their order, all for none. Raises SpecError for one that does not exist, listing all."""
    for name in names:
        if name not in NAMES:
            raise SpecError(f"unknown study {name!r}; known: {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in (names or NAMES))


def conduct(
    name: str, data: Holdout, epochs: int | None = None, seed: int = 0, watch: studies.Watch | None = None
) -> Found:
    """Run a study, and show what came out."""
    parts = f"{len(data.train)} samples train, {len(data.validation)} validate"
    heading = (("study", name), ("data", f"{data.dataset}, {parts}"), ("seed", str(seed)))
    title = f"{name}, {data.dataset}"
    if name == signals.NAME:
        probed, stacked = signals.signals(data, seed), signals.stacks(seed=seed)
        figures = {
            name: study_plots.signals(probed, f"{title}: before the first step; of weights that are zero all is zero"),
            f"{name}-stacks": study_plots.stacks(
                stacked, f"products of {signals.SIDE} x {signals.SIDE} matrices, float32"
            ),
        }
        return Found(name, study_tables.signals_report(heading, probed, stacked), figures)
    outcomes = studies.run(name, data, epochs, seed, watch)
    shown = study_tables.report(studies.STUDIES[name].question, heading, outcomes)
    return Found(name, shown, study_plots.figures(name, outcomes, title))


def write(folder: Path, found: Found) -> tuple[Path, ...]:
    """Write NAME.md, NAME.csv and a PNG for each figure, making the folder if need be; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = {
        folder / f"{found.name}.{end}": text(found.report, form) for end, form in (("md", "markdown"), ("csv", "csv"))
    }
    for path, content in documents.items():
        path.write_text(content, encoding="utf-8")
    pictures = {folder / f"{stem}.png": figure for stem, figure in found.figures.items()}
    for path, figure in pictures.items():
        plots.save(figure, path)
    return (*documents, *pictures)
