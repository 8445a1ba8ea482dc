"""The page about one GPU: what is wrong, first; then what is slow, and what bounds it.

It is made from the files of bench.cuda_acceptance alone, so that it can be made anew on another machine.
"""

from __future__ import annotations

import importlib.util
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from bench import lines
from bench.ceilings import Ceiling, bound_by_bytes, bound_by_flops, ceiling_of, longer
from bench.cuda_acceptance import NOT_REACHED, TOOLS
from bench.cuda_ceilings import DEVICE_COPY, FMA
from bench.results import END_TO_END, FAULTS, KERNEL, KERNEL_FLUSHED, TIMED, Row, Run
from bench.statistics import geometric_mean
from impls import DIRECTIONS, OPS, parse_case
from impls.specs import FORWARD, ConvSpec
from reports import published, tables
from reports.formats import (
    MISSING,
    TIMES,
    Line,
    Section,
    Table,
    html_table,
    markdown_table,
    number,
    ratio,
    with_interval,
)

TIMED_PARTS = ("networks", "grid")
WORST = 10
AIM = 10.0
"""End to end at least so many times below the published times: a sanity line, since the card is another one."""
PUBLISHED = ("numba_cuda_direct", "numba_cuda_tiles", "numba_cuda_viafft")
CROSSOVERS = (
    ("numba_cuda_viafft", "numba_cuda_tiles", "k*k*C*H*W"),
    ("numba_cuda_viafft", "numba_cuda_direct", "k*k*C*H*W"),
    ("numba_cuda_tiles", "numba_cuda_direct", "k*k*H*W/C"),
)
"""(the one that wins where the quantity is large, the one that it replaces, the quantity of the published rule)."""

_STYLE = """\
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 1px 10px; border-bottom: 1px solid #ddd; vertical-align: top; }
.left { text-align: left; } .right { text-align: right; } .section { text-align: left; padding-top: 10px; }
.alarm { color: #b00020; font-weight: bold; } p { color: #555; margin: 2px 0; } pre { overflow-x: auto; }
"""


@dataclass
class Part:
    """What one file holds: its records by kind, its rows, and the run that they belong to."""

    name: str
    run: Run | None = None
    rows: list[Row] = field(default_factory=list)
    records: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def left_out(self) -> str:
        """What the part did not do; a file without an end was cut off."""
        ends = self.records["end"]
        return str(ends[-1]["left_out"]) if ends else "cut off before its end"


def read(files: Mapping[str, Path]) -> dict[str, Part]:
    """Every part that was begun."""
    parts = {}
    for name, path in files.items():
        part = parts[name] = Part(name)
        for kind, record in lines.read(path):
            if kind == "row":
                part.rows.append(lines.row_of(record))
            elif kind == "run":
                part.run = lines.run_of(record)
            else:
                part.records[kind].append(record)
        part.rows.sort(key=lambda row: (OPS.index(row.op), DIRECTIONS.index(row.direction)))
    return parts


def write_page(folder: Path, files: Mapping[str, Path]) -> tuple[tuple[Path, ...], bool]:
    """Write report.md and report.html; what was written, and whether nothing of ours is wrong."""
    parts = read(files)
    wrong = wrong_table(parts)
    found = [*([wrong] if wrong.sections else []), *_tables(parts)]
    verdict = _verdict(wrong, parts)
    written = {
        folder / "report.md": "\n\n".join([f"# {_title(parts)}", f"**{verdict}**", *map(markdown_table, found)]) + "\n",
        folder / "report.html": _html(_title(parts), verdict, bool(wrong.sections), found),
    }
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    return tuple(written), not wrong.sections


