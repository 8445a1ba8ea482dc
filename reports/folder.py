"""The folder that is kept of a run: a README, every measurement, and the figures."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from bench.results import Row, Run, write_csv
from reports import plots, tables
from reports.best_of_each import best_of_each, worst_cases
from reports.formats import Table, markdown_table
from reports.frames import latest, timed
from reports.starting import starting

LARGE = 500_000
"""Bytes of CSV above which it is compressed."""

_READING = """\
## How to read this

* An error is in units of the bound derived for the algorithm and arithmetic that an implementation declares: above 1 it
  is wrong. What is wrong is not timed, and says so.
* Times come from rounds in which every implementation of a case runs once, in shuffled order. A ratio is formed round
  by round, then summarised by its median and a 95 % bootstrap interval: it holds even where the machine's speed drifts.
* A speed-up is the competitor's time over the implementation's: above 1 the implementation is faster. Geometric means
  stand on the cases that were timed for both; means over different cases do not compare.
* `A = B < C`: A and B tie, because the interval of their ratio holds 1; C is slower than A.
"""


def folder_name(run: Run) -> str:
    """``<machine>-<date>``, in characters that every file system takes."""
    machine = re.sub(r"[^A-Za-z0-9._-]+", "-", str(run.machine.get("id") or "machine")).strip("-.")
    return f"{machine or 'machine'}-{run.started[:10]}"


def write_results(folder: Path, run: Run, rows: Iterable[Row]) -> tuple[Path, ...]:
    """Write a run's folder, making it if need be, and return the files.

    README.md (heading, summary, figures), cases.md (every case), measurements.csv (compressed if large; samples
    included), run.json (machine, versions, threads, seed), and a PNG for each figure.
    """
    rows = latest(rows)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {folder / f"{name}.png": figure for name, figure in plots.figures(run, rows).items()}
    for path, figure in figures.items():
        plots.save(figure, path)
    documents = {
        folder / "README.md": _readme(run, rows, [path.name for path in figures]),
        folder / "cases.md": page("Every case", tables.best(run, rows), tables.pivot(run, rows)),
        folder / "run.json": json.dumps(asdict(run), indent=1) + "\n",
    }
    for path, content in documents.items():
        path.write_text(content, encoding="utf-8")
    return (*documents, _write_measurements(folder, run, rows), *figures)


def _readme(run: Run, rows: tuple[Row, ...], images: list[str]) -> str:
    heading = listed(tables.heading(run, rows))
    body = (
        tables.summary(run, rows),
        best_of_each(rows),
        worst_cases(rows),
        tables.means(run, rows),
        starting(rows),
        tables.not_timed(run, rows),
    )
    gallery = "\n\n".join(f"![{name.removesuffix('.png')}]({name})" for name in images)
    timed_count = f"{len(timed(rows))} of {len(rows)} measurements carry a time; [every case](cases.md)."
    title = f"Suite {run.suite} on {run.machine.get('id', 'a machine without a name')}, {run.started[:10]}"
    return page(title, *body, before=f"{heading}\n\n{timed_count}\n\n{_READING}", after=gallery)


def listed(heading: Iterable[tuple[str, str]]) -> str:
    """What stands above a report, as a list in Markdown."""
    return "\n".join(f"* **{label}**: {value}" for label, value in heading)


def page(title: str, *shown: Table, before: str = "", after: str = "") -> str:
    """A page in Markdown: a title, a text, the tables that have a section, another text."""
    parts = [f"# {title}", before, *(markdown_table(table) for table in shown if table.sections), after]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _write_measurements(folder: Path, run: Run, rows: tuple[Row, ...]) -> Path:
    path = folder / "measurements.csv"
    write_csv(path, run, rows)
    return packed_if_large(path)


def packed_if_large(path: Path) -> Path:
    """A CSV file, or the compressed one that takes its place where it is large."""
    if path.stat().st_size <= LARGE:
        return path
    packed = path.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
    return packed
