"""Tables as values, and how they are written: for a terminal (rich), as Markdown, as HTML, as LaTeX, as CSV.

Only what is written for a terminal needs rich.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, TypeAlias

import pandas as pd

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.table import Table as Grid

FORMATS = ("table", "markdown", "csv", "latex")
MISSING = "-"
TIMES = "\N{MULTIPLICATION SIGN}"
_ALARMS = ("crashed", "timeout", "out of memory", "error", "side effect", "wrong", "impossible", "async mismatch")
"""Words of statuses that ask for attention."""
_WIDE = 10
"""Characters: in a terminal a longer heading is broken after its underscores, a last column may shrink to this."""


Number: TypeAlias = Callable[[float | None], str]
"""How a number is written."""


@dataclass(frozen=True, slots=True)
class Line:
    """The texts of one line; a strong one is set in bold."""

    cells: tuple[str, ...]
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """Lines under a common title; an empty title is not shown."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Texts to be read, and the frame of numbers behind them. Columns named in ``left`` are aligned left."""

    title: str
    headings: tuple[str, ...]
    sections: tuple[Section, ...]
    frame: pd.DataFrame
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a reader gets: lines that say what was measured and how, then tables. ``frame`` is what CSV holds."""

    heading: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    frame: pd.DataFrame


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, without an exponent from 0.0001 on; missing values are a dash."""
    if value is None or pd.isna(value):
        return MISSING
    if value == 0 or abs(value) >= 10**digits - 0.5:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".removesuffix(".")


def ratio(value: float | None) -> str:
    """Two decimals around 1, two significant digits far below it."""
    return number(value, 2 if value is not None and value < 0.995 else 3)


def with_spread(median: float | None, low: float | None, high: float | None, written: Number = number) -> str:
    """``1.23 ±4%``: the percentage is the interval's farther end, relative to the median."""
    if median is None or low is None or high is None or low != low:
        return written(median)
    spread = max(high - median, median - low) / median
    return f"{written(median)} ±{spread:.{0 if spread >= 0.01 else 1}%}"


def with_interval(median: float, low: float, high: float, written: Number = number) -> str:
    """``1.23 [1.10, 1.38]``; without the bracket where there is no interval."""
    if low != low:
        return written(median)
    return f"{written(median)} [{written(low)}, {written(high)}]"


def show(report: Report, console: Console) -> None:
    """Print a report. Lines longer than the console run over its edge: no number is ever cut short."""
    from rich.text import Text

    console.width = max([console.width, *(sum(_widths(table)) + 2 * len(table.headings) for table in report.tables)])
    for label, line in report.heading:
        console.print(Text.assemble((f"{label}: ", "bold"), line))
    for table in report.tables:
        console.print(rich_table(table))


def text(report: Report, form: str) -> str:
    """A report as Markdown, LaTeX or CSV; the last is one frame of numbers. Raises KeyError for another form."""
    if form == "csv":
        return report.frame.to_csv(index=False, lineterminator="\n")
    heading_of, table_of = _WRITERS[form]
    return "\n\n".join([heading_of(report.heading), *map(table_of, report.tables)]) + "\n"


def rich_table(table: Table) -> Group:
    """A table for a terminal, its notes below; only the last column is ever wrapped.

    Sections are grids of equal column widths, so that a long section title does not widen the first column.
    """
    from rich.console import Group
    from rich.rule import Rule
    from rich.text import Text

    widths = _widths(table)
    headings = Line(tuple(_broken(heading) if heading not in table.left else heading for heading in table.headings))
    shown: list[RenderableType] = [Text(), Text(table.title, "bold"), _grid(table, widths, [headings])]
    shown.append(Rule(style="dim"))
    for section in table.sections:
        shown += [Text(section.title, "cyan")] if section.title else []
        shown.append(_grid(table, widths, section.lines, _indent(table)))
    return Group(*shown, *(Text(note, "dim") for note in table.notes))


def markdown_table(table: Table) -> str:
    """A table as GitHub Markdown, under a heading of the third level."""
    rules = [":--" if heading in table.left else "--:" for heading in table.headings]
    lines = [_markdown_line(table.headings), _markdown_line(rules)]
    for section in table.sections:
        if section.title:
            lines.append(_markdown_line((f"**{section.title}**", *[""] * (len(table.headings) - 1))))
        for line in section.lines:
            lines.append(_markdown_line([f"**{cell}**" if line.strong else cell for cell in line.cells]))
    notes = "".join(f"\n\n{note}." for note in table.notes)
    return f"### {table.title}\n\n" + "\n".join(lines) + notes


