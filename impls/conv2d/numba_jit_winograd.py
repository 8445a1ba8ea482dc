"""Winograd's F(m, r) in two dimensions: (m + r - 1)^2 products for m x m results of r x r taps each.

For a block of tiles of the image, every channel is transformed; then, for a panel of filters, (m + r - 1)^2 matrix
products of tiles by channels with channels by filters run on the register tiles of ``impls.contraction``, and what they
give is transformed back, with bias and relu, into the results. The transformed block and one panel's products stay in
the second-level cache; transformed weights are read once a block, in the order in which they lie.

The input gradient is the same with the kernel turned around and its channels and filters exchanged. For the weight
gradient, which is the transpose in the taps and takes as many operations, see ``impls.conv2d._winograd_weights``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from impls.contract import FLOAT32, Implementation, PackedWeights, Plan, aligned_empty, float32_only
from impls.conv2d import _winograd_weights
from impls.conv2d._correlation import (
    MOST_BYTES,
    UNBOUNDED,
    Problem,
    bytes_of,
    compile_loops,
    problems,
    record,
    round_up,
    views_of,
)
from impls.conv2d._register_tiles import LANES, TILES, blocks, multiply
from impls.conv2d._winograd_transforms import (
    FORMS,
    results_at,
    tiles_ahead,
    transform_block,
    transform_kernel,
    transform_results,
)
from impls.numba_setup import njit, numba, prange
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, ITEMSIZE, ConvSpec
from impls.transposition import transposition
from impls.winograd import algorithm

BLOCK_BYTES = 400 << 10
"""Of a transformed block and the products of one panel, which leave room in a second-level cache to weights passing."""
WEIGHT_BYTES = 4 << 20
"""Of transformed weights beyond which they, and no longer the block, decide: a block reads all of them from afar."""
STEP, MANY = 14, 112
"""Tiles of a block: at least, and a multiple of it, the rows of a register tile; and with many weights."""
WIDEST = max(tile.vectors for tile in TILES) * LANES
"""Filters of the widest panel."""
FEWEST = 4
"""Channels and filters below which the transforms cost more than the products that they save; below 16 they may."""
IMAGE_COST, RESULTS_COST, KERNEL_COST, PRODUCTS_COST = 8, 5, 8, 8
"""Measured, in fused multiply-adds, of each vector of a tile's values: of its transforms, with their loads and stores
and what they wait for memory, and of a sum of products beside the products."""
SMALLEST = ConvSpec(1, 2, 2, 1, 1, (3, 3))
"""What the loops are compiled on."""

transposed_square = transposition(LANES)


class Layout(NamedTuple):
    """Which F(m, r), and how scratch memory lies."""

    form: int
    """Index into FORMS."""
    m: int
    side: int
    """m + r - 1."""
    down: int
    """Tiles of a column of the results."""
    across: int
    """Tiles of a row of the results."""
    tiles: int
    """Tiles of a block."""
    depth: int
    """Floats of a transformed value's channels, whole vectors."""
    plane: int
    """Floats from one of the side^2 values to the next in a transformed block: the last register tile may go past its
    end, and one vector more keeps the values from lying a multiple of a page apart, in the same few cache lines."""
    products_plane: int
    """The same of a panel's products."""
    transposed: int
    """The weights' last axis is summed over: the input gradient."""
    turned: int
    """Floats of a row of transposed weights."""


def form_of(problem: Problem) -> int:
    """The index of the F(m, r) that takes the fewest operations; r is the kernel's."""
    able = [k for k, (_, r) in enumerate(FORMS) if r == problem.rows.taps]
    return min(able, key=lambda k: operations(problem, *FORMS[k]))


