"""The weight gradient by Winograd's F(m, r): the transpose, in the taps, of its forward pass.

    dw = G^T (sum over samples and tiles of (A dy A^T) * (B^T x B)) G

For a block of tiles, x and dy are transformed; then each of the (m + r - 1)^2 points adds one matrix product, channels
by tiles with tiles by filters, to its sums. The transformed block stays in the second-level cache; sums stay in
registers while the tiles of a block pass, and are loaded and stored once a block. Of the points of dy one is the
polynomial's value at (1, 1), the sum of a tile: the bias gradient is the sum of those.

Parts of the batch have sums of their own, which are added pairwise: sums are shorter, and workers need not wait.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from impls.contract import FLOAT32
from impls.conv2d._correlation import MOST_BYTES, Problem, round_up
from impls.conv2d._register_tiles import LANES, SINGLE, TILES, blocks, multiply
from impls.conv2d._winograd_transforms import (
    FORMS,
    results_at,
    tiles_ahead,
    transform_block,
    transform_gradient,
    transform_sums,
)
from impls.numba_setup import njit, numba, prange
from impls.specs import ITEMSIZE
from impls.winograd import POINTS

BLOCK_BYTES = 512 << 10
"""Of a transformed block of x and dy: half of a second-level cache."""
MANY = 112
"""Tiles of a block, beyond those bytes as well: fewer would not pay for loading and storing the sums."""
PART_TILES, FEW_TILES = 512, 128
"""The fewest tiles of a part, which pays for adding up its sums; and where there would be fewer than TASKS."""
TASKS, MOST_PARTS = 4, 16
"""Parts times panels to be shared by threads, where there are tiles enough; and the most parts."""
PIECES = 64
"""Of the sums, to be added up side by side."""
MANY_VECTORS = 8
"""Of a row of a transformed value, from which on an odd number pays for one that may be empty."""
AT_ONE = POINTS.index(1)
"""The row of A that is all ones."""


class Layout(NamedTuple):
    """Which F(m, r), and how scratch memory lies."""

    form: int
    """Index into FORMS."""
    m: int
    side: int
    """m + r - 1."""
    down: int
    """Tiles of a column of dy."""
    across: int
    """Tiles of a row of dy."""
    tiles: int
    """Tiles of a block."""
    depth: int
    """Floats of a transformed value's channels."""
    width: int
    """Floats of a transformed value's filters."""
    plane: int
    """Floats from one of the side^2 values of x to the next."""
    gradient_plane: int
    """The same of dy."""
    parts: int
    splits: int
    """Shares of the filters' panels that workers take where there are fewer parts than threads."""
    bias_sums: int
    """Floats of a part's sums of products, after which those of the bias gradient lie."""


