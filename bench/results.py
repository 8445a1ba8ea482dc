"""The measured row, a contestant's training, and the files that rows are written to. ``store`` keeps them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STATUSES = (
    "UNAVAILABLE",
    "UNSUPPORTED",
    "CRASHED",
    "TIMEOUT",
    "OUT_OF_MEMORY",
    "ERROR",
    "SIDE_EFFECT",
    "MISDECLARED",
    "WRONG",
    "LEAK",
    "IMPOSSIBLE",
    "ASYNC_MISMATCH",
    "OVER_BUDGET",
    "NOISY",
    "OK",
)
"""The first that applies is a row's status. OK and NOISY rows carry times; NOISY means a wide interval.

MISDECLARED comes before WRONG: its errors are those of a less exact arithmetic or algorithm than the declared one, and
right or wrong is judged by what was declared. WRONG has errors that no arithmetic explains.
"""

TIMED = ("OK", "NOISY")
FAULTS = STATUSES[STATUSES.index("CRASHED") : STATUSES.index("OVER_BUDGET")]
"""An implementation of ours that has one of them is to be mended; they make an exit status 1."""

RESIDENT_BY_DEVICE = "resident_by_device"
KERNEL = "kernel"
KERNEL_FLUSHED = "kernel_flushed"
END_TO_END = "end_to_end"

FIGURES = {
    KERNEL: "the device's time of calls that were all enqueued before the first began: no launch latency, hot caches",
    KERNEL_FLUSHED: "the same, every call after a write to four times the L2 cache",
    END_TO_END: "host arrays to host arrays: inputs copied in, one call, results copied out, by the host's clock",
}
"""The figures beside ``samples_s`` that are compared, and what is in them; taken in the same rounds.

``samples_s`` is the resident figure: arrays on the device, from the first launch to idle, by the host's clock. The same
loops by the device's clock are kept as RESIDENT_BY_DEVICE, to be held against it; they are no figure of their own.
"""


def decided(*found: tuple[str, str]) -> tuple[str, str]:
    """The one (status, reason) of several that a row gets: the status that comes first, and what was found first."""
    return min(found, key=lambda each: STATUSES.index(each[0]))


TRAINING = "training"
"""The suite of a run whose rows are Training."""


class Failure(RuntimeError):
    """No result: one of STATUSES, and the reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with its 95 % bootstrap interval, in the unit of what it summarises."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One implementation, one case, one direction. Times are seconds per call; None where not measured."""

    op: str
    direction: str
    spec: str
    implementation: str
    device: str
    competitor: bool
    algorithm: str
    arithmetic: str
    status: str
    reason: str = ""
    suite: str = ""
    state: str = "hot"
    """State of the caches while timing: ``hot``, ``cold-weights`` or ``cold``, as bench.memory has them."""
    setup_s: float | None = None
    """Making the plan and binding its first call: compilation or loading from the cache, tile choice, scratch."""
    first_call_s: float | None = None
    samples_s: tuple[float, ...] = ()
    """One sample per round: the mean of ``loops`` calls."""
    figures: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """One sample per round of each of FIGURES and of RESIDENT_BY_DEVICE; none where only the host's clock tells."""
    clocks: str = "host"
    """What times were read from: "host", with the reason where a device's clock could not be read, or both."""
    launched: str = ""
    """On a device: "graph", or "launches" with the reason why they are not one."""
    exposed_samples: int | None = None
    """Samples whose device time contains launch latency, because the device could not be held for long enough."""
    dirty_samples: int | None = None
    """Samples in rounds during which the machine or its device was throttled, slowed down or shared; None where nobody
    looked."""
    aside_s: tuple[float, ...] = ()
    """These samples, where enough clean rounds were there to do without them; else they are among ``samples_s``."""
    host: Mapping[str, Any] = field(default_factory=dict)
    """Looks at the machine ``before`` and ``after`` the rounds, and the ``dirt`` between them: bench.contamination."""
    gpu: Mapping[str, Any] = field(default_factory=dict)
    """Readings ``before`` and ``after`` the rounds, and the ``dirt`` that was seen: bench.nvml."""
    loops: int | None = None
    threads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Sizes of every thread pool in the worker: as it was set, after the first timed round, and after the last; 0 where
    the pool was not there. In older rows the last alone."""
    median_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    min_s: float | None = None
    stop: str = ""
    """Why timing ended: precision (the interval is narrow enough), budget, or rounds (their cap, lower for what is much
    slower than the others); empty where a fault ended it."""
    gflops: float | None = None
    """Useful floating-point operations per second, in 10^9: taps on padding do not count."""
    gbytes_per_s: float | None = None
    """The least traffic of the call over its median time, in 10^9 bytes per second."""
    fraction: float | None = None
    """The least time that the run's ceilings allow over the median: bench.ceilings."""
    binding: str = ""
    """The ceiling that says so, with its rate."""
    workspace_bytes: int | None = None
    peak_bytes: int | None = None
    """Largest resident memory of the worker process so far."""
    minor_faults: float | None = None
    """Page faults per timed call that memory served: what a call allocates anew costs some; None where not counted."""
    major_faults: float | None = None
    """The same from a disk."""
    grown_bytes: int | None = None
    """By how much the worker's resident memory grew from the first timed sample to the last; None: not told."""
    error_bounds: float | None = None
    """Largest error on designed inputs, in units of its derived bound: above 1 is wrong."""
    dense_error: float | None = None
    """Largest error on dense random inputs in units of sqrt(terms) * roundoff * rms scale: reported, not judged."""
    ran_arithmetic: str = ""
    """What ran, inferred from its errors (bench.precision); empty where nothing could be inferred, or nobody looked."""
    ran_algorithm: str = ""
    """The same: "sums" are direct sums or a GEMM."""
    repeatable: bool | None = None
    """Whether timed outputs were the same bits every time."""
    speedups: Mapping[str, Interval] = field(default_factory=dict)
    """Per competitor: its time over ours, formed round by round; above 1 ours is faster."""


