"""Rankings that admit ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bench.statistics import speedup

FEWEST_ROUNDS = 3
"""With fewer rounds in common, two implementations cannot be told apart."""


def is_slower(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether ``one`` is slower than ``other`` beyond doubt: the interval of the ratio round by round lies above 1."""
    if min(len(one), len(other)) < FEWEST_ROUNDS:
        return False
    return speedup(one, other).low > 1


def ranking(samples: Mapping[str, Sequence[float]]) -> tuple[tuple[str, ...], ...]:
    """Names in groups of equals, the fastest first: (("A", "B"), ("C",)) is "A = B < C".

    In order of their medians, each is compared with the fastest of the current group and opens a new group if it is
    slower beyond doubt.
    """
    groups: list[list[str]] = []
    for name in sorted(samples, key=lambda name: float(np.median(samples[name]))):
        if groups and not is_slower(samples[name], samples[groups[-1][0]]):
            groups[-1].append(name)
        else:
            groups.append([name])
    return tuple(map(tuple, groups))


def ranking_text(groups: Sequence[Sequence[str]]) -> str:
    """A ranking in one line: ``A = B < C``; the faster stands left."""
    return " < ".join(" = ".join(group) for group in groups)
