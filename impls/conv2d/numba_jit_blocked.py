"""Direct convolution in tiles of sums that stay in vector registers, cut into blocks that stay in cache.

For a block of output rows, the image rows under their windows are copied to a strip, with zeros at the borders and
otherwise as they lie. A tile then computes several results of a row for one or more vectors of filters, and sums
over tap rows, tap columns and channels: windows overlap in the strip, nothing is copied per tap. The last tile of a
row overlaps the one before, so that there is no remainder. The weight gradient sums over the pixels of a block
instead: its tiles hold taps and channels by filters, and it reads dy as it lies. Rows of taps on padding are left out.

On small images much of that would be padding, and rows are shorter than a tile. There a tile holds the same pixel of
several samples instead: every pixel sums over just those taps that meet the image. (A weight that is not finite makes
NaN of a padding's zero only where a tile reads that padding.)

Where a vector holds several times the filters there are, it takes the filters of neighbouring columns as well, which
lie beside each other in the output: one problem with more filters and ``stride`` more taps for each column. Weights
of taps that a column does not have are zero; what is not finite would pass through them, and is kept out afterwards.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import numpy as np

from impls.contract import ALIGNMENT, DIRECT, FLOAT32, Implementation, Plan, float32_only
from impls.conv2d._correlation import (
    MOST_BYTES,
    SMALLEST,
    UNBOUNDED,
    Axis,
    Problem,
    bytes_of,
    compile_loops,
    problems,
    record,
    round_up,
    views_of,
)
from impls.conv2d._register_tiles import LANES, SINGLE, TILES, blocks, multiply
from impls.conv2d._tiles import clear, copy
from impls.numba_setup import njit, numba, prange
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ITEMSIZE
from impls.vectors import LANES as VECTOR
from impls.vectors import add, ask_to_read, first_lanes, load, store

PIXELS = 1024
"""The most results of a block for one filter: more rows share their halo, and sums are loaded and stored less often."""
STRIP_BYTES = 256 << 10
"""Of a strip of more than one row: a quarter of a second-level cache."""
SAMPLES_BYTES = 512 << 10
"""Of a strip of whole samples, through which every pixel's tile goes again: half of a second-level cache."""
LINE = ALIGNMENT // ITEMSIZE[FLOAT32]
"""Floats of a line of a cache."""
LEAST_SAMPLES = 8
"""Of such a strip: tiles of fewer rows read the weights from the second-level cache too often."""
WORTH = 0.95
"""What a smaller block's time must stay below, and that of tiles along samples, whose strips are copied as well."""
AHEAD = 1024
"""Values of dy that are asked for before they are added up."""
PART_PIXELS = 1024
"""The fewest windows of a part of the weight gradient, which pays for clearing and adding up its sums."""


class Layout(NamedTuple):
    """How a problem is cut into blocks, and how strips and sums lie."""

    neighbours: int
    """Columns of results whose outputs share a vector."""
    taps: int
    """Columns of taps under all neighbours."""
    width: int
    """Floats of a row of packed weights or of sums: outputs of all neighbours in whole vectors."""
    lines: int
    """Rows of results of a block."""
    samples: int
    """Samples of a block: more than one where a block holds all of their rows."""
    along_samples: int
    """Tiles hold one pixel of several samples; the strip is these as they lie, without padding."""
    strip_columns: int
    sample: int
    """Floats from one sample of a strip to the next."""
    runs: int
    """Columns of taps whose channels do not follow each other in the strip: 1 where all of them do."""
    run: int
    """Taps times channels that follow each other."""
    sums_rows: int
    """Rows of taps in the sums of the weight gradient, in whole tiles."""
    sums_run: int
    """``run`` in whole tiles."""
    strip: int
    """Floats of a strip, and of what whole tiles read past it."""
    transposed: int
    """The weights' last axis is summed over: the input gradient."""
    in_place: int
    """The weights are read as they lie."""


def seen(axis: Axis) -> Axis:
    """The same axis; one without taps gets one that meets only padding, and whose number no kernel has."""
    return axis if axis.taps else axis._replace(taps=1, dilation=1, pad=-axis.side, tap_first=-1)