@dataclass(frozen=True, slots=True)
class Training:
    """One contestant's repetition of an experiment. Times are seconds; a turn is an epoch, several, or one step."""

    experiment: str
    dataset: str
    structure: str
    plan: str
    """How it was trained, in words: epochs or steps, batches, learning rate."""
    repetition: int
    contestant: str
    competitor: bool
    status: str
    """UNAVAILABLE, CRASHED, TIMEOUT, OUT_OF_MEMORY, ERROR, DIVERGED (the loss is not finite any more) or OK."""
    reason: str = ""
    batches: int | None = None
    """In an epoch, of sizes that differ by one at most; None where the plan has a batch's size in place of it."""
    batch: int | None = None
    """Samples in a batch; None where ``batches`` says how many there are."""
    learning_rate: float | None = None
    turn_epochs: int = 1
    """Epochs in a turn; 0 where a turn is one step."""
    threads: int | None = None
    setup_s: float | None = None
    """Making the network; the data were in memory."""
    first_step_s: float | None = None
    """The first step, with all that is compiled or traced then; the weights were brought back after it."""
    steps: tuple[int, ...] = ()
    """Batches in each turn."""
    seconds: tuple[float, ...] = ()
    """Of each turn."""
    losses: tuple[float, ...] = ()
    """Mean over each turn while the weights moved, with dropout."""
    accuracies: tuple[float | None, ...] = ()
    """The same; None of a training on numbers, which are not right or wrong."""
    test_accuracy: float | None = None
    test_loss: float | None = None
    test_samples: int | None = None
    parameters: tuple[float, ...] = ()
    """All weights and biases in the order of the layers, of a network of few; empty for any other."""
    peak_bytes: int | None = None
    """Largest resident memory of the process so far."""

    @property
    def name(self) -> str:
        """The published number, where there is one, and the data set."""
        return self.dataset if self.experiment == self.dataset else f"{self.experiment} {self.dataset}"

    @property
    def fit_s(self) -> float:
        """All turns; neither set-up nor the first step that compiles."""
        return sum(self.seconds)


@dataclass(frozen=True, slots=True)
class Run:
    """What all rows of one run have in common. ``machine`` is bench.machine.describe()."""

    command: str
    suite: str
    """The suite's name, or TRAINING."""
    seed: int
    threads: int
    started: str
    """ISO 8601, UTC."""
    machine: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    """What was chosen beside these and must be the same where a run is gone on with, by name; plain values."""
    id: int | None = None


def as_record(run: Run, row: Row) -> dict[str, Any]:
    """A row with its run's number, as plain values."""
    lists = {"samples_s": list(row.samples_s), "aside_s": list(row.aside_s), "figures": _lists(row.figures)}
    return {"run_id": run.id, **asdict(row), **lists}


def write_json(path: Path, run: Run, rows: Iterable[Row]) -> None:
    """One document: {"run": ..., "rows": [...]}, every field of every row. An infinite error is null: JSON has none."""
    document = {"run": asdict(run), "rows": [_finite(as_record(run, row)) for row in rows]}
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, run: Run, rows: Iterable[Row]) -> None:
    """One line per row, with its run's machine; samples are joined by blanks, a competitor's ratio is three columns."""
    records = [_flat(run, row) for row in rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def _lists(figures: Mapping[str, Iterable[float]]) -> dict[str, list[float]]:
    return {name: list(samples) for name, samples in figures.items()}


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }


def _flat(run: Run, row: Row) -> dict[str, Any]:
    record = as_record(run, row)
    record |= {"samples_s": _joined(row.samples_s), "aside_s": _joined(row.aside_s)}
    del record["figures"], record["gpu"], record["host"]
    record |= {f"{name}_samples_s": _joined(samples) for name, samples in row.figures.items()}
    for what, looks in (("gpu", row.gpu), ("host", row.host)):
        record |= {f"{what}_{name}": json.dumps(value) for name, value in looks.items()}
    record["threads"] = " ".join(f"{pool}={_sizes(counts)}" for pool, counts in row.threads.items())
    record |= {"run_threads": run.threads, "started": run.started}
    record |= {name: run.machine.get(key, "") for name, key in (("machine", "id"), ("commit", "commit"))}
    del record["speedups"]
    for name, interval in row.speedups.items():
        record |= {f"over_{name}_{part}": value for part, value in asdict(interval).items()}
    return record


def thread_counts(record: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """A row's ``threads`` of plain values; of an older row each is one number."""
    return {pool: tuple(found) if isinstance(found, list | tuple) else (found,) for pool, found in record.items()}


def _sizes(counts: tuple[int, ...]) -> str:
    """``2``, or ``2/2/1`` where they differ."""
    return "/".join(map(str, counts if len(set(counts)) > 1 else counts[:1]))


def _joined(samples: Iterable[float]) -> str:
    return " ".join(f"{sample:.9g}" for sample in samples)
