"""The folder of figures and tables of the adaptive models, as docs/adaptive.md shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.adaptive import PROBLEMS, compete
from bench.adaptive_network import STUDIES as NETWORK_STUDIES
from bench.adaptive_studies import STUDIES as MODEL_STUDIES
from impls.specs import SpecError
from reports import adaptive_plots, adaptive_tables, plots
from reports.formats import Table, markdown_table, rich_table

if TYPE_CHECKING:
    from rich.console import Group

STUDIES = {**MODEL_STUDIES, **NETWORK_STUDIES}
CONTEST = "contest"
ALL = "all"


def write(names: Sequence[str], folder: Path) -> Iterator[Group]:
    """Make the studies of these names, "contest" or "all": NAME.png and NAME.md; gives each table for the terminal.

    Raises SpecError for an unknown name, listing the known ones.
    """
    known = (*STUDIES, CONTEST)
    for name in names:
        if name not in (ALL, *known):
            raise SpecError(f"unknown figure {name!r}; known: {ALL}, {', '.join(known)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in known:
        if name in names or ALL in names:
            table = _contest() if name == CONTEST else _study(name, folder)
            (folder / f"{name}.md").write_text(markdown_table(table) + "\n", "utf-8")
            yield rich_table(table)


def _contest() -> Table:
    return adaptive_tables.contest([result for name in PROBLEMS for result in compete(name)])


def _study(name: str, folder: Path) -> Table:
    study = STUDIES[name]()
    plots.save(adaptive_plots.figure(study), folder / f"{name}.png")
    return adaptive_tables.findings(study)