def cut(problem: Problem, form: int) -> tuple[Layout, np.ndarray]:
    """(layout, panels: rows of first filter, register tile, rows of it, width in floats, place in a part's sums).

    Parts are a function of the problem alone, so that the order of additions does not depend on the number of threads;
    and a power of two, to be added pairwise. The order is the same in blocks of any size: they become smaller before
    threads have to be left out.
    """
    m, r = FORMS[form]
    side, inner = m + r - 1, problem.inner
    down, across = -(-problem.rows.out // m), -(-problem.columns.out // m)
    total = problem.batch * down * across

    def steps(tile):
        return float("inf") if tile.columns > 1 else -(-inner // tile.rows)

    _, chosen = blocks(problem.outer, steps)
    panels, place = [], 0
    for first, tile, rows, _, _ in chosen:
        filters = TILES[tile].vectors * LANES
        panels.append((first, tile, rows, filters, place))
        place += side**2 * floats_of_point(inner, rows, filters)
    wanted = max(total // PART_TILES, min(total // FEW_TILES, -(-TASKS // len(panels))))
    parts = max(1, min(MOST_PARTS, wanted, MOST_BYTES // (ITEMSIZE[FLOAT32] * place)))
    parts = 1 << parts.bit_length() - 1
    depth, width = apart(inner, MANY_VECTORS), apart(problem.outer, MANY_VECTORS)
    splits = min(len(panels), -(-numba.get_num_threads() // parts))
    a_tile = ITEMSIZE[FLOAT32] * side**2 * (depth + width)
    most = min(max(MANY, BLOCK_BYTES // a_tile), MOST_BYTES // (workers_of(parts * splits) * a_tile) - 1)
    share = -(-total // parts)
    tiles = -(-share // -(-share // max(1, most)))
    return Layout(
        form=form,
        m=m,
        side=side,
        down=down,
        across=across,
        tiles=tiles,
        depth=depth,
        width=width,
        plane=apart(tiles * depth),
        gradient_plane=apart(tiles * width),
        parts=parts,
        splits=splits,
        bias_sums=place,
    ), np.array(panels, np.int64)


def workers_of(tasks: int) -> int:
    """Threads that find a task."""
    return min(numba.get_num_threads(), tasks)


def apart(count: int, fewest: int = 1) -> int:
    """Floats of ``count`` in whole vectors, of at least ``fewest`` an odd number.

    What is read together at such a distance is spread over all sets of a cache; there are a power of two of them.
    """
    vectors = -(-count // LANES)
    return (vectors | (vectors >= fewest)) * LANES


def shapes(problem: Problem, form: int) -> list[tuple[int, ...]]:
    """Of the parts' sums, and of the workers' blocks."""
    layout, _ = cut(problem, form)
    own = layout.side**2 * (layout.plane + layout.gradient_plane)
    workers = max(1, min(workers_of(layout.parts * layout.splits), MOST_BYTES // (ITEMSIZE[FLOAT32] * own)))
    return [(layout.parts, layout.bias_sums + round_up(problem.outer, LANES)), (workers, own)]


@njit
def floats_of_point(inner, tile_rows, filters):
    """Of a panel's sums of one of the side^2 values: channels in whole tiles, and a vector, which makes it odd."""
    return -(-inner // tile_rows) * tile_rows * filters + LANES


@njit
def transform_gradients(first, count, start, end, source, record, zeros, block):
    """Transform dy of ``count`` tiles from number ``first`` on, filters from ``start`` to before ``end``."""
    problem = record[0]
    rows, columns, outer, side = problem.rows, problem.columns, problem.outer, problem.side
    plane = problem.gradient_plane
    ahead = tiles_ahead(side, outer)
    for t in range(count):
        at, top, left = results_at(first + t, source, problem)
        soon, _, _ = results_at(first + t + ahead, source, problem)
        for f in range(start, end, LANES):
            transform_gradient(
                problem.form, at + 4 * f, columns.out * outer, outer, soon + 4 * f,
                block + 4 * (t * problem.width + f), side * plane, plane,
                -top, rows.out - top, -left, columns.out - left, zeros, zeros, outer - f, np.float32(-np.inf),
            )  # fmt: skip


@njit
def add_products(count, block, gradients, low, high, is_first, own, record, panels, one, zeros):
    """Add ``count`` transformed tiles to a part's sums, or begin them: of panels from ``low`` to before ``high``."""
    problem = record[0]
    inner, side, depth, width = problem.inner, problem.side, problem.depth, problem.width
    floor, none, once, single = np.float32(-np.inf), np.int64(0), np.int64(1), np.int64(SINGLE)
    # A literal is a type of its own, for which all tiles are compiled: the 1 below, on purpose, makes the addresses of
    # a tile's rows constants, 5 % faster.
    for e in range(side * side):
        for start, tile, tile_rows, filters, place in panels[low:high]:
            at = own + 4 * (place + e * floats_of_point(inner, tile_rows, filters))
            for c in range(0, inner, tile_rows):
                out = at + 4 * c * filters
                multiply(
                    tile, block + 4 * (e * problem.plane + c), 1, none, none, depth,
                    gradients + 4 * (e * problem.gradient_plane + start), none, none, width, once, once, count,
                    zeros if is_first else out, none if is_first else filters, none,
                    out, filters, none, np.int64(LANES), floor,
                )  # fmt: skip
    at_one = gradients + 4 * AT_ONE * (side + 1) * problem.gradient_plane
    for f in range(panels[low, 0], panels[high - 1, 0] + panels[high - 1, 3], LANES):
        out = own + 4 * (problem.bias_sums + f)
        multiply(
            single, one, 1, none, none, none, at_one + 4 * f, none, none, width, once, once, count,
            zeros if is_first else out, none, none, out, none, none, np.int64(LANES), floor,
        )  # fmt: skip


@njit
def accumulate_share(worker, x, dy, record, panels, zeros, one, scratch, sums):
    """One worker's share of the parts, or of a part's panels, in ``accumulate``."""
    problem = record[0]
    source, gradient, blank, unit = (
        np.int64(x.ctypes.data), np.int64(dy.ctypes.data), np.int64(zeros.ctypes.data), np.int64(one.ctypes.data)
    )  # fmt: skip
    block = np.int64(scratch[worker].ctypes.data)
    gradients = block + 4 * problem.side * problem.side * problem.plane
    total = problem.batch * problem.down * problem.across
    tasks, workers = problem.parts * problem.splits, len(scratch)
    for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
        part, split = divmod(task, problem.splits)
        low, high = split * len(panels) // problem.splits, (split + 1) * len(panels) // problem.splits
        start, end = panels[low, 0], panels[high - 1, 0] + panels[high - 1, 3]
        own = np.int64(sums[part].ctypes.data)
        begin, stop = part * total // problem.parts, (part + 1) * total // problem.parts
        for first in range(begin, stop, problem.tiles):
            count = min(problem.tiles, stop - first)
            transform_block(first, count, source, record, blank, block)
            transform_gradients(first, count, start, end, gradient, record, blank, gradients)
            add_products(count, block, gradients, low, high, first == begin, own, record, panels, unit, blank)


@njit
def add_parts(piece, sums):
    """Add up one of PIECES of all parts' sums, pairwise, to the first part's."""
    low, high = piece * sums.shape[1] // PIECES, (piece + 1) * sums.shape[1] // PIECES
    half = len(sums) // 2
    while half > 0:
        for part in range(half):
            target, added = sums[part], sums[part + half]
            for k in range(low, high):
                target[k] += added[k]
        half //= 2


@njit
def finish_channel(c, record, panels, zeros, sums, dw):
    """Transform channel ``c`` of the sums to the taps of all filters."""
    problem = record[0]
    inner, outer, side, taps = problem.inner, problem.outer, problem.side, problem.rows.taps
    source, target, blank = np.int64(sums.ctypes.data), np.int64(dw.ctypes.data), np.int64(zeros.ctypes.data)
    none = np.int64(0)
    for first, _, tile_rows, filters, place in panels:
        value = floats_of_point(inner, tile_rows, filters)
        for f in range(0, filters, LANES):
            transform_sums(
                problem.form, source + 4 * (place + c * filters + f), side * value, value, none,
                target + 4 * (c * outer + first + f), taps * inner * outer, inner * outer,
                none, taps, none, taps, blank, blank, outer - first - f, np.float32(-np.inf),
            )  # fmt: skip


@njit(parallel=True)
def accumulate(x, dy, record, panels, zeros, one, sums, scratch, dw, db):
    """Fill dw and db."""
    for worker in prange(len(scratch)):
        accumulate_share(np.int64(worker), x, dy, record, panels, zeros, one, scratch, sums)
    for piece in prange(PIECES if len(sums) > 1 else 0):
        add_parts(np.int64(piece), sums)
    for c in prange(record[0].inner):
        finish_channel(np.int64(c), record, panels, zeros, sums[0], dw)
    for f in range(len(db)):
        db[f] = sums[0, record[0].bias_sums + f]