def covered(problem: Problem, side: int, direction: str) -> tuple[float, np.ndarray]:
    """(cost, blocks of outputs) where ``side`` neighbouring columns share vectors of outputs."""
    rows, columns = problem.rows, problem.columns
    taps = columns.taps + (side - 1) * columns.stride
    runs, run = runs_of(problem, taps)

    def forward_steps(tile):
        reach = tile.rows * side
        return inf if tile.columns > 1 or reach > columns.out else -(-columns.out // reach) * taps

    def gradient_steps(tile):
        if tile.columns == 1:
            return rows.taps * runs * -(-run // tile.rows) / side
        return -(-rows.taps // tile.rows) * runs * -(-run // tile.columns) / side

    return blocks(problem.outer * side, gradient_steps if direction == GRAD_WEIGHTS else forward_steps)


def runs_of(problem: Problem, taps: int) -> tuple[int, int]:
    """(runs, run): columns of taps apart from each other in a strip, and factors that follow each other in each."""
    joined = problem.groups == 1 and problem.columns.dilation == 1
    return (1, taps * problem.inner) if joined else (taps, problem.inner)


def neighbours(problem: Problem, direction: str) -> range:
    """How many columns may share vectors of outputs: their outputs must follow each other.

    In the weight gradient they share one vector, so that a rest of the columns leaves out lanes of the last alone.
    """
    columns = problem.columns
    if problem.groups > 1 or columns.dilation > 1 or columns.out_step > 1:
        return range(1, 2)
    room = LANES if direction == GRAD_WEIGHTS else 2 * LANES
    return range(1, min(columns.out, max(1, room // problem.outer)) + 1)


def taps_that_meet(axis: Axis) -> np.ndarray:
    """(out,): how many taps of each result meet the image."""
    reads = np.arange(axis.out)[:, None] * axis.stride + np.arange(axis.taps) * axis.dilation - axis.pad
    return ((reads >= 0) & (reads < axis.side)).sum(axis=1)


def line_step(problem: Problem) -> int:
    """Floats from one sample of a strip to the next: an odd number of lines, or samples share few sets of a cache."""
    floats = problem.rows.side * problem.columns.side * problem.groups * problem.inner
    return (-(-floats // LINE) | 1) * LINE


def covered_by_samples(problem: Problem, samples: int) -> tuple[float, np.ndarray]:
    """(cost, blocks of outputs) of tiles along so many samples, per row of one sample as in ``covered``.

    The last block overlaps the one before. Infinite where some result meets no tap, or where samples are too large.
    """
    nothing = inf, np.empty((0, 5), np.int64)
    if ITEMSIZE[FLOAT32] * samples * line_step(problem) > SAMPLES_BYTES:
        return nothing
    taps = [taps_that_meet(axis) for axis in (problem.rows, problem.columns)]
    if min(map(min, taps)) == 0:
        return nothing
    each = -(-problem.batch // samples) * taps[1].sum() / problem.batch

    def steps(tile):
        return inf if tile.columns > 1 or tile.rows > samples else -(-samples // tile.rows) * each

    return blocks(problem.outer, steps)


def cut(problem: Problem, direction: str, threads: int) -> tuple[Layout, np.ndarray]:
    """(layout, blocks of outputs) of a problem whose axes are seen.

    More threads may get smaller blocks, and tiles along rows; with finite weights no bit of a result depends on that.
    """
    side = min(neighbours(problem, direction), key=lambda side: covered(problem, side, direction)[0])
    cost, chosen = covered(problem, side, direction)
    layout = along_rows(problem, direction, side, chosen, threads)
    if direction == GRAD_WEIGHTS:
        return layout, chosen
    least = WORTH * cost * unevenness(problem, layout, threads)
    most = max(LEAST_SAMPLES, problem.batch // threads)  # a block for each thread
    several = {t.rows for t in TILES if t.columns == 1 and LEAST_SAMPLES <= t.rows <= min(most, problem.batch)}
    for samples in sorted(several, reverse=True):
        cost, covering = covered_by_samples(problem, samples)
        small = along_samples(problem, direction, samples)
        time = cost * unevenness(problem, small, threads)
        if time < least:
            least, layout, chosen = time, small, covering
    return layout, chosen


def blocks_of(problem: Problem, layout: Layout) -> int:
    """How many blocks the batch is cut into."""
    return -(-problem.rows.out // layout.lines) * -(-problem.batch // layout.samples)


def unevenness(problem: Problem, layout: Layout, threads: int) -> float:
    """The blocks of the thread that gets most, over an even share."""
    count = blocks_of(problem, layout)
    return -(-count // threads) * threads / count


def along_samples(problem: Problem, direction: str, samples: int) -> Layout:
    """The layout where tiles hold one pixel of ``samples`` samples."""
    rows, columns = problem.rows, problem.columns
    runs, run = runs_of(problem, columns.taps)
    return Layout(
        neighbours=1,
        taps=columns.taps,
        width=round_up(problem.outer, LANES),
        lines=rows.out,
        samples=samples,
        along_samples=1,
        strip_columns=columns.side,
        sample=line_step(problem),
        runs=runs,
        run=run,
        sums_rows=0,
        sums_run=0,
        strip=samples * line_step(problem),
        transposed=direction == GRAD_INPUT,
        in_place=direction == FORWARD and min(rows.tap_first, columns.tap_first) >= 0,
    )


def block_for(threads: int, problem: Problem, samples: int, lines: int, halo: int) -> tuple[int, int]:
    """(samples, lines) of a block, at most the given ones, with which the thread that gets most is done first.

    The ``halo`` of image rows that a block copies once more is taken for as many lines of results, which is too much
    for most problems: blocks stay as they are where little is gained.
    """
    out = problem.rows.out
    found = {(n, out) for n in range(1, samples + 1)} if lines == out else set()
    found |= {(1, -(-out // parts)) for parts in range(-(-out // lines), out + 1)}
    counts = {(n, each): -(-problem.batch // n) * -(-out // each) for n, each in found}
    times = {(n, each): -(-count // threads) * n * (each + halo) for (n, each), count in counts.items()}
    least = min(times.values())
    return min((block for block in found if WORTH * times[block] <= least), key=lambda block: counts[block])


def along_rows(problem: Problem, direction: str, side: int, chosen: np.ndarray, threads: int) -> Layout:
    """The layout where tiles hold neighbouring results of a row; the weight gradient has its own division."""
    rows, columns = problem.rows, problem.columns
    taps = columns.taps + (side - 1) * columns.stride
    runs, run = runs_of(problem, taps)
    tiles = [TILES[k] for k in chosen[:, 1]]
    strip_columns = (columns.out - 1) * columns.stride + (columns.taps - 1) * columns.dilation + 1
    under = (rows.taps - 1) * rows.dilation + 1
    row_bytes = ITEMSIZE[FLOAT32] * strip_columns * problem.groups * problem.inner
    most_rows = max(STRIP_BYTES // row_bytes, under)
    lines = max(1, min(rows.out, PIXELS // columns.out, (most_rows - under) // rows.stride + 1))
    strip_rows = (lines - 1) * rows.stride + under
    whole = min(PIXELS // (rows.out * columns.out), STRIP_BYTES // (row_bytes * strip_rows))
    samples = max(1, min(whole, problem.batch)) if lines == rows.out else 1
    if direction != GRAD_WEIGHTS and threads > 1:
        samples, lines = block_for(threads, problem, samples, lines, max(0, under - rows.stride))
        strip_rows = (lines - 1) * rows.stride + under
    sums_rows = max(round_up(rows.taps, t.rows if t.columns > 1 else 1) for t in tiles)
    sums_run = max(round_up(run, t.columns if t.columns > 1 else t.rows) for t in tiles)
    past = (sums_rows - rows.taps) * rows.dilation * strip_columns * problem.groups * problem.inner + sums_run
    return Layout(
        neighbours=side,
        taps=taps,
        width=round_up(problem.outer * side, LANES),
        lines=lines,
        samples=samples,
        along_samples=0,
        strip_columns=strip_columns,
        sample=strip_rows * strip_columns * problem.groups * problem.inner,
        runs=runs,
        run=run,
        sums_rows=sums_rows,
        sums_run=sums_run,
        strip=round_up(samples * strip_rows * strip_columns * problem.groups * problem.inner + past, LANES),
        transposed=direction == GRAD_INPUT,
        in_place=direction == FORWARD and side == 1 and min(rows.tap_first, columns.tap_first) >= 0,
    )


@njit
def lay_out(x, sample, samples, line, lines, record, strip):
    """Copy the image rows under ``lines`` rows of results, from ``line`` on, of ``samples`` samples to the strip."""
    problem = record[0]
    rows, columns, channels = problem.rows, problem.columns, problem.groups * problem.inner
    source, pitch = x.reshape(-1), problem.strip_columns * channels
    if problem.along_samples:
        floats = rows.side * pitch
        for n in range(samples):
            copy(source, (sample + n) * floats, strip, n * problem.sample, floats)
        return
    low = min(max(columns.pad, 0), problem.strip_columns)
    high = min(max(columns.side + columns.pad, low), problem.strip_columns)
    top = line * rows.stride - rows.pad
    for n in range(samples):
        for r in range((lines - 1) * rows.stride + (rows.taps - 1) * rows.dilation + 1):
            at, h = n * problem.sample + r * pitch, top + r
            if h < 0 or h >= rows.side:
                clear(strip, at, pitch)
                continue
            start = (((sample + n) * rows.side + h) * columns.side + low - columns.pad) * channels
            for k in range(0, (high - low) * channels, VECTOR):
                ask_to_read(source, start + columns.side * channels + k)
            clear(strip, at, low * channels)
            copy(source, start, strip, at + low * channels, (high - low) * channels)
            clear(strip, at + high * channels, pitch - high * channels)


@njit
def place_of(block, record):
    """(first sample, samples, first line, lines) of a block."""
    problem = record[0]
    above = -(-problem.rows.out // problem.lines)
    sample, line = block // above * problem.samples, block % above * problem.lines
    if problem.along_samples:
        sample = min(sample, problem.batch - problem.samples)
    return sample, min(problem.samples, problem.batch - sample), line, min(problem.lines, problem.rows.out - line)


@njit
def count_blocks(record):
    """Blocks of a problem."""
    problem = record[0]
    return -(-problem.rows.out // problem.lines) * -(-problem.batch // problem.samples)


@njit
def pack_tap(index, w, record, packed):
    """Tap row ``index // taps``, tap column ``index % taps`` of ``pack``."""
    problem = record[0]
    rows, columns, inner, outer = problem.rows, problem.columns, problem.inner, problem.outer
    width, source, target = problem.width, w.reshape(-1), packed.reshape(-1)
    depth, filters = w.shape[2], w.shape[3]
    s, moved = divmod(index, problem.taps)
    a = rows.tap_first + s * rows.tap_step
    for group in range(problem.groups):
        first = ((group * rows.taps + s) * problem.taps + moved) * inner * width
        clear(target, first, inner * width)
        for e in range(problem.neighbours):
            t = moved - e * columns.stride
            b = columns.tap_first + t * columns.tap_step
            if t < 0 or t >= columns.taps or a < 0 or a >= w.shape[0] or b < 0 or b >= w.shape[1]:
                continue
            tap = (a * w.shape[1] + b) * depth * filters
            for c in range(inner):
                at = first + c * width + e * outer
                if problem.transposed:
                    for q in range(outer):
                        target[at + q] = source[tap + q * filters + group * inner + c]
                else:
                    copy(source, tap + c * filters + group * outer, target, at, outer)


@njit
def taps_inside(axis, result):
    """(first, end) of the taps along an axis that meet the image; one that does not if none does."""
    begin = result * axis.stride - axis.pad
    first = max(0, -(begin // axis.dilation))
    end = min(axis.taps, (axis.side - 1 - begin) // axis.dilation + 1)
    return (first, end) if first < end else (0, 1)


@njit
def walk_of(index, record):
    """(first sample in the strip, column, first tap, past the last one) of tiles along samples, or along a row."""
    problem = record[0]
    if problem.along_samples:
        first, end = taps_inside(problem.columns, index)
        return np.int64(0), index, first, end
    return index, np.int64(0), np.int64(0), problem.taps


@njit
def correlate_share(worker, x, w, bias, relu, record, chosen, packed, strips, out):
    """One worker's share of the blocks in ``correlate``."""
    problem = record[0]
    rows, columns, inner, outer = problem.rows, problem.columns, problem.inner, problem.outer
    side, width = problem.neighbours, problem.width
    channels, outputs = problem.groups * inner, problem.groups * outer
    pitch = problem.strip_columns * channels
    strip = strips[worker]
    if problem.in_place:
        b_first = (rows.tap_first * w.shape[1] + columns.tap_first) * inner * outputs
        weights, group_step, b2 = np.int64(w.ctypes.data) + 4 * b_first, outer, outputs
        b0 = w.shape[1] * inner * outputs
    else:
        weights, group_step, b2 = np.int64(packed.ctypes.data), rows.taps * problem.taps * inner * width, width
        b0 = problem.taps * inner * width
    if problem.along_samples:
        a_step, out_step = problem.sample, out.shape[1] * out.shape[2] * outputs
        above, before = rows.pad, columns.pad
    else:  # the strip holds the padding
        a_step, out_step = columns.stride * channels, columns.out_step * outputs
        above = before = np.int64(0)
    floor = np.float32(0 if relu else -np.inf)
    none = np.int64(0)  # a literal is a type of its own: only the last step of a is one, small tiles run faster by half
    total, workers = count_blocks(record), len(strips)
    for block in range(worker * total // workers, (worker + 1) * total // workers):
        sample, samples, line, lines = place_of(block, record)
        lay_out(x, sample, samples, line, lines, record, strip)
        walks, length = (columns.out, samples) if problem.along_samples else (samples, columns.out)
        for group in range(problem.groups):
            for k in range(len(chosen)):
                first, tile, tile_rows, _, last = chosen[k]
                reach = tile_rows * side
                b = weights + 4 * (group * group_step + first)
                start = bias.ctypes.data + 4 * (group * width + first)
                for index in range(walks):
                    n, column, t, past = walk_of(index, record)
                    runs, run = (1, (past - t) * inner) if problem.runs == 1 else (past - t, inner)
                    a_column = (column * columns.stride + t * columns.dilation - before) * channels + group * inner
                    out_column = columns.out_first + column * columns.out_step
                    for i in range(lines):
                        s, end = taps_inside(rows, line + i)
                        a = n * problem.sample + (i * rows.stride + s * rows.dilation - above) * pitch + a_column
                        h = rows.out_first + (line + i) * rows.out_step
                        pixel = ((sample + n) * out.shape[1] + h) * out.shape[2] + out_column
                        y = pixel * outputs + group * outer + first
                        for step in range(-(-length // reach)):
                            j = min(step * reach, length - reach)
                            multiply(
                                tile, strip.ctypes.data + 4 * (a + j * a_step), side * a_step,
                                rows.dilation * pitch, columns.dilation * channels, 1,
                                b + 4 * (s * b0 + t * inner * b2), b0, inner * b2, b2,
                                end - s, runs, run,
                                start, none, none,
                                out.ctypes.data + 4 * (y + j * out_step), side * out_step, none,
                                last, floor,
                            )  # fmt: skip
        if side > 1:
            keep_apart(strip, block, bias, weights, floor, record, out)


@njit
def keep_apart(strip, block, bias, weights, floor, record, out):
    """Compute rows of results with NaN again, each from its own taps alone.

    A pixel that is not finite, times the zeros that stand for taps of neighbouring columns, is NaN in results that do
    not read it. Others are finite, and the same bits whether they are computed once or twice: zeros add nothing.
    """
    problem = record[0]
    rows, columns, inner, outer = problem.rows, problem.columns, problem.inner, problem.outer
    pitch, flat = problem.strip_columns * inner, out.reshape(-1)
    b0, b2 = problem.taps * inner * problem.width, problem.width
    none, one, single = np.int64(0), np.int64(1), np.int64(SINGLE)  # a literal would compile all tiles once more
    sample, samples, line, lines = place_of(block, record)
    for n in range(samples):
        for i in range(lines):
            h = rows.out_first + (line + i) * rows.out_step
            first = (((sample + n) * out.shape[1] + h) * out.shape[2] + columns.out_first) * outer
            if is_finite(flat, first, columns.out * outer):
                continue
            s, end = taps_inside(rows, line + i)
            a = n * problem.sample + (i * rows.stride + s * rows.dilation) * pitch
            for j in range(columns.out):
                multiply(
                    single, strip.ctypes.data + 4 * (a + j * columns.stride * inner), none,
                    rows.dilation * pitch, none, 1, weights + 4 * s * b0, b0, none, b2,
                    end - s, one, columns.taps * inner,
                    bias.ctypes.data + 4 * none, none, none, out.ctypes.data + 4 * (first + j * outer), none, none,
                    outer, floor,
                )  # fmt: skip


@njit
def is_finite(values, first, count):
    """Whether ``count`` values from ``first`` on are all finite: zero times any other is NaN, and so is their sum."""
    at, total = np.uintp(first), np.float32(0)
    for k in range(np.uintp(count)):
        total += values[at + k] * np.float32(0)
    return total == 0


@njit(parallel=True)
def correlate(x, w, b, relu, record, chosen, bias, packed, strips, out):
    """Fill the problem's pixels of out with sums, bias and relu."""
    for group in range(record[0].groups):
        for e in range(record[0].neighbours):
            for q in range(record[0].outer):
                bias[group, e * record[0].outer + q] = b[group * record[0].outer + q]
    for index in prange(0 if record[0].in_place else record[0].rows.taps * record[0].taps):
        pack_tap(np.int64(index), w, record, packed)
    for worker in prange(len(strips)):
        correlate_share(np.int64(worker), x, w, bias, relu, record, chosen, packed, strips, out)


@njit
def add_lines(flat, first, lines, count, sums):
    """Add ``lines`` lines of ``count`` values each, from position ``first`` on, to sums; what follows is asked for."""
    for line in range(lines):
        for k in range(0, count, VECTOR):
            at, lanes = first + line * count + k, first_lanes(count - k)
            ask_to_read(flat, at + AHEAD)
            store(add(load(sums, k, lanes), load(flat, at, lanes)), sums, k, lanes)


@njit
def accumulate_share(worker, x, dy, record, chosen, sums, lines_sums, strips):
    """One worker's part of the batch and share of the filters in ``accumulate``."""
    problem = record[0]
    rows, columns, inner, outer = problem.rows, problem.columns, problem.inner, problem.outer
    width = problem.width
    channels, outputs = problem.groups * inner, problem.groups * outer
    pitch, line_floats = problem.strip_columns * channels, columns.out * outputs
    parts, splits = len(sums), len(strips) // len(sums)
    part, split = divmod(worker, splits)
    strip, own, flat = strips[worker], lines_sums[part], dy.reshape(-1)
    low, high = split * len(chosen) // splits, (split + 1) * len(chosen) // splits
    row_step = problem.runs * problem.sums_run * width
    group_step = problem.sums_rows * row_step
    total = count_blocks(record)
    if split == 0:
        clear(own, 0, line_floats)
    for block in range(part * total // parts, (part + 1) * total // parts):
        sample, samples, line, lines = place_of(block, record)
        lay_out(x, sample, samples, line, lines, record, strip)
        dy_first = (sample * rows.out + line) * line_floats
        if split == 0:
            add_lines(flat, dy_first, samples * lines, line_floats, own)
        else:
            for k in range(0, samples * lines * line_floats, VECTOR):
                ask_to_read(flat, dy_first + k)
        for group in range(problem.groups):
            for k in range(low, high):
                first, tile, tile_rows, tile_columns, last = chosen[k]
                several = tile_columns > 1
                tap_rows, along = (tile_rows, tile_columns) if several else (1, tile_rows)
                for s in range(0, rows.taps, tap_rows):
                    top, bottom = inside(rows, s, tap_rows, line, lines)
                    if top >= bottom:
                        continue
                    down = (top * rows.stride + s * rows.dilation) * pitch + group * inner
                    b = dy.ctypes.data + 4 * (dy_first + top * line_floats + group * outer + first)
                    for t in range(problem.runs):
                        for c in range(0, problem.run, along):
                            left, right = np.int64(0), columns.out
                            if problem.neighbours == 1:
                                tap = t + c // inner  # one of the two is 0
                                taps = (min(c + along, problem.run) - 1) // inner - c // inner + 1
                                left, right = inside(columns, tap, taps, 0, columns.out)
                            if left >= right:
                                continue
                            across = (left * columns.stride + t * columns.dilation) * channels + c
                            a = strip.ctypes.data + 4 * (down + across)
                            at = group * group_step + s * row_step + (t * problem.sums_run + c) * width + first
                            out = sums[part].ctypes.data + 4 * at
                            shape = samples, bottom - top, right - left
                            add_tile(tile, several, a, b + 4 * left * outputs, out, last, shape, record)


@njit
def inside(axis, s, taps, line, lines):
    """(first, end) of ``lines`` results along an axis, counted from ``line``, in which tap ``s`` or one of the next
    ``taps`` meets the image."""
    above = axis.pad - (s + taps - 1) * axis.dilation
    below = axis.side - 1 + axis.pad - s * axis.dilation
    return max(0, -(-above // axis.stride) - line), min(lines, below // axis.stride + 1 - line)


@njit
def add_tile(tile, several, a, b, out, last, shape, record):
    """Add pixels of a block, (samples, lines, columns) of them, to one tile of sums."""
    problem = record[0]
    rows, columns, side, width = problem.rows, problem.columns, problem.neighbours, problem.width
    channels, outputs = problem.groups * problem.inner, problem.groups * problem.outer
    pitch, line_floats = problem.strip_columns * channels, columns.out * outputs
    samples, lines, results = shape
    whole, rest = divmod(results, side)
    a0, a1, a2 = problem.sample, rows.stride * pitch, side * columns.stride * channels
    b0, b1, b2 = rows.out * line_floats, line_floats, side * outputs
    a_row, out_row = (rows.dilation * pitch, problem.runs * problem.sums_run * width) if several else (1, width)
    multiply(
        tile, a, a_row, a0, a1, a2, b, b0, b1, b2, samples, lines, whole,
        out, out_row, width, out, out_row, width, last, np.float32(-np.inf),
    )  # fmt: skip
    if rest > 0:
        multiply(
            tile, a + 4 * whole * a2, a_row, a0, a1, a2, b + 4 * whole * b2, b0, b1, b2, samples, lines, np.int64(1),
            out, out_row, width, out, out_row, width, rest * problem.outer, np.float32(-np.inf),
        )  # fmt: skip


@njit
def gather_tap_row(a, record, sums, dw):
    """Row ``a`` of the kernel's gradient: the sums of all parts and neighbours; zero for taps on padding alone."""
    problem = record[0]
    rows, columns, inner, outer, width = problem.rows, problem.columns, problem.inner, problem.outer, problem.width
    row_step = problem.runs * problem.sums_run * width
    target, source = dw.reshape(-1), sums.reshape(-1)
    outputs = problem.groups * outer
    s = a - rows.tap_first
    for b in range(dw.shape[1]):
        t = b - columns.tap_first
        for c in range(inner):
            at = ((a * dw.shape[1] + b) * inner + c) * outputs
            clear(target, at, outputs)
            if s < 0 or s >= rows.taps or t < 0 or t >= columns.taps:
                continue
            for part in range(len(sums)):
                for group in range(problem.groups):
                    for e in range(problem.neighbours):
                        moved = t + e * columns.stride
                        run = moved * inner + c if problem.runs == 1 else moved * problem.sums_run + c
                        first = part * sums.shape[1] + (group * problem.sums_rows + s) * row_step + run * width
                        for q in range(outer):
                            target[at + group * outer + q] += source[first + e * outer + q]


@njit(parallel=True)
def accumulate(x, dy, record, chosen, sums, lines_sums, strips, dw, db):
    """Fill dw and db."""
    for index in prange(len(sums)):
        clear(sums[index], 0, sums.shape[1])
    for worker in prange(len(strips)):
        accumulate_share(np.int64(worker), x, dy, record, chosen, sums, lines_sums, strips)
    for a in prange(dw.shape[0]):
        gather_tap_row(np.int64(a), record, sums, dw)
    clear(db, 0, len(db))
    for part in range(len(lines_sums)):
        for j in range(record[0].columns.out):
            for q in range(len(db)):
                db[q] += lines_sums[part, j * len(db) + q]


class Step(NamedTuple):
    """One problem: its record, its blocks of outputs, and views of the scratch memory."""

    record: np.ndarray
    chosen: np.ndarray
    views: list[np.ndarray]


class NumbaJitBlocked(Plan):
    """Strips of image rows or of whole samples, walked by tiles of sums."""

    @classmethod
    def scratch_bytes(cls, spec, directions):
        """The more of what this batch needs and an unbounded one would: how many samples a tile holds is chosen for the
        batch, and a larger batch may need less."""
        needs = [
            bytes_of(cls._shapes(problem._replace(batch=batch), direction))
            for direction in directions
            for problem in cls._problems(spec, direction)
            for batch in (problem.batch, UNBOUNDED)
        ]
        return max(needs, default=0)

    @staticmethod
    def _problems(spec, direction):
        return [p._replace(rows=seen(p.rows), columns=seen(p.columns)) for p in problems(spec, direction)]

    @staticmethod
    def _shapes(problem, direction):
        """Forward: bias, packed, strips; weight gradient: sums, sums of dy per column of a line, strips."""
        threads = numba.get_num_threads()
        layout, _ = cut(problem, direction, threads)
        if direction == GRAD_WEIGHTS:
            sums = problem.groups * layout.sums_rows * layout.runs * layout.sums_run * layout.width
            parts, splits = division(problem, sums)
            line = problem.columns.out * problem.groups * problem.outer
            return [(parts, sums), (parts, line), (parts * splits, layout.strip)]
        room = MOST_BYTES // (ITEMSIZE[FLOAT32] * layout.strip)
        workers = max(1, min(threads, blocks_of(problem, layout), room))
        taps = 0 if layout.in_place else problem.rows.taps * layout.taps
        packed = problem.groups * taps * problem.inner * layout.width
        return [(problem.groups, layout.width), (packed,), (workers, layout.strip)]

    def prepare(self):
        self._steps = {d: [self._step(p, d) for p in self._problems(self.spec, d)] for d in self.directions}
        self._no_bias = np.zeros(max(self.spec.filters, self.spec.channels), FLOAT32)
        self._no_db = np.empty(self.spec.filters, FLOAT32)
        if self.spec != SMALLEST:
            for direction in self.directions:
                compile_loops(type(self), direction)

    def _step(self, problem, direction):
        layout, chosen = cut(problem, direction, numba.get_num_threads())
        return Step(record(problem, layout), chosen, views_of(self, self._shapes(problem, direction)))

    def forward(self, x, w, b, out):
        bias = self._no_bias if b is None else b
        self._correlate(FORWARD, x, w, bias, self.spec.activation == "relu", out)

    def grad_input(self, dy, w, dx):
        self._correlate(GRAD_INPUT, dy, w, self._no_bias, False, dx)

    def _correlate(self, direction, x, w, b, relu, out):
        for step in self._steps[direction]:
            correlate(x, w, b, relu, step.record, step.chosen, *step.views, out)

    def grad_weights(self, x, dy, dw, db):
        (step,) = self._steps[GRAD_WEIGHTS]
        accumulate(x, dy, step.record, step.chosen, *step.views, dw, self._no_db if db is None else db)


def division(problem: Problem, sums: int) -> tuple[int, int]:
    """(parts, splits) of the weight gradient: parts of the batch with ``sums`` floats each, splits of the filters.

    A function of the problem alone, so that the order of additions does not depend on the number of threads. Filters
    are split only where there are too few parts; parts are a power of two.
    """
    parts = max(1, min(16, problem.pixels // PART_PIXELS, MOST_BYTES // (ITEMSIZE[FLOAT32] * sums)))
    parts = 1 << parts.bit_length() - 1
    return parts, max(1, min(4 // parts, -(-problem.outer // (2 * LANES))))


IMPL = Implementation(
    NumbaJitBlocked, algorithm=DIRECT, why_not=float32_only, note="tiles of sums in registers, blocks in cache"
)
