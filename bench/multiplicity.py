"""Many tests at once: what is still shown after having looked so often."""

from __future__ import annotations

from collections.abc import Sequence


def benjamini_hochberg(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values adjusted for their number: of all below q, a share of at most q is expected to be false.

    Y. Benjamini, Y. Hochberg, J. R. Statist. Soc. B 57, 1995: min over j >= i of p_(j) m / j, in order of size.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__, reverse=True)
    adjusted = [0.0] * len(p_values)
    least = 1.0
    for rank, i in zip(range(len(order), 0, -1), order, strict=True):
        least = min(least, p_values[i] * len(order) / rank)
        adjusted[i] = least
    return tuple(adjusted)


def bonferroni_pairs(level: float, count: int) -> float:
    """The level of each comparison of two among ``count``, so that all of them together err at most at ``level``."""
    return level / max(count * (count - 1) // 2, 1)