def html_table(table: Table) -> str:
    """A table as HTML, under a heading of the second level; alarming cells have the class alarm."""
    sides = ["left" if heading in table.left else "right" for heading in table.headings]
    head = "".join(f'<th class="{side}">{escape(h)}</th>' for h, side in zip(table.headings, sides, strict=True))
    body = []
    for section in table.sections:
        if section.title:
            body.append(f'<tr><th colspan="{len(table.headings)}" class="section">{escape(section.title)}</th></tr>')
        for line in section.lines:
            cells = (_html_cell(cell, side, line.strong) for cell, side in zip(line.cells, sides, strict=True))
            body.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f"<p>{escape(note)}.</p>" for note in table.notes)
    rows = "\n".join(body)
    return f"<h2>{escape(table.title)}</h2>\n<table>\n<tr>{head}</tr>\n{rows}\n</table>\n{notes}"


def _html_cell(cell: str, side: str, strong: bool) -> str:
    kind = f"{side} alarm" if _style(cell) else side
    text = escape(cell).replace("\n", "<br>")
    return f'<td class="{kind}">{f"<b>{text}</b>" if strong else text}</td>'


def latex_table(table: Table) -> str:
    """A longtable of the packages longtable and booktabs; the text is UTF-8."""
    columns = "".join("l" if heading in table.left else "r" for heading in table.headings)
    width = len(table.headings)
    lines = [rf"\begin{{longtable}}{{{columns}}}", rf"\caption{{{_escape(table.title)}}}\\", r"\toprule"]
    lines += [_latex_line(table.headings), r"\midrule\endhead"]
    for number_of_section, section in enumerate(table.sections):
        lines += [r"\midrule"] if number_of_section else []
        if section.title:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\textbf{{{_escape(section.title)}}}}}\\")
        lines += [_latex_line(line.cells, line.strong) for line in section.lines]
    lines.append(r"\bottomrule")
    lines += [rf"\multicolumn{{{width}}}{{l}}{{\small {_escape(note)}.}}\\" for note in table.notes]
    return "\n".join([*lines, r"\end{longtable}"])


def _indent(table: Table) -> str:
    return "  " if any(section.title for section in table.sections) else ""


def _widths(table: Table) -> list[int]:
    """Characters that each column needs; a last column that is aligned left may be wrapped."""
    from rich.cells import cell_len

    indent = _indent(table)
    rows = [(indent + line.cells[0], *line.cells[1:]) for section in table.sections for line in section.lines]
    rows.append(tuple(_broken(heading) for heading in table.headings))
    widths = [
        max(cell_len(piece) for cell in column for piece in cell.split("\n")) for column in zip(*rows, strict=True)
    ]
    if table.headings[-1] in table.left:
        widths[-1] = min(widths[-1], _WIDE)
    return widths


def _grid(table: Table, widths: Sequence[int], lines: Sequence[Line], indent: str = "") -> Grid:
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable.grid(padding=(0, 2, 0, 0))
    for heading, width in zip(table.headings, widths, strict=True):
        is_left = heading in table.left
        is_wrapped = is_left and heading == table.headings[-1]
        grid.add_column(justify="left" if is_left else "right", min_width=width, no_wrap=not is_wrapped)
    for line in lines:
        first, *rest = line.cells
        cells = (Text(cell, _style(cell)) for cell in (indent + first, *rest))
        grid.add_row(*cells, style="bold" if line.strong else "")
    return grid


def _broken(heading: str) -> str:
    return heading.replace("_", "_\n") if len(heading) > _WIDE else heading


def _style(cell: str) -> str:
    words = cell.lower().replace("_", " ")
    return "red" if any(alarm in words for alarm in _ALARMS) else ""


def _markdown_line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


def _markdown_heading(heading: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(f"* **{label}**: {value}" for label, value in heading)


_LATEX = {character: rf"\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    TIMES: r"$\times$",
}


def _escape(cell: str) -> str:
    return "".join(_LATEX.get(character, character) for character in cell)


def _latex_line(cells: tuple[str, ...], strong: bool = False) -> str:
    texts = [rf"\textbf{{{_escape(cell)}}}" if strong and cell else _escape(cell) for cell in cells]
    return " & ".join(texts) + r"\\"


def _latex_heading(heading: tuple[tuple[str, str], ...]) -> str:
    items = [rf"  \item[{_escape(label)}] {_escape(value)}" for label, value in heading]
    return "\n".join([r"\begin{description}", *items, r"\end{description}"])


_WRITERS: Mapping[str, tuple[Callable[[tuple[tuple[str, str], ...]], str], Callable[[Table], str]]] = {
    "markdown": (_markdown_heading, markdown_table),
    "latex": (_latex_heading, latex_table),
}
