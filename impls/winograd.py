"""Winograd's minimal filtering F(m, r): m results of r taps from m + r - 1 multiplications, and its exact matrices.

    y = A^T ((G g) * (B^T d)),    in two dimensions    Y = A^T ((G g G^T) * (B^T d B)) A

for m + r - 1 values d, r taps g, m results y[i] = sum over k of d[i + k] g[k]. It is the transpose of multiplying two
polynomials of m and r coefficients by their values at m + r - 1 points, one of them infinity (A. L. Toom, S. A. Cook;
S. Winograd, Arithmetic Complexity of Computations, SIAM 1980; for layers A. Lavin, S. Gray, CVPR 2016).

How far results err depends on the points (B. Barabasz, A. Anderson, K. M. Soodhalter, D. Gregg, ACM TOMS 46, 2020):
small ones of either sign, 1/2 and -2 rather than 2 and -2 (by a third, for F(4, 3)). Powers of two keep A and B exact.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cache
from typing import NamedTuple

POINTS = tuple(Fraction(p) for p in ("0", "1", "-1", "1/2", "-2", "-1/2", "2"))
"""Where polynomials are evaluated, besides infinity; F(m, r) takes the first m + r - 2."""

Matrix = tuple[tuple[Fraction, ...], ...]


class Matrices(NamedTuple):
    """The exact matrices of F(m, r), with n = m + r - 1 multiplications."""

    results: Matrix
    """A^T (m, n)."""
    kernel: Matrix
    """G (n, r)."""
    image: Matrix
    """B^T (n, n); the same for all m and r with the same sum."""


@cache
def matrices(m: int, r: int) -> Matrices:
    """The matrices of F(m, r). Raises ValueError where there are too few points for it."""
    if min(m, r) < 1 or not 2 <= m + r - 1 <= len(POINTS) + 1:
        raise ValueError(f"F({m}, {r}) needs {m + r - 2} points besides infinity; there are {len(POINTS)}: {POINTS}")
    points = POINTS[: m + r - 2]
    others = [[q for q in points if q != p] for p in points]
    scales = [_product(p - q for q in rest) for p, rest in zip(points, others, strict=True)]
    return Matrices(
        results=tuple((*(p**i for p in points), Fraction(i == m - 1)) for i in range(m)),
        kernel=(
            *(tuple(p**k / scale for k in range(r)) for p, scale in zip(points, scales, strict=True)),
            tuple(Fraction(k == r - 1) for k in range(r)),
        ),
        image=(*((*_with_roots(rest), Fraction(0)) for rest in others), tuple(_with_roots(points))),
    )


def algorithm(m: int, r: int) -> str:
    """What an implementation declares that computes m x m results of r x r taps at a time."""
    return f"winograd({m}, {r})"


def sizes(declared: str) -> tuple[int, int] | None:
    """(m, r) of a declared algorithm; None for another one."""
    found = re.fullmatch(r"winograd\((\d+), (\d+)\)", declared)
    return found and (int(found[1]), int(found[2]))


def _product(factors):
    result = Fraction(1)
    for factor in factors:
        result *= factor
    return result


def _with_roots(roots):
    """Coefficients, the constant first, of the polynomial with these roots and leading coefficient 1."""
    found = [Fraction(1)]
    for root in roots:
        found = [a - root * b for a, b in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return found
