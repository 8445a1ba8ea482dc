"""What a machine can do at most: one page of tables, and two machines beside each other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bench.ceilings import CPU, GFLOPS, RATES, Ceiling, MachineProfile, write_profile
from bench.results import Row
from reports import roofline
from reports.formats import MISSING, Line, Report, Section, Table, markdown_table, number
from reports.plots import save
from reports.tables import gpu_text

COMPUTE, MEMORY, COSTS, DEVICE = "operations", "memory", "costs", "the GPU"
ONE, ALL = "1", "all"

NOTES = (
    "best: the highest rate or clock, or the shortest time, of all samples, which fractions are formed with",
    "median: of the samples, with its 95 % bootstrap interval; far below the best where others use the machine",
    "MB: gone through by all threads together. copy: bytes read and bytes written, both counted",
)
_COLUMNS = ("device", "figure", "which", "threads", "unit", "best", "median", "low", "high", "samples", "bytes")
_HEADINGS = ("figure", "threads", "unit", "best", "median", "interval", "samples", "MB")


def report(profile: MachineProfile) -> Report:
    """The page: the machine, every figure with its best, median and interval, and what is missing."""
    found = table(profile)
    missing = "; ".join(f"{name} ({reason})" for name, reason in profile.missing.items())
    lines = (
        ("machine", _machine(profile)),
        ("threads", str(profile.threads)),
        ("measured", profile.started),
        ("commit", profile.machine.get("commit", "")),
        ("not measured", missing),
    )
    return Report(tuple((label, text) for label, text in lines if text), (found,), found.frame)


def table(profile: MachineProfile) -> Table:
    """Every figure, in groups, the rates of one thread before those of all."""
    groups: dict[str, list[Ceiling]] = {COMPUTE: [], MEMORY: [], COSTS: [], DEVICE: []}
    for ceiling in profile.ceilings:
        groups[_group(ceiling)].append(ceiling)
    sections = tuple(Section(title, tuple(map(_line, found))) for title, found in groups.items() if found)
    return Table(
        "What this machine can do at most", _HEADINGS, sections, frame(profile), left=("figure", "unit"), notes=NOTES
    )


def frame(profile: MachineProfile) -> pd.DataFrame:
    """One line per figure: ``which`` says whether one thread worked or all of them, or the GPU."""
    return pd.DataFrame.from_records(
        [
            {"device": c.device, "figure": c.name, "which": _which(c, profile), "threads": c.threads, "unit": c.unit}
            | {"best": c.value, "median": c.interval.median, "low": c.interval.low, "high": c.interval.high}
            | {"samples": len(c.samples), "bytes": c.touched}
            for c in profile.ceilings
        ],
        columns=_COLUMNS,
    ).astype({"threads": "Int64", "bytes": "Int64"})


def compared(a: MachineProfile, b: MachineProfile) -> pd.DataFrame:
    """The figures that both have: the best of each, and ``b_over_a``, above 1 where b is better, of times too.

    One thread is compared with one, all with all, however many each machine has.
    """
    key = ["device", "figure", "which", "unit"]
    both = frame(a).merge(frame(b), on=key, suffixes=("_a", "_b"))
    names = [*key, "threads_a", "threads_b", "best_a", "best_b"]
    is_rate = both["unit"].isin(RATES)
    ratio = both["best_b"] / both["best_a"]
    return both[names].assign(b_over_a=ratio.where(is_rate, 1 / ratio))


def comparison(a: MachineProfile, b: MachineProfile) -> Report:
    """Two machines beside each other: the figures that both have, and which of them only one has."""
    both = compared(a, b)
    columns = (
        both["figure"],
        *(both[name].map(str).where(both[name].notna(), MISSING) for name in ("threads_a", "threads_b")),
        both["unit"],
        *(both[name].map(number) for name in ("best_a", "best_b", "b_over_a")),
    )
    lines = tuple(map(Line, zip(*columns, strict=True)))
    shared = set(both["figure"])
    alone = dict.fromkeys(c.name for profile in (a, b) for c in profile.ceilings if c.name not in shared)
    described = [
        (label, f"{_machine(each)}; threads: {each.threads}; {each.started}") for label, each in (("a", a), ("b", b))
    ]
    found = Table(
        "Two machines",
        ("figure", "threads a", "threads b", "unit", "a", "b", "b / a"),
        (Section("", lines),),
        both,
        left=("figure", "unit"),
        notes=("a, b: the best of all samples. b / a: above 1 b is better, of times too",),
    )
    return Report((*described, *([("only one has", "; ".join(alone))] if alone else [])), (found,), both)


def write(folder: Path, profile: MachineProfile, rows: Iterable[Row] = ()) -> tuple[Path, ...]:
    """Write the page, the figures as JSON and the roofline, if there are roofs, into a folder; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    page, figures, image = (folder / name for name in ("profile.md", "profile.json", "roofline.png"))
    write_profile(figures, profile)
    shown = report(profile)
    heading = "\n".join(f"* **{label}**: {value}" for label, value in shown.heading)
    parts = ["# Profile of a machine", heading, *map(markdown_table, shown.tables)]
    written = [page, figures]
    if roofline.has_roofs(profile.ceilings, profile.threads):
        save(roofline.figure(profile.machine, profile.ceilings, profile.threads, rows), image)
        parts.append(f"![roofline]({image.name})")
        written.append(image)
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return tuple(written)


def _machine(profile: MachineProfile) -> str:
    about = profile.machine
    return ", ".join(filter(None, (about.get("id"), about.get("cpu"), about.get("os"), gpu_text(about))))


def _group(ceiling: Ceiling) -> str:
    if ceiling.device != CPU:
        return DEVICE
    if ceiling.level:
        return MEMORY
    return COMPUTE if ceiling.unit == GFLOPS else COSTS


def _which(ceiling: Ceiling, profile: MachineProfile) -> str:
    """``1`` or ``all`` threads; on a machine with one they are the same. Empty on the GPU."""
    if ceiling.threads is None:
        return ""
    return ALL if ceiling.threads == profile.threads > 1 else ONE


def _line(ceiling: Ceiling) -> Line:
    interval = ceiling.interval
    texts = (number(ceiling.value), number(interval.median), f"{number(interval.low)} to {number(interval.high)}")
    threads = MISSING if ceiling.threads is None else str(ceiling.threads)
    size = MISSING if ceiling.touched is None else number(ceiling.touched / 1e6)
    return Line((ceiling.name, threads, ceiling.unit, *texts, str(len(ceiling.samples)), size))
