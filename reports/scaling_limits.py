"""What bounds the number of threads that find work, by the code alone: nothing here was measured.

Imports the kernels, and with them Numba.
"""

from __future__ import annotations

import pandas as pd

from bench.suites import SWEEPS
from impls.conv2d import _winograd_weights as winograd_weights
from impls.conv2d import numba_jit_blocked as blocked
from impls.conv2d import numba_jit_winograd as winograd
from impls.conv2d._correlation import MOST_BYTES, Problem, problems
from impls.dense import numba_jit as dense
from impls.maxpool2d import numba_jit as pooling
from impls.specs import DIRECTIONS, GRAD_WEIGHTS, ConvSpec
from reports.formats import MISSING, Line, Section, Table
from reports.scaling import base_text

KERNELS = ("numba_jit_blocked", "numba_jit_winograd")
THREADS = 64
"""For so many the table says how many pieces there are, whatever the machine that writes it has."""


def pieces(name: str, spec: ConvSpec, direction: str, threads: int = THREADS) -> int | None:
    """Into how many pieces one of KERNELS can cut a call for these threads; None where it does not compute it.

    Of a convolution without stride, each piece being one thread's at a time.
    """
    (problem,) = problems(spec, direction)
    if name == "numba_jit_blocked":
        return _blocked(problem, direction, threads)
    return None if winograd.why_not(spec, direction) else _winograd(problem, direction)


def _blocked(problem: Problem, direction: str, threads: int) -> int:
    layout, _ = blocked.cut(problem, direction, threads)
    if direction != GRAD_WEIGHTS:
        return int(blocked.blocks_of(problem, layout))
    parts, splits = blocked.division(problem, layout.sums_rows * layout.runs * layout.sums_run * layout.width)
    return int(parts * splits)


def _winograd(problem: Problem, direction: str) -> int:
    if direction != GRAD_WEIGHTS:
        layout, _ = winograd.cut(problem, direction)
        return int(problem.batch * layout.down * layout.across)
    layout, panels = winograd_weights.cut(problem, winograd.form_of(problem))
    return int(layout.parts * len(panels))


def pieces_table() -> Table:
    """The pieces of every convolution of the sweeps."""
    records, sections = [], []
    for parameter, sweep in SWEEPS.items():
        lines = []
        for value, spec in sweep.items():
            found = {(name, direction): pieces(name, spec, direction) for name in KERNELS for direction in DIRECTIONS}
            lines.append(Line((str(value), *(MISSING if count is None else str(count) for count in found.values()))))
            records += [
                {
                    "parameter": parameter,
                    "value": value,
                    "implementation": name,
                    "direction": direction,
                    "pieces": count,
                }
                for (name, direction), count in found.items()
            ]
        sections.append(Section(f"{parameter} ({base_text(parameter)})", tuple(lines)))
    headings = [f"{name.removeprefix('numba_jit_')} {direction}" for name in KERNELS for direction in DIRECTIONS]
    return Table(
        "Pieces of work",
        ("value", *headings),
        tuple(sections),
        pd.DataFrame.from_records(records),
        notes=(
            f"into how many pieces the code cuts a call for {THREADS} threads; where there are fewer, some wait",
            "winograd forward, grad_input: tiles; they are handed out in blocks, which become smaller for more threads",
        ),
    )


def limits_text() -> str:
    """The bounds in words, with the numbers that stand in the code."""
    scratch = f"{MOST_BYTES >> 20} MiB"
    return f"""\
Read from the code: no machine with so many threads was measured. The table below has the numbers for this suite.

* **numba_jit_blocked, forward and input gradient.** Threads share blocks of whole rows of results: at most
  {blocked.PIXELS} results of a filter, at most {blocked.STRIP_BYTES >> 10} KiB of image rows, and several samples where
  images are small. They become smaller, down to one row of one image, where the thread that gets most is done earlier
  so, counting the image rows that two blocks copy. Tiles along samples (small images, many samples) keep
  {blocked.LEAST_SAMPLES} samples, and give way to tiles along rows where too many threads would wait.
  Weights that have to be packed are packed by tap, a 3x3 kernel in 9 pieces. The blocks of all threads together take at
  most {scratch}: where image rows are long, threads are left out.
* **numba_jit_blocked, weight gradient.** The batch is cut into parts with sums of their own, by the problem alone, so
  that any number of threads gives the same bits: a power of two, at most 16, each of at least {blocked.PART_PIXELS}
  windows, all sums within {scratch}. Filters are split only below 4 parts, to 4 pieces at most. Beyond 16 threads
  nothing is gained. Then each row of the kernel's taps is added up over all parts by one thread: by 3 of a 3x3 kernel.
  `numba_jit_direct` and `numba_jit_gemm` have the same limits.
* **numba_jit_winograd, forward and input gradient.** Threads share blocks of tiles, which become smaller until every
  thread has one: the number of tiles is the limit, and each block reads the transformed weights once more. Blocks of
  all threads together take at most {scratch}: they shrink to {winograd.STEP} tiles before threads are left out. Weights
  are transformed by source channel: at most as many threads as channels.
* **numba_jit_winograd, weight gradient.** Parts of the batch times panels of filters, by the problem alone: at most
  {winograd_weights.MOST_PARTS} parts, each of at least {winograd_weights.PART_TILES} tiles, or
  {winograd_weights.FEW_TILES} where there would be fewer than {winograd_weights.TASKS} pieces. Parts are added up in
  {winograd_weights.PIECES} pieces.
* **Dense numba_jit.** Tasks are bands of at least {dense.LEAST_ROWS} rows by strips of {dense.WIDTH} columns (on this
  processor). Rows are cut further only where there are too few strips, since in the input gradient each band transposes
  the weights once more. Below {dense.SERIAL_BELOW / 1e6:.1f} million operations a call is one thread's.
* **Pooling.** Threads share rows of results; in the gradient of a maximum over windows that overlap they share whole
  samples, at most as many as the batch has. Below {pooling.SERIAL_BELOW} pixels times channels a call is one thread's.
* **All of them.** A parallel call waits for every thread of Numba's pool, also for those that find nothing to do.
  Threads share the memory and the last cache: where bytes bind, they help only as far as the bandwidth grows with them.
"""