def write_results(folder: Path, files: Mapping[str, Path]) -> tuple[Path, ...]:
    """Write what ``layerbench report --output`` writes of a run, for every timed part; nothing without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return ()
    from reports.folder import write_results as write_run

    timed = [part for name, part in read(files).items() if name in TIMED_PARTS and _timed(part.rows)]
    return tuple(path for part in timed if part.run for path in write_run(folder / part.name, part.run, part.rows))


def wrong_table(parts: Mapping[str, Part]) -> Table:
    """Everything of ours that is wrong or broke, the parts that ended with an error, and what a sanitizer found."""
    sections = []
    for part in parts.values():
        bad = [row for row in part.rows if row.status in FAULTS and not row.competitor]
        kinds: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
        for row in bad:
            kinds[row.op, row.direction, row.implementation, row.status].append(row)
        found = [
            Line((name, f"{op} {direction}", status, str(len(rows)), f"{rows[0].spec}: {rows[0].reason}"), strong=True)
            for (op, direction, name, status), rows in kinds.items()
        ]
        found += [
            Line(
                (
                    call["name"],
                    f"{call['case']} {call['direction']}",
                    call["status"],
                    "1",
                    f"{call['tool']}: {call['reason']}",
                )
            )
            for call in part.records["call"]
            if call["status"] in FAULTS
        ]
        found += [
            Line((tool["name"], "", "ERROR", "", f"{tool['reason']}; see {tool['log']}"), strong=True)
            for tool in part.records["tool"]
            if tool["status"] == "CRASHED"
        ]
        if part.left_out.startswith("ended by"):
            found.append(Line((part.name, "", "ERROR", "", part.left_out), strong=True))
        sections += [Section(part.name, tuple(found))] if found else []
    return _table(
        "What is wrong",
        ("implementation", "where", "status", "cases", "the first of them"),
        sections,
        left=("implementation", "where", "status", "the first of them"),
    )


def _verdict(wrong: Table, parts: Mapping[str, Part]) -> str:
    checked = sum(row.status in tables.CHECKED and not row.competitor for part in parts.values() for row in part.rows)
    if wrong.sections:
        kinds = sum(len(section.lines) for section in wrong.sections)
        return f"WRONG: {kinds} kinds of faults, below; {checked} checks passed"
    return f"Nothing of ours was found wrong in {checked} checks" if checked else "Nothing was checked"


def _title(parts: Mapping[str, Part]) -> str:
    machines = [record for part in parts.values() for record in part.records["machine"]]
    machines += [dict(part.run.machine) for part in parts.values() if part.run]
    name = machines[0].get("gpu") if machines else None
    return f"CUDA acceptance: {name or 'a device that nvidia-smi does not name'}"


def _tables(parts: Mapping[str, Part]) -> list[Table]:
    """Everything else, in the order in which it is asked."""
    ceilings = tuple(ceiling_of(record) for part in parts.values() for record in part.records["ceiling"])
    timed = [parts[name] for name in TIMED_PARTS if name in parts]
    rows = [row for part in timed for row in part.rows]
    found = [parts_table(parts), *environment_tables(parts), ceilings_table(ceilings)]
    found += [tables.summary(part.run, part.rows) for part in parts.values() if part.run]
    found += [means_table(part) for part in timed]
    found += [sanitizer_table(part) for part in parts.values() if part.records["call"]]
    found += [bound_table(rows, ceilings), worst_table(rows), crossover_table(rows), published_table(rows)]
    found += [noise_table(rows)]
    found += [tables.not_timed(part.run, part.rows) for part in timed if part.run]
    return [table for table in found if table.sections]


def parts_table(parts: Mapping[str, Part]) -> Table:
    """What was done, and what was left out."""
    shown = []
    for part in parts.values():
        seconds = [end["seconds"] for end in part.records["end"]]
        calls = sum(call["status"] != NOT_REACHED for call in part.records["call"])
        count = len(part.rows) + len(part.records["ceiling"]) + calls
        shown.append(Line((part.name, number(seconds[0] if seconds else None), str(count), part.left_out or "nothing")))
    headings = ("part", "seconds", "records", "left out")
    return _table("What was done", headings, [Section("", tuple(shown))], left=("part", "left out"))


def environment_tables(parts: Mapping[str, Part]) -> list[Table]:
    """The machine, what is not installed, where the truth was computed; and what cannot run, with its reason."""
    part = parts.get("environment")
    if part is None:
        return []
    facts = [(name, _text(value)) for record in part.records["machine"] for name, value in record.items()]
    facts += [("float64 truth", f"on the {t['on']}{_because(t['reason'])}") for t in part.records["truth"]]
    facts += [("kernels compiled", _compiled(workers)) for workers in part.records["workers"]]
    missing = [name for record in part.records["missing"] for name, absent in record.items() if absent]
    facts += [("not installed", ", ".join(missing) or "nothing that is wished for")]
    facts += [("options", _text(record)) for record in part.records["options"]]
    refused: dict[tuple[str, str], list[str]] = defaultdict(list)
    for e in part.records["entry"]:
        if e["missing"] and ("cuda" in e["name"] or "cupy" in e["name"]):
            refused[e["name"], e["missing"]].append(e["op"])
    entries = [Line((name, ", ".join(ops), reason)) for (name, reason), ops in refused.items()]
    return [
        _table(
            "Machine", ("what", "value"), [Section("", tuple(Line(f) for f in facts if f[1]))], left=("what", "value")
        ),
        _table(
            "Cannot run here",
            ("implementation", "ops", "reason"),
            [Section("", tuple(entries))] if entries else [],
            left=("implementation", "ops", "reason"),
        ),
    ]


def ceilings_table(ceilings: Sequence[Ceiling]) -> Table:
    """What the device was measured to do at most."""
    shown = tuple(Line((c.name, number(c.value, 4), c.unit)) for c in ceilings)
    notes = (f"{DEVICE_COPY}: bytes read and written. {FMA}: two operations each. The best of several samples",)
    return _table(
        "Ceilings, measured",
        ("what", "value", "unit"),
        [Section("", shown)] if shown else [],
        left=("what", "unit"),
        notes=notes,
    )


def sanitizer_table(part: Part) -> Table:
    """What each tool said of every call, and which calls it did not reach."""
    calls: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for call in part.records["call"]:
        calls[call["name"], f"{call['op']}:{call['case'].partition(':')[2]}", call["direction"]][call["tool"]] = call[
            "status"
        ]
    shown = tuple(Line((*key, *(found.get(tool, MISSING) for tool in TOOLS))) for key, found in calls.items())
    return _table(
        "compute-sanitizer",
        ("implementation", "case", "direction", *TOOLS),
        [Section("", shown)],
        left=("implementation", "case", "direction", *TOOLS),
        notes=(
            "OK: computed, and right. What a tool found on the way stands above, as its exit status, and in its log",
        ),
    )


def means_table(part: Part) -> Table:
    """Geometric means of the speed-ups over each competitor of the same arithmetic; each arithmetic by itself."""
    groups: dict[tuple[str, str, str, str, str], list[float]] = defaultdict(list)
    for row, rival, value in _like_with_like(part.rows):
        groups[row.arithmetic, row.op, row.direction, row.implementation, rival].append(value)
    sections: dict[str, list[Line]] = defaultdict(list)
    planned = {kind: count for record in part.records["planned"] for kind, count in record.items()}
    for (arithmetic, op, direction, name, rival), values in groups.items():
        mean = geometric_mean(values)
        text = with_interval(mean.median, mean.low, mean.high, ratio)
        whole = planned.get(f"{op} {direction}")
        cases = f"{len(values)} of {whole}" if whole else str(len(values))
        sections[f"{arithmetic}: {op} {direction}"].append(Line((name, rival, cases, text)))
    return _table(
        f"Against competitors of the same arithmetic · {part.name}",
        ("implementation", "over", "cases", "speed-up"),
        [Section(title, tuple(found)) for title, found in sections.items()],
        left=("implementation", "over"),
        notes=("speed-up: the competitor's time / this one's, above 1 this one is faster; geometric mean [95 %]",),
    )


def bound_table(rows: Sequence[Row], ceilings: Sequence[Ceiling]) -> Table:
    """How near each implementation comes to the least time that the measured ceilings allow, and which one binds."""
    if not {DEVICE_COPY, FMA} <= {c.name for c in ceilings}:
        return _table("Fraction of the measured ceilings", (), [])
    groups: dict[tuple[str, str, str, str], list[tuple[float, bool]]] = defaultdict(list)
    for row in _timed(rows):
        groups[row.op, row.direction, row.implementation, row.arithmetic].append(fraction_of_bound(row, ceilings))
    sections: dict[str, list[Line]] = defaultdict(list)
    for (op, direction, name, arithmetic), found in groups.items():
        cells = [name, arithmetic]
        for kind in (True, False):
            values = [fraction for fraction, is_memory in found if is_memory is kind]
            cells += [str(len(values)), ratio(geometric_mean(values).median if values else None)]
            cells += [ratio(max(values, default=None))]
        sections[f"{op} {direction}"].append(Line(tuple(cells)))
    return _table(
        "Fraction of the measured ceilings",
        ("implementation", "arithmetic", "memory binds", "mean", "best", "operations bind", "mean ", "best "),
        [Section(title, tuple(found)) for title, found in sections.items()],
        left=("implementation", "arithmetic"),
        notes=(
            "least time: every array moved once, or every operation done in its arithmetic, at the best rate measured",
            "mean: geometric, of least time / time over the cases in which that ceiling binds",
            "time: of the kernels where known, with flushed caches where memory binds",
            "above 1: of memory, what caches hold; of operations, an algorithm with fewer, or beating cuBLAS in TF32",
        ),
    )


def fraction_of_bound(row: Row, ceilings: Sequence[Ceiling]) -> tuple[float, bool]:
    """The least time that the ceilings allow over the time that was measured, and whether it is memory that binds.

    Raises ValueError without one.
    """
    case = parse_case(f"{row.op}:{row.spec}")
    by_flops = bound_by_flops(case, ceilings, row.arithmetic)
    bound = longer(bound_by_bytes(case, row.direction, ceilings, cold=True), by_flops)
    if bound is None:
        raise ValueError("a bound takes a ceiling of memory or of operations")
    is_memory = bool(bound.ceiling.level)
    figures = (KERNEL_FLUSHED, KERNEL) if is_memory else (KERNEL,)
    return bound.seconds / _seconds(row, *figures), is_memory


def worst_table(rows: Sequence[Row]) -> Table:
    """The cases in which the best of ours is furthest behind the best competitor of the same arithmetic."""
    best: dict[tuple[str, str, str, str], tuple[float, Row, str]] = {}
    slowest: dict[tuple[str, str, str, str, str], tuple[float, Row, str]] = {}
    for row, rival, value in _like_with_like(rows):
        key = (*_case_key(row), row.arithmetic, row.implementation)
        slowest[key] = min(slowest.get(key, (value, row, rival)), (value, row, rival), key=lambda found: found[0])
    for (*case, _), found in slowest.items():
        place = (case[0], case[1], case[2], case[3])
        best[place] = max(best.get(place, found), found, key=lambda one: one[0])
    ordered = sorted(best.values(), key=lambda found: found[0])[:WORST]
    shown = tuple(
        Line((f"{row.op}:{row.spec}", row.direction, row.implementation, rival, ratio(value), row.arithmetic))
        for value, row, rival in ordered
    )
    return _table(
        f"The {WORST} worst cases",
        ("case", "direction", "best of ours", "best competitor", "speed-up", "arithmetic"),
        [Section("", shown)] if shown else [],
        left=("case", "direction", "best of ours", "best competitor", "arithmetic"),
    )


def crossover_table(rows: Sequence[Row]) -> Table:
    """From which size on one implementation beats another: the rule of the publication, with a measured threshold."""
    shown = []
    seconds = {(*_case_key(row), row.implementation): _seconds(row, KERNEL) for row in _timed(rows)}
    for winner, other, quantity in CROSSOVERS:
        points: dict[str, list[tuple[float, bool]]] = defaultdict(list)
        for (op, direction, text, name), time in seconds.items():
            rival = seconds.get((op, direction, text, other))
            spec = parse_case(f"{op}:{text}").spec
            if name == winner and rival is not None and isinstance(spec, ConvSpec):
                points[direction].append((QUANTITIES[quantity](spec), time < rival))
        for direction, found in points.items():
            threshold, errors = crossover(found)
            shown.append(Line((winner, other, direction, quantity, number(threshold), f"{errors} of {len(found)}")))
    return _table(
        "Crossovers, measured",
        ("wins above", "over", "direction", "quantity", "threshold", "cases that disagree"),
        [Section("", tuple(shown))] if shown else [],
        left=("wins above", "over", "direction", "quantity"),
        notes=(
            "threshold: the one with which the fewest cases disagree; a dash where it never wins",
            "published, another system and card: viafft above k*k*C*H*W of 3.7 million, tiles above k*k*H*W/C of 1,568",
        ),
    )


QUANTITIES: Mapping[str, Callable[[ConvSpec], float]] = {
    "k*k*C*H*W": lambda s: float(s.kernel[0] * s.kernel[1] * s.channels * s.height * s.width),
    "k*k*H*W/C": lambda s: s.kernel[0] * s.kernel[1] * s.height * s.width / s.channels,
}


def crossover(points: Iterable[tuple[float, bool]]) -> tuple[float | None, int]:
    """(threshold, disagreements) of the rule "wins from the threshold on" that fits (quantity, wins) best.

    The threshold is None where no win is best predicted at all. Ties go to the larger threshold.
    """
    wins: Counter[float] = Counter()
    losses: Counter[float] = Counter()
    for quantity, won in points:
        (wins if won else losses)[quantity] += 1
    threshold, errors = None, sum(wins.values())
    fewest = errors
    for quantity in sorted({*wins, *losses}, reverse=True):
        errors += losses[quantity] - wins[quantity]
        if errors < fewest:
            threshold, fewest = quantity, errors
    return threshold, fewest


def published_table(rows: Sequence[Row]) -> Table:
    """The best of ours end to end, beside the best published CUDA time of the same case: another card."""
    frame = published.conv_forward_ms()
    theirs = frame[frame["implementation"].isin(PUBLISHED)].groupby("case")["published_ms"].min().to_dict()
    ours: dict[str, tuple[float, str]] = {}
    for row in _timed(rows):
        is_forward = row.op == "conv2d" and row.direction == FORWARD
        if is_forward and row.spec in theirs and not row.competitor and END_TO_END in row.figures:
            found = (_seconds(row, END_TO_END) * 1e3, row.implementation)
            ours[row.spec] = min(ours.get(row.spec, found), found)
    ratios = {case: theirs[case] / ms for case, (ms, _) in ours.items()}
    shown = tuple(
        Line((case, name, number(ms), number(theirs[case]), ratio(ratios[case])), strong=ratios[case] < AIM)
        for case, (ms, name) in sorted(ours.items(), key=lambda item: ratios[item[0]])
    )
    below = sum(value < AIM for value in ratios.values())
    return _table(
        "End to end beside the published times",
        ("case", "best of ours", "ms", "published ms", TIMES),
        [Section("", shown)] if shown else [],
        left=("case", "best of ours"),
        notes=(
            "published: mean of 10 calls on a laptop's Quadro M4000M, copies included. Another card: no claim",
            f"{below} of {len(ratios)} cases below {AIM:g} times (bold); published times below 5 ms are mostly noise",
        ),
    )


def noise_table(rows: Sequence[Row]) -> Table:
    """How many intervals are wider than asked, how many bits differ from call to call, how wide the intervals are."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in _timed(rows):
        by_name[row.implementation].append(row)
    shown = []
    for name, own in by_name.items():
        widths = [(r.high_s - r.low_s) / 2 / r.median_s for r in own if r.high_s and r.low_s and r.median_s]
        noisy = sum(row.status == "NOISY" for row in own)
        unlike = sum(row.repeatable is False for row in own)
        dirty = sum(row.dirty_samples or 0 for row in own)
        width = f"{median(widths):.1%}" if widths else MISSING
        shown.append(Line((name, str(len(own)), str(noisy), width, str(dirty), str(unlike))))
    return _table(
        "Noise",
        ("implementation", "timed", "noisy", "median width", "dirty samples", "bits differ"),
        [Section("", tuple(shown))] if shown else [],
        left=("implementation",),
        notes=(
            "width: half of the 95 % interval of the median over the median",
            "dirty: taken while the device was throttled, slowed down or shared",
        ),
    )


