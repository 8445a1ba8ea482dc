"""Which of two is slower, and rankings that admit ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bench.multiplicity import bonferroni_pairs
from bench.statistics import LEVEL, log_ratio

FEWEST_ROUNDS = 3
"""With fewer rounds in common, two implementations cannot be told apart."""


def is_slower(one: Sequence[float], other: Sequence[float], level: float = LEVEL) -> bool:
    """Whether ``one`` is slower than ``other`` beyond doubt: by the ratio round by round, tested at this level."""
    if min(len(one), len(other)) < FEWEST_ROUNDS:
        return False
    found = log_ratio(one, other)
    return found.value > 0 and found.p() < level


def ranking(samples: Mapping[str, Sequence[float]]) -> tuple[tuple[str, ...], ...]:
    """Names in groups of equals, the fastest first: (("A", "B"), ("C",)) is "A = B < C".

    In order of their medians, each is compared with the fastest of the current group and opens a new group if it is
    slower beyond doubt. All of a ranking's comparisons together err at most at LEVEL: each is made at LEVEL over the
    number of pairs, since which ones are made depends on the samples.
    """
    level = bonferroni_pairs(LEVEL, len(samples))
    groups: list[list[str]] = []
    for name in sorted(samples, key=lambda name: float(np.median(samples[name]))):
        if groups and not is_slower(samples[name], samples[groups[-1][0]], level):
            groups[-1].append(name)
        else:
            groups.append([name])
    return tuple(map(tuple, groups))


def ranking_text(groups: Sequence[Sequence[str]]) -> str:
    """A ranking in one line: ``A = B < C``; the faster stands left."""
    return " < ".join(" = ".join(group) for group in groups)
