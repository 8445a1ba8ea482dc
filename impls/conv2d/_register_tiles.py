"""The tiles of our blocked convolution: which sizes there are, and which of them cover a problem best.

A tile is ``rows * columns`` results by ``vectors`` vectors of outputs, all in vector registers (``impls.contraction``).
Sizes are few, since each is compiled. Rows lie at any distance, columns side by side: single-column tiles walk along
an image's columns (forward) or along channels (weight gradient); the others hold several rows of taps of an image with
few channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from impls.contraction import Tile, contraction
from impls.numba_setup import njit
from impls.processor import host

LANES = host().lanes

SIZES = {
    32: (
        (28, 1, 1),
        (16, 1, 1),
        (8, 1, 1),
        (1, 1, 1),
        (14, 1, 2),
        (8, 1, 2),
        (7, 1, 2),
        (4, 1, 2),
        (4, 1, 4),
        (5, 6, 1),
        (4, 7, 1),
        (3, 9, 1),
        (3, 4, 1),
    ),
    16: (
        (12, 1, 1),
        (8, 1, 1),
        (4, 1, 1),
        (1, 1, 1),
        (6, 1, 2),
        (5, 1, 2),
        (4, 1, 2),
        (2, 1, 2),
        (1, 1, 2),
        (2, 6, 1),
        (3, 4, 1),
        (4, 3, 1),
        (2, 3, 1),
    ),
}
"""(rows, columns, vectors) of the tiles, by the number of vector registers. These hold a tile's sums, one factor for
each of its vectors, the value that is broadcast, and without AVX-512 the mask."""
TILES = tuple(Tile(*size, LANES) for size in SIZES[host().registers])
SINGLE = TILES.index(Tile(1, 1, 1, LANES))
"""The tile of one result and one vector of outputs."""
LATENCY = 8
"""Fused multiply-adds in flight that keep the units busy: a tile of fewer takes as long."""
LOAD = 1.3
"""Cost of a load in fused multiply-adds: there are as many units for either, but a load is more often late."""

K0, K1, K2, K3, K4, K5, K6, K7, K8, K9, K10, K11, K12 = map(contraction, TILES)


@njit
def multiply(
    tile, a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2, start, start_row, start_column, out, out_row, out_column,
    last, floor,
):  # fmt: skip
    """The micro-kernel of ``TILES[tile]``; a chain of calls, since numba's tables of functions know no cache."""
    if tile == 0:
        K0(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 1:
        K1(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 2:
        K2(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 3:
        K3(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 4:
        K4(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 5:
        K5(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 6:
        K6(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 7:
        K7(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 8:
        K8(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 9:
        K9(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 10:
        K10(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 11:
        K11(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip
    elif tile == 12:
        K12(
            a, a_row, a0, a1, a2, b, b0, b1, b2, n0, n1, n2,
            start, start_row, start_column, out, out_row, out_column, last, floor, 0,
        )  # fmt: skip


class Block(NamedTuple):
    """Neighbouring outputs, and the tile that computes them."""

    first: int
    """Of the outputs."""
    tile: int
    """Index into TILES."""
    rows: int
    columns: int
    last: int
    """Outputs in the last vector."""


def blocks(outputs: int, steps: Callable[[Tile], float]) -> tuple[float, np.ndarray]:
    """(cost, (blocks, fields of Block)): outputs cut into vectors and tiles at the least cost.

    ``steps(tile)`` says how many of these tiles cover the results; infinity where they cannot.
    """
    vectors = -(-outputs // LANES)
    plans = [_cut(vectors, widest, steps) for widest in sorted({tile.vectors for tile in TILES})]
    cost, cut = min((p for p in plans if p is not None), key=lambda plan: plan[0])
    first, found = 0, []
    for tile in cut:
        size = TILES[tile].vectors * LANES
        last = min(LANES, outputs - first - size + LANES)
        found.append(Block(first, tile, TILES[tile].rows, TILES[tile].columns, last))
        first += size
    return cost, np.array(found, np.int64)


def _cost(tile):
    """Of one step of a tile's sums, in fused multiply-adds."""
    results = tile.rows * tile.columns
    return max(LATENCY, results * tile.vectors, LOAD * (results + tile.vectors))


def _cut(vectors, widest, steps):
    """(cost, tiles) of so many vectors in tiles of ``widest`` vectors and, at the end, narrower ones."""
    cost, tiles = 0.0, []
    while vectors:
        widest = min(widest, 1 << vectors.bit_length() - 1)
        each = {k: steps(tile) * _cost(tile) for k, tile in enumerate(TILES) if tile.vectors == widest}
        best = min(each, key=each.__getitem__)
        if each[best] == float("inf"):
            return None
        cost, vectors = cost + each[best], vectors - widest
        tiles.append(best)
    return cost, tiles