def _like_with_like(rows: Iterable[Row]) -> Iterable[tuple[Row, str, float]]:
    """(row of ours, competitor, speed-up) for the competitors that compute in the same arithmetic."""
    rows = tuple(rows)
    arithmetic = {(*_case_key(row), row.implementation): row.arithmetic for row in rows}
    for row in _timed(rows):
        for rival, interval in row.speedups.items() if not row.competitor else ():
            if arithmetic.get((*_case_key(row), rival)) == row.arithmetic:
                yield row, rival, interval.median


def _case_key(row: Row) -> tuple[str, str, str]:
    return row.op, row.direction, row.spec


def _timed(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.status in TIMED and row.median_s]


def _seconds(row: Row, *figures: str) -> float:
    """The median of the first of these figures that the row has; the resident one where it has none."""
    samples = next((row.figures[figure] for figure in figures if row.figures.get(figure)), None)
    return median(samples) if samples else float(row.median_s or 0)


def _compiled(workers: Mapping[str, Any]) -> str:
    """How many kernels the workers compiled side by side, and why others were not."""
    answers: Mapping[str, Mapping[str, Any]] = workers["kernels"]
    count = sum(answer.get("kernels", 0) for answer in answers.values())
    failed = "; ".join(f"{name}: {answer['reason']}" for name, answer in answers.items() if "reason" in answer)
    return f"{count} in {workers['compile_seconds']:.1f} s{_because(failed)}"


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _table(
    title: str,
    headings: tuple[str, ...],
    sections: Sequence[Section],
    left: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Table:
    """A table whose frame is its own cells."""
    cells = [line.cells for section in sections for line in section.lines]
    frame = pd.DataFrame(cells, columns=list(headings)) if cells else pd.DataFrame()
    return Table(title, headings, tuple(sections), frame, left, notes)


def _html(title: str, verdict: str, is_wrong: bool, found: Sequence[Table]) -> str:
    """One page without anything from elsewhere."""
    alarm = ' class="alarm"' if is_wrong else ""
    body = "\n".join(map(html_table, found))
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>\n{_STYLE}</style>\n<h1>{escape(title)}</h1>\n<h2{alarm}>{escape(verdict)}</h2>\n{body}\n</html>\n"
    )
