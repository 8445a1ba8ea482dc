"""The folder that is kept of the suite ``scaling``: a page of figures and tables, and the folder of each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.suites import BASE
from reports import folder, plots, scaling_plots
from reports.formats import markdown_table
from reports.scaling import Measured, report, tables, threads_text

_READING = """\
## How to read this

* Around one convolution ({base}) one parameter at a time is varied. Figures show the operations of the
  definition over the median time of a call, tables the time. What stands at one value ran in the same shuffled rounds;
  the values of a line did not.
* The two black lines are the model, of rates that were measured in the same run: solid, the highest rate of
  multiply-adds; dotted, the rate at which every array is moved once through the memories that hold it. The lower one
  binds. A line along it uses the machine in full; a level one takes as much longer as there is more to do; one that
  falls to the left pays for the call itself; Winograd, which multiplies less often, may lie above the solid one.
* Speed-ups by threads are ratios of two runs: the machine may have drifted between them. The model's is the ratio of
  the times that bind with each number of threads, from the rates that these reach together.
"""


def write_results(target: Path, taken: Sequence[Measured]) -> tuple[Path, ...]:
    """Write the folder, making it if need be, and return the files.

    README.md (figures, tables, what limits the code), a PNG for each figure, points.csv (every point with its model),
    and in ``1-thread``, ``2-threads`` ... what is kept of every run: measurements, machine, all cases.
    """
    target.mkdir(parents=True, exist_ok=True)
    figures = {target / f"{stem}.png": figure for stem, figure in scaling_plots.figures(taken).items()}
    for path, figure in figures.items():
        plots.save(figure, path)
    readme, points = target / "README.md", target / "points.csv"
    readme.write_text(_page(taken, {path.stem for path in figures}), encoding="utf-8")
    report(taken).frame.to_csv(points, index=False, lineterminator="\n", float_format="%.6g")
    runs = {target / _name(each): each for each in taken}
    kept = [file for path, each in runs.items() for file in folder.write_results(path, each.run, each.rows)]
    return (readme, points, *figures, *kept)


def _page(taken: Sequence[Measured], stems: set[str]) -> str:
    from reports.scaling_limits import limits_text, pieces_table  # imports Numba, which nothing else here needs

    shown = report(taken)
    links = (f"[{threads_text(each.threads)}]({_name(each)}/README.md)" for each in taken)
    parts = [_READING.format(base=BASE), f"Each run with every case: {', '.join(links)}."]
    for stem, table in tables(shown.frame).items():
        parts += [f"![{stem}]({stem}.png)"] if stem in stems else []
        parts.append(markdown_table(table))
    parts += ["## What limits it on 64 threads", limits_text().strip(), markdown_table(pieces_table())]
    title = f"How convolutions scale on {taken[-1].run.machine.get('id', 'a machine without a name')}"
    return folder.page(title, before=folder.listed(shown.heading), after="\n\n".join(map(str.strip, parts)))


def _name(each: Measured) -> str:
    """Of a run's folder: ``2-threads``."""
    return threads_text(each.threads).replace(" ", "-")
