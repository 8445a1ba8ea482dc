"""The report's tables: is it right, how fast is it, how does it compare with Keras in the same rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

from bench.ceilings import CPU, IN_RUN, ceiling_of, in_force, in_words
from bench.precision import is_kind
from bench.ranking import ranking, ranking_text
from bench.results import FIGURES, KERNEL, TIMED, Interval, Row, Run
from bench.statistics import LEVEL, POWER, detectable, geometric_mean
from reports import published
from reports.best_of_each import best_of_each, worst_cases
from reports.formats import MISSING, TIMES, Line, Report, Section, Table, number, ratio, with_interval, with_spread
from reports.frames import (
    blocks,
    competitors,
    figure_interval,
    figure_speedups,
    figures,
    latest,
    measurements,
    timed,
)
from reports.starting import starting
from reports.verdicts import verdicts

MARK = " †"
"""Stands behind a competitor's name."""

KERAS = "keras"

NOT_ATTEMPTED = ("UNAVAILABLE", "UNSUPPORTED")
CHECKED = (*TIMED, "OVER_BUDGET")
"""What has passed its check: only then is a case timed, or found too slow to be."""

SHORT = {
    "UNAVAILABLE": "n/a",
    "UNSUPPORTED": "unsup",
    "CRASHED": "crash",
    "TIMEOUT": "t/o",
    "OUT_OF_MEMORY": "mem",
    "ERROR": "error",
    "SIDE_EFFECT": "side",
    "MISDECLARED": "misdecl",
    "WRONG": "wrong",
    "LEAK": "leak",
    "IMPOSSIBLE": "imposs",
    "ASYNC_MISMATCH": "async",
    "OVER_BUDGET": "slow",
}
"""Statuses in a pivot's narrow cells."""

CONTENTS = {
    "hot": "median over rounds of one call, result ready, on arrays already on the device, several input sets in "
    "rotation, nothing flushed (hot caches); set-up and first call apart",
    "cold-weights": "median over rounds of one call, timed alone after all caches were flushed and all arrays but the "
    "weights were read again; set-up and first call apart",
    "cold": "median over rounds of one call, timed alone after all caches were flushed; set-up and first call apart",
}
"""What a time contains, by the state of the caches."""

PEAK = "of peak"
"""The heading of the fraction of the measured ceiling that binds."""
OUTCOMES = {"faster": 1, "slower": -1, "neither": 0}
"""What can be shown of a speed-up, by its sign in reports.verdicts."""
MEMORY_USE = {
    "minor_faults": "faults",
    "major_faults": "from disk",
    "grown_bytes": "grown B",
}
"""Columns of what a call asks of memory: page faults per call, and growth while it was timed; where any is not zero."""

FIGURE_HEADINGS = {figure: figure.replace("_", " ") for figure in FIGURES}

PEAK_NOTE = (
    "of peak: least time by the measured rates of operations and memory / time; beyond 100% only with fewer operations"
)
SUMMARY_NOTES = (
    "right: cases within the error bound / cases attempted. error: the largest, in units of its bound",
    f"{TIMES} name: its time / this one's in the same rounds, above 1 this one is faster",
    "ratios: geometric mean over the cases, ± the farther end of its 95 % interval. GFLOP/s, of peak: median over them",
    PEAK_NOTE,
    f"vs name: cases found faster - slower - neither, all tested together (Benjamini-Hochberg, {LEVEL:.0%} false)",
    "† competitor: errors reported, not judged",
)
DETAIL_NOTES = (
    f"±: the farther end of the 95 % interval. ~: noisy, wider than asked. {TIMES} name: its time / this one's",
    "rank: 1= is a tie, the rounds do not tell them apart. † competitor. bold: the fastest of ours",
    PEAK_NOTE,
)


def report(run: Run, rows: Iterable[Row], pivoted: bool = False, with_published: bool = False) -> Report:
    """Everything about one run; with ``pivoted`` the cases are lines and the implementations columns.

    The frame for CSV holds every measurement, or a line per case if pivoted; published times join it where asked.
    """
    rows = latest(rows)
    body = pivot(run, rows) if pivoted else detail(run, rows)
    tables = [
        summary(run, rows),
        best_of_each(rows, _where(run)),
        worst_cases(rows, _where(run)),
        means(run, rows),
        starting(rows, _where(run)),
        best(run, rows),
        body,
        on_devices(run, rows),
        not_timed(run, rows),
    ]
    frame = body.frame
    if with_published:
        tables.append(beside_published(run, rows))
        frame = published.join(frame)
    return Report(heading(run, rows), tuple(table for table in tables if table.sections), frame)