def operations(problem: Problem, m: int, r: int) -> int:
    """Of a call, in fused multiply-adds of vectors."""
    tiles = problem.batch * -(-problem.rows.out // m) * -(-problem.columns.out // m)
    image, results = -(-problem.inner // LANES), -(-problem.outer // LANES)
    a_tile = IMAGE_COST * image + (problem.inner + PRODUCTS_COST + RESULTS_COST) * results
    return (m + r - 1) ** 2 * (tiles * a_tile + KERNEL_COST * problem.inner * results)


def cut(problem: Problem, direction: str) -> tuple[Layout, np.ndarray]:
    """(layout, panels: rows of first output, register tile, rows of it, width in floats), small enough for all threads.

    Blocks become smaller before threads have to be left out.
    """
    most, threads = most_tiles(problem), numba.get_num_threads()
    found = cut_into(problem, direction, most, threads)
    while most > STEP and threads * ITEMSIZE[FLOAT32] * own_floats(problem, found[0]) > MOST_BYTES:
        most -= STEP
        found = cut_into(problem, direction, most, threads)
    return found


def most_tiles(problem: Problem) -> int:
    """Tiles of a block that the caches would have."""
    m, r = FORMS[form_of(problem)]
    a_value = ITEMSIZE[FLOAT32] * (m + r - 1) ** 2
    if a_value * problem.inner * problem.outer > WEIGHT_BYTES:
        return MANY
    return max(BLOCK_BYTES // (a_value * (round_up(problem.inner, LANES) + 2 * LANES)) // STEP, 1) * STEP


def own_floats(problem: Problem, layout: Layout) -> int:
    """Floats of a worker's scratch memory: a block, products and a spare row."""
    return layout.side**2 * (layout.plane + layout.products_plane) + round_up(layout.m * problem.outer, LANES) + LANES


def cut_into(problem: Problem, direction: str, most: int, threads: int) -> tuple[Layout, np.ndarray]:
    """``cut`` for blocks of at most so many tiles: as many blocks for each thread, and as many tiles in each block."""
    form = form_of(problem)
    m, r = FORMS[form]
    side, depth = m + r - 1, round_up(problem.inner, LANES)
    down, across = -(-problem.rows.out // m), -(-problem.columns.out // m)
    share = -(-problem.batch * down * across // threads)
    tiles = -(-share // -(-share // most))

    def steps(tile):
        return float("inf") if tile.columns > 1 else -(-tiles // tile.rows)

    _, chosen = blocks(problem.outer, steps)
    panels = np.array([(first, k, rows, TILES[k].vectors * LANES) for first, k, rows, _, _ in chosen], np.int64)
    room = tiles + int(max(panels[:, 2]))
    return Layout(
        form=form,
        m=m,
        side=side,
        down=down,
        across=across,
        tiles=tiles,
        depth=depth,
        plane=room * depth + LANES,
        products_plane=room * int(max(panels[:, 3])) + LANES,
        transposed=direction == GRAD_INPUT,
        turned=round_up(problem.outer, LANES),
    ), panels


@njit
def turn(index, w, record, turned):
    """Transpose channels and filters of tap ``index``: rows of filters."""
    problem = record[0]
    channels, filters = w.shape[2], w.shape[3]
    row = problem.turned
    source = np.int64(w.ctypes.data) + 4 * index * channels * filters
    target = np.int64(turned.ctypes.data) + 4 * index * problem.depth * row
    for c in range(0, channels, LANES):
        for f in range(0, filters, LANES):
            transposed_square(
                source + 4 * (c * filters + f), filters, min(LANES, channels - c), min(LANES, filters - f),
                target + 4 * (f * row + c), row,
            )  # fmt: skip


@njit
def pack_row(c, w, record, panels, turned, packed):
    """Transform the taps from source channel ``c`` to every output."""
    problem = record[0]
    rows, columns, inner, outer, side = problem.rows, problem.columns, problem.inner, problem.outer, problem.side
    none = np.int64(0)
    if problem.transposed:
        weights, between, tap = np.int64(turned.ctypes.data), problem.turned, problem.depth * problem.turned
    else:
        weights, between, tap = np.int64(w.ctypes.data), outer, inner * outer
    first_tap = (rows.tap_first * w.shape[1] + columns.tap_first) * tap
    at = np.int64(packed.ctypes.data)
    for first, _, _, width in panels:
        value = inner * width + LANES
        for f in range(first, first + width, LANES):
            transform_kernel(
                problem.form, weights + 4 * (first_tap + c * between + f),
                rows.tap_step * w.shape[1] * tap, columns.tap_step * tap, none,
                at + 4 * (c * width + f - first), side * value, value,
                none, none, none, none, none, none, outer - f, np.float32(-np.inf),
            )  # fmt: skip
        at += 4 * side * side * value


@njit
def finish_block(first, count, products, start, width, bias, floor, record, spare, out):
    """Transform a panel's products of ``count`` tiles to results of outputs from ``start`` on."""
    problem = record[0]
    rows, columns, outer, side = problem.rows, problem.columns, problem.outer, problem.side
    plane = problem.products_plane
    ahead = tiles_ahead(side, width)
    for t in range(count):
        at, top, left = results_at(first + t, out, problem)
        soon, _, _ = results_at(first + t + ahead, out, problem)
        for f in range(start, start + width, LANES):
            transform_results(
                problem.form, products + 4 * (t * width + f - start), side * plane, plane, soon + 4 * f,
                at + 4 * f, columns.out * outer, outer,
                -top, rows.out - top, -left, columns.out - left, spare, bias + 4 * f, outer - f, floor,
            )  # fmt: skip


@njit
def correlate_share(worker, x, b, relu, record, panels, packed, zeros, scratch, out):
    """One worker's share of the blocks in ``correlate``."""
    problem = record[0]
    inner, side, plane, depth = problem.inner, problem.side, problem.plane, problem.depth
    source, bias, blank, target = (
        np.int64(x.ctypes.data), np.int64(b.ctypes.data), np.int64(zeros.ctypes.data), np.int64(out.ctypes.data)
    )  # fmt: skip
    block = np.int64(scratch[worker].ctypes.data)
    products = block + 4 * side * side * plane
    spare = products + 4 * side * side * problem.products_plane
    floor = np.float32(0 if relu else -np.inf)
    none = np.int64(0)  # a literal is a type of its own: the 1 below, on purpose, has small tiles run 1.5 times as fast
    one = np.int64(1)
    total = problem.batch * problem.down * problem.across
    several, workers = -(-total // problem.tiles), len(scratch)
    for number in range(worker * several // workers, (worker + 1) * several // workers):
        first = number * problem.tiles
        count = min(problem.tiles, total - first)
        transform_block(first, count, source, record, blank, block)
        weights = np.int64(packed.ctypes.data)
        for start, tile, tile_rows, width in panels:
            value = inner * width + LANES
            for e in range(side * side):
                for t in range(0, count, tile_rows):
                    multiply(
                        tile, block + 4 * (e * plane + t * depth), depth, none, none, 1,
                        weights + 4 * e * value, none, none, width, one, one, inner,
                        blank, none, none,
                        products + 4 * (e * problem.products_plane + t * width), width, none,
                        np.int64(LANES), np.float32(-np.inf),
                    )  # fmt: skip
            finish_block(first, count, products, start, width, bias, floor, record, spare, target)
            weights += 4 * side * side * value


@njit(parallel=True)
def pack(w, record, panels, turned, packed):
    """Transform the weights."""
    for index in prange(w.shape[0] * w.shape[1] if record[0].transposed else 0):
        turn(np.int64(index), w, record, turned)
    for c in prange(record[0].inner):
        pack_row(np.int64(c), w, record, panels, turned, packed)


@njit(parallel=True)
def correlate(x, b, relu, record, panels, packed, zeros, scratch, out):
    """Fill out with sums, bias and relu."""
    for worker in prange(len(scratch)):
        correlate_share(np.int64(worker), x, b, relu, record, panels, packed, zeros, scratch, out)


class Step(NamedTuple):
    """A direction's record, its panels of outputs, and views of the scratch memory."""

    record: np.ndarray
    panels: np.ndarray
    turned: np.ndarray
    packed: np.ndarray
    scratch: np.ndarray


class NumbaJitWinograd(Plan):
    """Tiles of the image, transformed, multiplied and transformed back."""

    @classmethod
    def scratch_bytes(cls, spec, directions):
        """The more of what this batch needs and an unbounded one would: a block's number of tiles is not monotone."""
        needs = [
            bytes_of(cls._shapes(problem._replace(batch=batch), direction))
            for direction in directions
            for problem in problems(spec, direction)
            for batch in (problem.batch, UNBOUNDED)
        ]
        return max(needs, default=0)

    @staticmethod
    def _shapes(problem, direction):
        """Transposed weights, transformed weights, and of each worker a block, products and a spare row.

        Of the weight gradient: the parts' sums, and of each worker a block.
        """
        if direction == GRAD_WEIGHTS:
            return _winograd_weights.shapes(problem, form_of(problem))
        layout, panels = cut(problem, direction)
        values = layout.side**2
        turned = problem.rows.taps**2 * layout.depth * layout.turned if layout.transposed else 0
        packed = sum(values * (problem.inner * int(width) + LANES) for width in panels[:, 3])
        own = own_floats(problem, layout)
        count = -(-problem.batch * layout.down * layout.across // layout.tiles)
        workers = max(1, min(numba.get_num_threads(), count, MOST_BYTES // (ITEMSIZE[FLOAT32] * own)))
        return [(turned,), (packed,), (workers, own)]

    def prepare(self):
        steps = {d: self._step(*problems(self.spec, d), d) for d in self.directions}
        self._weights = steps.pop(GRAD_WEIGHTS, None)
        self._steps = {d: Step(*step) for d, step in steps.items()}
        most = max(self.spec.filters, self.spec.channels)
        self._zeros = aligned_empty(ITEMSIZE[FLOAT32] * (max(8 * most, WIDEST) + LANES)).view(FLOAT32)
        self._one = np.ones(1, FLOAT32)
        self._no_db = np.empty(self.spec.filters, FLOAT32)
        self._packed = None
        if self.spec != SMALLEST:
            for direction in self.directions:
                compile_loops(type(self), direction, SMALLEST)

    def _step(self, problem, direction):
        """Record, panels, and views of the scratch memory."""
        if direction == GRAD_WEIGHTS:
            layout, panels = _winograd_weights.cut(problem, form_of(problem))
        else:
            layout, panels = cut(problem, direction)
        return record(problem, layout), panels, *views_of(self, self._shapes(problem, direction))

    def pack(self, w):
        """Transform the weights, for each planned direction, into memory of the plan."""
        if self._packed is None:
            own = {d: aligned_empty(step.packed.nbytes).view(FLOAT32) for d, step in self._steps.items()}
            self._packed = PackedWeights(own)
        for direction, step in self._steps.items():
            pack(w, step.record, step.panels, step.turned, self._packed.of[direction])
        return self._packed

    def forward(self, x, w, b, out):
        bias = self._zeros if b is None else b
        self._correlate(FORWARD, x, w, bias, self.spec.activation == "relu", out)

    def grad_input(self, dy, w, dx):
        self._correlate(GRAD_INPUT, dy, w, self._zeros, False, dx)

    def grad_weights(self, x, dy, dw, db):
        record, panels, sums, scratch = self._weights
        _winograd_weights.accumulate(
            x, dy, record, panels, self._zeros, self._one, sums, scratch, dw, self._no_db if db is None else db
        )

    def _correlate(self, direction, x, w, b, relu, out):
        step = self._steps[direction]
        if isinstance(w, PackedWeights):
            packed = w.of[direction]
        else:
            packed = step.packed
            pack(w, step.record, step.panels, step.turned, packed)
        correlate(x, b, relu, step.record, step.panels, packed, self._zeros, step.scratch, out)


def why_not(spec: ConvSpec, direction: str) -> str | None:
    """The reason why a problem is refused; what is refused here, ``numba_jit_blocked`` computes."""
    kernels = sorted({r for _, r in FORMS})
    if spec.kernel[0] != spec.kernel[1] or spec.kernel[0] not in kernels:
        return f"square kernels of {', '.join(map(str, kernels))} taps alone, not {spec.kernel}"
    if spec.stride != (1, 1) or spec.dilation != (1, 1) or spec.groups != 1:
        return "no stride, dilation or groups: windows must overlap tap by tap"
    if min(spec.channels, spec.filters) < FEWEST:
        return f"with fewer than {FEWEST} channels or filters the transforms cost more than the products they save"
    problem = problems(spec, direction)[0]
    if (problem.rows.taps, problem.columns.taps) != spec.kernel:
        return "taps that meet only padding: the image is much smaller than the kernel"
    return float32_only(spec, direction)


def declared(spec: ConvSpec, direction: str) -> str:
    """winograd(m, r): the one with the fewest operations. What is refused has none."""
    if why_not(spec, direction) is not None:
        return "winograd"
    return algorithm(*FORMS[form_of(problems(spec, direction)[0])])


IMPL = Implementation(
    NumbaJitWinograd, algorithm=declared, why_not=why_not, note="minimal filtering on register tiles, blocks in cache"
)
