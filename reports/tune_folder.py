"""A search as it is shown and kept: tables, figures, every trial as CSV, and the networks that were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from bench.optuna_study import OptunaStudy, Trial
from bench.tuning import Chosen, Objective, Search
from impls.nn.saving import save
from reports import plots, tune_plots, tune_tables
from reports.formats import Report, text


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a search has found so far, and the network that was chosen."""

    name: str
    address: str
    search: Search
    objective: Objective
    trials: tuple[Trial, ...]
    importance: Mapping[str, float]
    chosen: Chosen

    @classmethod
    def of(cls, study: OptunaStudy, chosen: Chosen) -> Found:
        """Everything that the storage has of a study."""
        about = (study.name, study.address, study.search, study.objective)
        return cls(*about, study.trials(), study.importance(), chosen)

    @property
    def report(self) -> Report:
        """The best trials or the front, what mattered, the network that was chosen."""
        search = self.search
        how = f"{search.optimizer}, {search.activation}, at most {search.epochs} epochs, seed {search.seed}"
        heading = (
            ("study", f"{self.name} in {self.address}"),
            ("searched for", f"{self.objective.metric}{' against time' if self.objective.timed else ''}"),
            ("trials of", ", ".join(filter(None, (how, search.place)))),
        )
        return tune_tables.report(heading, self.objective, self.trials, self.importance, self.chosen)

    @property
    def figures(self) -> dict[str, Figure]:
        """Every figure that the trials allow, by file stem."""
        return tune_plots.figures(self.objective, self.trials, self.importance, self.name)


def write(folder: Path, found: Found) -> tuple[Path, ...]:
    """Write both networks, tune.md, trials.csv and a PNG for each figure; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = {"best.safetensors": found.chosen.judged, "retrained.safetensors": found.chosen.retrained}
    for name, network in networks.items():
        save(network, folder / name)
    documents = {"tune.md": text(found.report, "markdown"), "trials.csv": text(found.report, "csv")}
    for name, content in documents.items():
        (folder / name).write_text(content, encoding="utf-8")
    figures = {f"{stem}.png": figure for stem, figure in found.figures.items()}
    for name, figure in figures.items():
        plots.save(figure, folder / name)
    return tuple(folder / name for name in (*networks, *documents, *figures))