def brief(run: Run, rows: Iterable[Row]) -> Report:
    """What stands at the end of a run: the heading, the summary, and what was not timed."""
    rows = latest(rows)
    shown = (summary(run, rows), not_timed(run, rows))
    return Report(heading(run, rows), tuple(table for table in shown if table.sections), shown[0].frame)


def heading(run: Run, rows: Iterable[Row]) -> tuple[tuple[str, str], ...]:
    """(label, text) lines: machine, software, threads, what a time contains, what each implementation does."""
    rows = tuple(rows)
    machine = run.machine
    parts = [
        machine.get("id"),
        machine.get("cpu"),
        f"{machine['cores']} cores" if "cores" in machine else None,
        f"{machine['memory_gb']:.0f} GB" if "memory_gb" in machine else None,
        gpu_text(machine),
        machine.get("os"),
    ]
    pools = ", ".join(f"{pool} {count}" for pool, count in machine.get("threads", {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    software = [f"Python {machine['python']}" if "python" in machine else None, versions]
    states = sorted({row.state for row in timed(rows)})
    lines = (
        ("machine", ", ".join(filter(None, parts))),
        ("software", ", ".join(filter(None, software))),
        ("threads", f"{run.threads}" + (f" (read back: {pools})" if pools else "")),
        ("run", f"{run.id or MISSING}, suite {run.suite}, seed {run.seed}, {run.started}"),
        ("commit", machine.get("commit", "")),
        ("command", run.command),
        ("ceilings", _ceilings_text(run)),
        *(("a time is", CONTENTS.get(state, state)) for state in states),
        ("contamination", _contamination(rows)),
        ("implementations", _declarations(rows)),
    )
    return tuple((label, text) for label, text in lines if text)


def _ceilings_text(run: Run) -> str:
    """What the rows are held against, of the processor."""
    return in_words(in_force(map(ceiling_of, run.machine.get(IN_RUN, ())), CPU, run.threads))


def gpu_text(machine: Mapping[str, Any]) -> str | None:
    """The device that was measured, or the names of those that there are."""
    device = machine.get("cuda_device")
    if not device:
        gpu: str | None = machine.get("gpu")
        return gpu
    parts = (
        device["name"],
        f"compute capability {device['compute_capability']}",
        f"{device['memory_bytes'] / 1e9:.0f} GB",
        f"L2 {device['l2_bytes'] / 1e6:.0f} MB",
        f"{device['multiprocessors']} SMs",
        f"driver {machine.get('gpu_driver') or '?'}",
    )
    return " ".join(parts)


def summary(run: Run, rows: Iterable[Row]) -> Table:
    """Per op, direction and implementation: cases right, worst error, speed-ups, GFLOP/s, statuses; ours first.

    What this machine cannot run at all is in the frame only, and in the table of what was not timed.
    """
    rows = latest(rows)
    against, absent = _against(rows), _absent(rows)
    shown_faster = verdicts(rows)
    records, sections = [], []
    for (op, direction), part in _by_direction(rows).items():
        found = [_summary_record(name, own, against, shown_faster) for name, own in _by_implementation(part).items()]
        found.sort(key=lambda record: (record["competitor"], *(-(record[f"over_{n}"] or 0) for n in against)))
        records += [{"op": op, "direction": direction, **record} for record in found]
        shown = [record for record in found if record["implementation"] not in absent]
        sections.append(Section(f"{op} {direction}", tuple(_summary_line(record, against) for record in shown)))
    ratios = [f"{word} {n}" for word in (TIMES, "vs") for n in against]
    headings = ("implementation", "right", "error", *ratios, "GFLOP/s", PEAK, "not ok")
    return Table(
        f"Summary{_where(run)}",
        headings,
        tuple(sections),
        pd.DataFrame.from_records(records),
        left=("implementation", "not ok"),
        notes=SUMMARY_NOTES,
    )


def means(run: Run, rows: Iterable[Row]) -> Table:
    """Geometric means of the ratios over each competitor, with the cases they stand on and those left out, and why."""
    rows = latest(rows)
    status_of = {(row.op, row.direction, row.spec, row.implementation): row.status for row in rows}
    records, sections = [], []
    for (op, direction), part in _by_direction(rows).items():
        lines = []
        for name, own in _by_implementation(part).items():
            for against in competitors(rows):
                ratios = [row.speedups[against].median for row in own if against in row.speedups]
                if not ratios or name == against:
                    continue
                out = Counter(_why_left_out(row, against, status_of) for row in own if against not in row.speedups)
                why = ", ".join(f"{count} {reason}" for reason, count in out.most_common())
                mean = geometric_mean(ratios)
                lines.append(Line((_label(own[0]), against, str(len(ratios)), _interval_text(mean), why or "none")))
                records.append(
                    {"op": op, "direction": direction, "implementation": name, "over": against, "cases": len(ratios)}
                    | _interval_record("speedup", mean)
                    | {"left_out": why}
                )
        sections += [Section(f"{op} {direction}", tuple(lines))] if lines else []
    return Table(
        f"Geometric means of the speed-ups{_where(run)}",
        ("implementation", "over", "cases", "speed-up", "left out"),
        tuple(sections),
        pd.DataFrame.from_records(records),
        left=("implementation", "over", "left out"),
        notes=(
            "speed-up: time of the competitor / time of the implementation (95 % bootstrap interval over the cases)",
            "Means over different cases do not compare: look at cases and left out",
        ),
    )


def detail(run: Run, rows: Iterable[Row]) -> Table:
    """Every measurement, a block per op, direction and case; in the order of time, then what was not timed."""
    rows = latest(rows)
    against = _against(rows)
    uses = {name: text for name, text in MEMORY_USE.items() if any((getattr(r, name) or 0) >= 1 for r in timed(rows))}
    sections = []
    for (op, direction, case), block in blocks(rows).items():
        ranks = _ranks(_ranking(block))
        ours = [row for row in timed(block) if not row.competitor]
        fastest = min(ours, key=_median_of) if ours else None
        ordered = sorted(block, key=lambda row: (row.implementation not in ranks, _median_of(row)))
        lines = tuple(_detail_line(row, against, ranks, row is fastest, uses) for row in ordered)
        sections.append(Section(f"{op} {direction} {case}", lines))
    ratios = (f"{TIMES} {name}" for name in against)
    headings = ("implementation", "ms", "GFLOP/s", "GB/s", PEAK, "error", *ratios, *uses.values(), "rank")
    return Table(
        f"Every case{_where(run)}",
        headings,
        tuple(sections),
        measurements(rows),
        left=("implementation",),
        notes=DETAIL_NOTES,
    )


def on_devices(run: Run, rows: Iterable[Row]) -> Table:
    """What was timed on a device: every figure, how the work was launched, and what was wrong with the samples."""
    rows = latest(rows)
    found = figures(rows)
    with_kernel = {row.implementation for row in rows if row.figures.get(KERNEL)}
    against = [name for name in competitors(rows) if name in with_kernel][:2]
    sections = []
    for (op, direction, case), block in blocks(rows).items():
        lines = []
        for row in timed(block):
            if row.device == CPU:
                continue
            ratios = figure_speedups(row, KERNEL, block)
            spreads = [_seconds_text(figure_interval(row, figure)) for figure in found]
            over = [_ratio_cell(ratios.get(name)) for name in against]
            lines.append(Line((_label(row), _time_text(row), *spreads, *over, _remarks(row))))
        sections += [Section(f"{op} {direction} {case}", tuple(lines))] if lines else []
    over_headings = (f"{FIGURE_HEADINGS[KERNEL]} {TIMES} {name}" for name in against)
    return Table(
        f"On devices, ms{_where(run)}",
        ("implementation", "resident", *(FIGURE_HEADINGS[figure] for figure in found), *over_headings, "remarks"),
        tuple(sections),
        measurements(row for row in timed(rows) if row.device != CPU),
        left=("implementation", "remarks"),
        notes=(
            "resident: from the first launch to idle by the host's clock, as in every other table",
            *(f"{FIGURE_HEADINGS[figure]}: {FIGURES[figure]}" for figure in found),
        ),
    )


def best(run: Run, rows: Iterable[Row]) -> Table:
    """Per op, direction and case: the fastest of ours, and the ranking of all with its ties."""
    rows = latest(rows)
    against = _against(rows)
    records: list[dict[str, Any]] = []
    sections: dict[str, list[Line]] = {}
    for (op, direction, case), block in blocks(rows).items():
        ours = [row for row in timed(block) if not row.competitor]
        if not ours:
            continue
        winner = min(ours, key=_median_of)
        order = ranking_text(_ranking(block))
        ratios = [_ratio_text(winner, name) for name in against]
        found = [detectable(winner.speedups[name]) for name in against if name in winner.speedups]
        ratios.append(f"{number(100 * max(found), 2)}%" if found else MISSING)
        sections.setdefault(f"{op} {direction}", []).append(
            Line((case, winner.implementation, _time_text(winner), *ratios, order))
        )
        records.append(
            {"op": op, "direction": direction, "case": case, "best": winner.implementation}
            | {"median_ms": _median_of(winner) * 1e3, "detectable": max(found, default=None), "ranking": order}
        )
    return Table(
        f"Best of ours per case{_where(run)}",
        ("case", "best", "ms", *(f"{TIMES} {name}" for name in against), "finds", "ranking of all"),
        tuple(Section(title, tuple(lines)) for title, lines in sections.items()),
        pd.DataFrame.from_records(records),
        left=("case", "best", "ranking of all"),
        notes=(
            "ranking: A = B < C, the faster stands left; = is a tie with its group's first by the rounds' ratios, "
            f"tested for the number of pairs; all of a line's together err at {LEVEL:.0%}",
            f"finds: the smallest difference from a competitor that is found in {POWER:.0%} of such measurements, at "
            f"{LEVEL:.0%}; the larger of those over the competitors shown",
        ),
    )


def pivot(run: Run, rows: Iterable[Row]) -> Table:
    """Cases as lines, implementations as columns, milliseconds in the cells; the fastest of all at the end.

    An implementation without any time has no column; its statuses are in the frame, column not_timed.
    """
    rows = latest(rows)
    columns = {name: _label(own[0]) for name, own in _by_implementation(timed(rows)).items()}
    records: list[dict[str, Any]] = []
    sections: dict[str, list[Line]] = {}
    for (op, direction, case), block in blocks(rows).items():
        row_of = {row.implementation: row for row in block}
        order = _ranking(block)
        first = " = ".join(order[0]) if order else MISSING
        cells = [_pivot_text(row_of.get(name)) for name in columns]
        sections.setdefault(f"{op} {direction}", []).append(Line((case, *cells, first)))
        reasons = "; ".join(f"{row.implementation} {_status_text(row)}" for row in block if row not in timed(block))
        records.append(
            {"op": op, "direction": direction, "case": case}
            | {f"{row.implementation}_ms": _median_of(row) * 1e3 for row in timed(block)}
            | {"best": first if order else None, "ranking": ranking_text(order), "not_timed": reasons}
        )
    names = ["op", "direction", "case", *(f"{name}_ms" for name in columns), "best", "ranking", "not_timed"]
    used = {row.status for row in rows if row.status in SHORT and row.implementation in columns}
    legend = ", ".join(f"{short} {status}" for status, short in SHORT.items() if status in used)
    return Table(
        f"Median milliseconds{_where(run)}",
        ("case", *columns.values(), "fastest"),
        tuple(Section(title, tuple(lines)) for title, lines in sections.items()),
        pd.DataFrame.from_records(records, columns=names),
        left=("case", "fastest"),
        notes=("~: noisy. †: competitor. =: a tie", *([legend] if legend else [])),
    )


def not_timed(run: Run, rows: Iterable[Row]) -> Table:
    """What carries no time, with its status and reason; the commonest reason where there are several."""
    rows = [row for row in latest(rows) if row.status not in TIMED]
    absent = _absent(rows)
    counts = Counter(row.implementation for row in rows)
    nowhere = tuple(Line((name, "UNAVAILABLE", str(counts[name]), reason)) for name, reason in absent.items())
    sections = [Section("this machine", nowhere)] if nowhere else []
    for (op, direction), part in _by_direction(row for row in rows if row.implementation not in absent).items():
        lines = []
        for name, own in _by_implementation(part).items():
            for status in dict.fromkeys(row.status for row in own):
                reasons = Counter(row.reason for row in own if row.status == status)
                more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
                lines.append(Line((name, status, str(reasons.total()), reasons.most_common(1)[0][0] + more)))
        sections.append(Section(f"{op} {direction}", tuple(lines)))
    return Table(
        f"Not timed{_where(run)}",
        ("implementation", "status", "cases", "reason"),
        tuple(sections),
        measurements(rows)[["op", "direction", "case", "implementation", "status", "reason"]],
        left=("implementation", "status", "reason"),
    )


def beside_published(run: Run, rows: Iterable[Row]) -> Table:
    """Forward convolutions that were published too: the best of ours and Keras, beside the published."""
    records = []
    for (op, direction, case), block in blocks(rows).items():
        ours = [_median_of(row) * 1e3 for row in timed(block) if not row.competitor]
        keras = [_median_of(row) * 1e3 for row in timed(block) if row.implementation == KERAS]
        records.append((op, direction, case, min(ours, default=None), *(keras or (None,))))
    columns = ["op", "direction", "case", "best_of_ours_ms", "keras_ms"]
    frame = published.join(pd.DataFrame.from_records(records, columns=columns))
    theirs = [name for name in map(str, frame) if name.startswith("published_")]
    frame = frame.dropna(subset=theirs, how="all").dropna(axis="columns", how="all")
    times = [name for name in map(str, frame) if name.endswith("_ms")]
    lines = [Line((record["case"], *(number(record[name]) for name in times))) for record in frame.to_dict("records")]
    return Table(
        f"Beside the published times, forward, ms{_where(run)}",
        ("case", *map(_published_heading, times)),
        (Section("", tuple(lines)),) if lines else (),
        frame,
        left=("case",),
        notes=published.CONTENTS,
    )


def _published_heading(column: str) -> str:
    """``best_of_ours_ms`` is "ours", ``published_cv2_ms`` is "cv2 *", ``keras_ms`` is "keras †"."""
    name = column.removesuffix("_ms")
    if name == "best_of_ours":
        return "ours"
    return f"{name.removeprefix('published_')} *" if name.startswith("published_") else name + MARK


def _where(run: Run) -> str:
    parts = (f"suite {run.suite}", f"{run.threads} thread{'s' * (run.threads != 1)}", run.machine.get("id", ""))
    return " · " + ", ".join(filter(None, parts))


def _absent(rows: Iterable[Row]) -> dict[str, str]:
    """The implementations that this machine cannot run at all, with the reason, which is the same everywhere."""
    found: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        found.setdefault(row.implementation, set()).add((row.status, row.reason))
    single = {name: next(iter(values)) for name, values in found.items() if len(values) == 1}
    return {name: reason for name, (status, reason) in single.items() if status == "UNAVAILABLE"}


def _declarations(rows: Iterable[Row]) -> str:
    """``name (algorithm, arithmetic, device)``, the algorithms of a name that has several joined by a slash.

    Where something else was inferred to have run, that follows.
    """
    found: dict[str, list[dict[str, None]]] = {}
    rows = latest(rows)
    absent = _absent(rows)
    for row in sorted((row for row in rows if row.implementation not in absent), key=_listing_order):
        declared = found.setdefault(_label(row), [{}, {}, {}, {}])
        for values, value in zip(declared, (row.algorithm, row.arithmetic, row.device, _ran_text(row)), strict=True):
            if value:
                values[value] = None
    return "; ".join(f"{name} ({', '.join('/'.join(v) for v in values if v)})" for name, values in found.items())


def _ran_text(row: Row) -> str:
    """What was inferred where it is not what was declared; that sums are a GEMM or direct cannot be told."""
    algorithm = "" if is_kind(row.algorithm, row.ran_algorithm) else row.ran_algorithm
    arithmetic = "" if row.ran_arithmetic == row.arithmetic else row.ran_arithmetic
    others = [ran for ran in (algorithm, arithmetic) if ran]
    return f"inferred: {' '.join(others)}" if others else ""


def _against(rows: Sequence[Row]) -> tuple[str, ...]:
    """The competitors that have a column in a terminal: the first two on each device."""
    device_of = {row.implementation: row.device for row in rows}
    found: dict[str, list[str]] = {}
    for name in competitors(rows):
        found.setdefault(device_of.get(name, ""), []).append(name)
    return tuple(name for names in found.values() for name in names[:2])


def _by_direction(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.op, row.direction), []).append(row)
    return found


def _by_implementation(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by name, ours first."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_listing_order):
        found.setdefault(row.implementation, []).append(row)
    return found


def _summary_record(
    name: str, own: Sequence[Row], against: Sequence[str], shown_faster: Mapping[tuple[str, str, str, str, str], int]
) -> dict[str, Any]:
    is_competitor = own[0].competitor
    attempted = [row for row in own if row.status not in NOT_ATTEMPTED]
    errors = [row.error_bounds for row in own if row.error_bounds is not None]
    rates = [row.gflops for row in timed(own) if row.gflops is not None]
    record: dict[str, Any] = {"implementation": name, "competitor": is_competitor, "cases": len(own)}
    record |= {"attempted": len(attempted), "right": None if is_competitor else sum(map(_is_right, own))}
    record["worst_error_bounds"] = max(errors, default=None)
    for other in against:
        ratios = [row.speedups[other].median for row in timed(own) if other in row.speedups and other != name]
        record |= _interval_record(f"over_{other}", geometric_mean(ratios) if ratios else None)
        keys = [(row.op, row.direction, row.spec, name, other) for row in own]
        outcomes = Counter(shown_faster[key] for key in keys if key in shown_faster)
        record |= {f"{word}_{other}": outcomes[sign] for word, sign in OUTCOMES.items()}
    fractions = [row.fraction for row in timed(own) if row.fraction is not None]
    record |= {"median_gflops": median(rates) if rates else None}
    record |= {"median_fraction": median(fractions) if fractions else None, "timed": len(timed(own))}
    counts = Counter(_words(row.status) for row in own if row.status != "OK")
    counts.update("not repeatable" for row in own if row.repeatable is False)
    return record | {"not_ok": ", ".join(f"{count} {words}" for words, count in counts.most_common())}


def _summary_line(record: dict[str, Any], against: Sequence[str]) -> Line:
    attempted, right = record["attempted"], record["right"]
    ratios = (_spread_text(*(record[f"over_{name}{end}"] for end in ("", "_low", "_high"))) for name in against)
    return Line(
        (
            record["implementation"] + MARK * record["competitor"],
            MISSING if right is None or not attempted else f"{right}/{attempted}",
            number(record["worst_error_bounds"], digits=2),
            *ratios,
            *(_outcomes_text(record, name) for name in against),
            number(record["median_gflops"]),
            _percent(record["median_fraction"]),
            record["not_ok"] or "none",
        )
    )


def _outcomes_text(record: dict[str, Any], against: str) -> str:
    counts = [record[f"{word}_{against}"] for word in OUTCOMES]
    return "-".join(map(str, counts)) if any(counts) else MISSING


def _is_right(row: Row) -> bool:
    return row.status in CHECKED and row.error_bounds is not None and row.error_bounds <= 1


def _interval_record(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.median, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _interval_text(interval: Interval) -> str:
    return with_interval(interval.median, interval.low, interval.high, written=ratio)


def _why_left_out(row: Row, against: str, status_of: dict[tuple[str, str, str, str], str]) -> str:
    if row.status not in TIMED:
        return _words(row.status)
    status = status_of.get((row.op, row.direction, row.spec, against))
    return f"{against} {'not measured' if status in (None, *TIMED) else _words(status)}"


def _median_of(row: Row) -> float:
    """Seconds; infinite where there is no time, so that it sorts last."""
    return float("inf") if row.median_s is None else row.median_s


def _ranking(block: Iterable[Row]) -> tuple[tuple[str, ...], ...]:
    return ranking({row.implementation: row.samples_s for row in timed(block) if row.samples_s})


def _ranks(groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Each name's place; ``2=`` for all who share the second."""
    ranks: dict[str, str] = {}
    place = 1
    for group in groups:
        ranks |= dict.fromkeys(group, f"{place}=" if len(group) > 1 else f"{place}")
        place += len(group)
    return ranks


def _listing_order(row: Row) -> tuple[bool, str]:
    """Ours by name, then competitors by name."""
    return row.competitor, row.implementation


def _label(row: Row) -> str:
    return row.implementation + MARK * row.competitor


def _time_text(row: Row) -> str:
    """Milliseconds with their spread, ~ before a noisy one; the status where there is no time."""
    if row.status not in TIMED or row.median_s is None:
        return row.status
    low, high = (None if seconds is None else seconds * 1e3 for seconds in (row.low_s, row.high_s))
    return "~" * (row.status == "NOISY") + with_spread(row.median_s * 1e3, low, high)


def _seconds_text(interval: Interval | None) -> str:
    return with_spread(interval.median * 1e3, interval.low * 1e3, interval.high * 1e3) if interval else MISSING


def _remarks(row: Row) -> str:
    """How a row's work was launched, and what its samples suffer from."""
    rounds = len(row.samples_s) + len(row.aside_s)
    dirty = f"{row.dirty_samples} of {rounds} samples dirty: {', '.join(_dirt([row]))}"
    exposed = f"{row.exposed_samples} of {rounds} with launch latency in the kernel's time"
    parts = [
        row.launched,
        f"clock: {row.clocks}" if not row.figures else "",
        dirty if row.dirty_samples else "",
        exposed if row.exposed_samples else "",
    ]
    return "; ".join(filter(None, parts))


def _dirt(rows: Iterable[Row]) -> list[str]:
    """Every kind of dirt that was seen, the host's with the most of it in any round."""
    found: dict[str, float] = {}
    kinds: dict[str, None] = {}
    for row in rows:
        kinds |= dict.fromkeys(row.gpu.get("dirt", ()))
        for kind, seen in row.host.get("dirt", {}).items():
            found[kind] = max(found.get(kind, 0.0), seen["most"])
    return [*kinds, *(f"up to {most:.2g} {kind}" for kind, most in found.items())]


def _contamination(rows: Iterable[Row]) -> str:
    """How much was measured while something else disturbed it, and what; empty where nothing was seen."""
    dirty = [row for row in timed(rows) if row.dirty_samples]
    samples = sum(row.dirty_samples or 0 for row in dirty)
    aside = sum(len(row.aside_s) for row in dirty)
    return f"{samples} samples dirty, {aside} of them left out: {', '.join(_dirt(dirty))}" if dirty else ""


def _ratio_text(row: Row, name: str) -> str:
    return _ratio_cell(row.speedups.get(name))


def _ratio_cell(found: Interval | None) -> str:
    return _spread_text(found.median, found.low, found.high) if found else MISSING


def _spread_text(median: float | None, low: float | None, high: float | None) -> str:
    return with_spread(median, low, high, written=ratio)


def _percent(fraction: float | None) -> str:
    """Of the ceiling that binds: ``43%``."""
    return MISSING if fraction is None else f"{number(100 * fraction, 2)}%"


def _words(status: str) -> str:
    return status.lower().replace("_", " ")


def _status_text(row: Row) -> str:
    return f"{row.status}: {row.reason}" if row.reason else row.status


def _pivot_text(row: Row | None) -> str:
    if row is None:
        return MISSING
    if row.status not in TIMED:
        return SHORT[row.status]
    return "~" * (row.status == "NOISY") + number(_median_of(row) * 1e3)


def _detail_line(row: Row, against: Sequence[str], ranks: dict[str, str], is_strong: bool, uses: Iterable[str]) -> Line:
    memory = (number(getattr(row, name)) for name in uses)
    ratios = (_ratio_text(row, name) for name in against)
    rates = (number(row.gflops), number(row.gbytes_per_s), _percent(row.fraction), number(row.error_bounds, digits=2))
    return Line(
        (_label(row), _time_text(row), *rates, *ratios, *memory, ranks.get(row.implementation, MISSING)), is_strong
    )
