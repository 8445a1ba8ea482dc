"""What a run shows over all its cases: which implementation is faster than which competitor."""

from __future__ import annotations

from collections.abc import Iterable

from bench.multiplicity import benjamini_hochberg
from bench.ranking import FEWEST_ROUNDS
from bench.results import Row
from bench.statistics import LEVEL, log_ratio
from reports.frames import blocks, timed


def verdicts(rows: Iterable[Row]) -> dict[tuple[str, str, str, str, str], int]:
    """By (op, direction, case, implementation, competitor): 1 if found faster than it, -1 if slower, 0 if neither.

    Every speed-up over a competitor is tested, and what is found holds for all of them together: of the differences
    that are found a share of LEVEL is expected to be none (Benjamini and Hochberg).
    """
    estimates = {
        (*case, row.implementation, name): log_ratio(samples[name], row.samples_s)
        for case, block in blocks(rows).items()
        if (samples := {row.implementation: row.samples_s for row in timed(block) if row.samples_s})
        for row in timed(block)
        for name in row.speedups
        if name in samples and min(len(samples[name]), len(row.samples_s)) >= FEWEST_ROUNDS
    }
    adjusted = benjamini_hochberg([found.p() for found in estimates.values()])
    return {
        key: (1 if found.value > 0 else -1) if p < LEVEL else 0
        for (key, found), p in zip(estimates.items(), adjusted, strict=True)
    }
