"""Two runs, case by case: faster, slower, the same, or can't tell.

The runs were not made in the same rounds, and a shared machine drifts by more than most changes. Within a run a time is
therefore taken relative to an anchor, an implementation that both runs timed in the same rounds, where there is one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.multiplicity import benjamini_hochberg
from bench.results import TIMED, Interval, Row
from bench.sources import Source, SourceError
from bench.statistics import LEVEL, Estimate, exponential, log_median, log_ratio

FASTER, SLOWER, SAME, UNTOLD = VERDICTS = ("faster", "slower", "same", "can't tell")
MARGIN = 0.05
"""A change that is shown to be smaller is the same, where nothing else is asked for."""
ABSOLUTE = "none"
"""In place of an anchor's name: times as they were measured."""

Key = tuple[str, str, str, str, str]
"""(op, direction, case, state of memory, implementation): all but the last name rounds that can be the same."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One implementation's time in one case, NEW's over BASE's."""

    op: str
    direction: str
    case: str
    state: str
    """Of memory while timing: one of bench.memory.MEMORY."""
    implementation: str
    anchor: str
    """What both times are relative to; ABSOLUTE where they are as measured."""
    estimate: Estimate
    """The logarithm of the ratio."""
    verdict: str
    """One of VERDICTS, over all cases together."""
    is_beyond: bool
    """Whether it is shown to be slower by more than the margin, over all cases together."""

    @property
    def ratio(self) -> Interval:
        """NEW's time over BASE's: above 1 it became slower."""
        return exponential(self.estimate)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that two runs say together."""

    comparisons: tuple[Comparison, ...]
    lost: tuple[Row, ...]
    """NEW's rows without a time, where BASE has one."""
    only_in_base: int
    only_in_new: int
    """Timed implementations of cases of which the other run has no row."""

    @property
    def is_worse(self) -> bool:
        """Whether something is slower by more than the margin, or has no time any more, or not yet."""
        return bool(self.lost or self.only_in_base) or any(each.is_beyond for each in self.comparisons)


def compare(base: Source, new: Source, relative_to: str | None = None, margin: float = MARGIN) -> Outcome:
    """Compare what both runs timed; ``relative_to``: the anchor, ABSOLUTE, or None for the one that anchor() chooses.

    Differences are found by tests that hold for all cases together (Benjamini and Hochberg). What is not found to
    differ is the same where its interval lies within the margin, a share. Raises SourceError for an anchor that no
    case of both has, and where the runs have nothing in common.
    """
    before, after = _by_key(base.rows), _by_key(new.rows)
    chosen = anchor(before, after) if relative_to is None else relative_to
    both = [key for key in before if key in after and _is_timed(before[key])]
    pairs = [key for key in both if _is_timed(after[key])]
    if not both:
        raise SourceError(
            f"{base.label} and {new.label} have no case and implementation in common that were timed in the same state "
            "of memory; see --memory of layerbench run"
        )
    anchored = {key[:-1] for key in pairs if key[-1] == chosen}
    if chosen != ABSOLUTE and not anchored:
        raise SourceError(f"{chosen} is not timed in both; --relative-to one of {_names(pairs)}, or {ABSOLUTE}")
    found = []
    for key in pairs:
        if key[-1] != chosen:
            name = chosen if key[:-1] in anchored else ABSOLUTE
            estimate = _relative(after, key, name) - _relative(before, key, name)
            found.append(Comparison(*key, name, estimate, UNTOLD, False))
    return Outcome(
        _judged(found, margin),
        tuple(after[key] for key in both if key not in pairs),
        sum(key not in after for key in before if _is_timed(before[key])),
        sum(key not in before for key in after if _is_timed(after[key])),
    )


def anchor(before: dict[Key, Row], after: dict[Key, Row]) -> str:
    """The competitor that most cases of both have timed; ABSOLUTE where there is none."""
    counts = Counter(
        key[-1]
        for key, row in sorted(before.items(), key=lambda item: item[0][-1])
        if row.competitor and _is_timed(row) and key in after and _is_timed(after[key])
    )
    return counts.most_common(1)[0][0] if counts else ABSOLUTE


def _judged(found: Sequence[Comparison], margin: float) -> tuple[Comparison, ...]:
    limit = math.log1p(margin)
    different = benjamini_hochberg([each.estimate.p() for each in found])
    beyond = benjamini_hochberg([each.estimate.p_at_most(limit) for each in found])
    return tuple(
        replace(each, verdict=_verdict(each.estimate, p, limit), is_beyond=q < LEVEL)
        for each, p, q in zip(found, different, beyond, strict=True)
    )


def _verdict(estimate: Estimate, p: float, limit: float) -> str:
    if p < LEVEL:
        return SLOWER if estimate.value > 0 else FASTER
    interval = estimate.interval()
    return SAME if -limit <= interval.low and interval.high <= limit else UNTOLD


def _relative(rows: dict[Key, Row], key: Key, name: str) -> Estimate:
    """The logarithm of a time, or of its ratio to the anchor's in the same rounds."""
    samples = rows[key].samples_s
    return log_median(samples) if name == ABSOLUTE else log_ratio(samples, rows[(*key[:-1], name)].samples_s)


def _by_key(rows: Iterable[Row]) -> dict[Key, Row]:
    """Rows by what they are of; the last one of each."""
    return {(row.op, row.direction, row.spec, row.state, row.implementation): row for row in rows}


def _is_timed(row: Row) -> bool:
    return row.status in TIMED and bool(row.samples_s)


def _names(keys: Iterable[Key]) -> str:
    return ", ".join(dict.fromkeys(key[-1] for key in keys))
