"""What can be compared: runs of a store, our exports and pytest-benchmark's JSON, as runs with rows; and profiles.

Which of them a file is, its content says, not its name.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.ceilings import MachineProfile, is_profile, read_profile
from bench.lines import row_of, run_of
from bench.memory import HOT
from bench.results import TRAINING, Row, Run
from bench.store import Store

SQLITE = b"SQLite format 3\0"
MOST_SAMPLES = 1000
"""Of a longer series, as pytest-benchmark makes them of short calls, neighbours are joined into their median."""


NO_HARDWARE = ("uuid", "driver_cuda")
"""What is said of a GPU beside what kind it is."""


class SourceError(ValueError):
    """What was named cannot be compared; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Source:
    """A run with its rows, and how it was called on the command line."""

    label: str
    run: Run
    rows: tuple[Row, ...]

    @property
    def machine(self) -> str:
        """The machine's id; empty where the file does not say."""
        return str(self.run.machine.get("id", ""))

    @property
    def device(self) -> Mapping[str, Any] | None:
        """What its GPU is, but not which of several that are alike; None where the file does not say."""
        found = self.run.machine.get("cuda_device")
        return None if found is None else {name: value for name, value in found.items() if name not in NO_HARDWARE}

    @property
    def where(self) -> str:
        """Machine and GPU in words."""
        return ", ".join(filter(None, (self.machine or "an unnamed machine", (self.device or {}).get("name"))))


def read(name: str, address: str) -> Source:
    """A file; or a run's number, or the beginning of a commit, whose latest run counts, in the store at ``address``.

    STORE:NUMBER or STORE:COMMIT is a run in another store. Raises SourceError, and StoreError.
    """
    path = Path(name)
    if path.is_file():
        return of_file(path)
    store, _, which = name.rpartition(":")
    return of_store(store or address, which)


def profiles(base: str, new: str) -> tuple[MachineProfile, MachineProfile] | None:
    """The profiles of machines in two files; None where neither is one. Raises SourceError where only one is."""
    is_one = {name: _is_profile(Path(name)) for name in (base, new)}
    if not any(is_one.values()):
        return None
    for name, is_there in is_one.items():
        if not is_there:
            raise SourceError(
                f"{name} is no profile of a machine, as the other is; make one: layerbench profile --json FILE"
            )
    return read_profile(Path(base)), read_profile(Path(new))


def is_one_machine(base: Source, new: Source) -> bool:
    """Whether two runs are known to be of one machine, and not of different GPUs there."""
    is_other_device = None not in (base.device, new.device) and base.device != new.device
    return bool(base.machine) and base.machine == new.machine and not is_other_device


def require_one_machine(base: Source, new: Source) -> None:
    """Raises SourceError where two runs are not known to be of one machine."""
    if not is_one_machine(base, new):
        machines = (f"{each.label}: {each.where}" for each in (base, new))
        raise SourceError(
            f"the machines differ ({', '.join(machines)}): then a change is not the code's alone; compare them all the "
            "same with --across-machines"
        )


def of_store(address: str, which: str = "") -> Source:
    """A run by its number or its commit, without either the latest. Raises SourceError, and StoreError."""
    store = Store(address, must_exist=True)
    try:
        runs = [run for run in store.runs() if run.suite != TRAINING]
        found = [run for run in runs if str(run.id) == which]
        found = found or [run for run in runs if str(run.machine.get("commit", "")).startswith(which)]
        if not found:
            raise SourceError(
                f"{which or address!r} is no file, and neither a run nor a commit in {address}, which holds: "
                + (", ".join(f"{run.id} ({run.machine.get('commit') or 'no commit'})" for run in runs) or "no run")
            )
        run = found[-1]
        return Source(f"run {run.id} of {address}", run, tuple(row for _, row in store.rows(run.id)))
    finally:
        store.close()


def rows_beside(store: Store, about: Mapping[str, Any], threads: int) -> list[Row]:
    """The hot rows of the latest run on this machine with so many threads: what its ceilings say something of.

    ``about``: bench.machine.describe(). Raises SourceError where there is none.
    """
    fit = [
        run
        for run in store.runs()
        if run.suite != TRAINING and run.machine.get("id") == about["id"] and run.threads == threads
    ]
    if not fit:
        raise SourceError(
            f"{store.address} holds no run of this machine, {about['id']}, with threads {threads}; make one with: "
            f"layerbench run --threads {threads}, or give other --threads"
        )
    return [row for _, row in store.rows(fit[-1].id) if row.state == HOT]


def of_file(path: Path) -> Source:
    """The run in a file: a store's latest, or the one that was exported. Raises SourceError for any other content."""
    try:
        with path.open("rb") as file:
            if file.read(len(SQLITE)) == SQLITE:
                return of_store(str(path))
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    try:
        reader = _READERS[kind_of(text)]
        return reader(str(path), text)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{path} is neither a store, nor what layerbench run --json or --csv writes, nor pytest-benchmark's JSON "
            f"({type(error).__name__}: {error})"
        ) from error


def kind_of(text: str) -> str:
    """What a file's text holds: "run", "pytest-benchmark" or "csv". Raises ValueError for any other JSON document."""
    if not text.lstrip().startswith("{"):
        return "csv"
    document = json.loads(text)
    for kind, names in (("run", {"run", "rows"}), ("pytest-benchmark", {"benchmarks", "machine_info"})):
        if names <= document.keys():
            return kind
    raise ValueError("JSON of another kind")


def _is_profile(path: Path) -> bool:
    """Whether a file holds a profile; False where it cannot be read, or is no JSON."""
    try:
        return is_profile(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def _of_json(label: str, text: str) -> Source:
    document = json.loads(text)
    return Source(label, run_of(document["run"]), tuple(row_of(record) for record in document["rows"]))


def _of_csv(label: str, text: str) -> Source:
    """What identifies a row, its status and its samples; of the run what every line repeats."""
    records = list(csv.DictReader(text.splitlines()))
    if not records:
        raise SourceError(f"{label} holds no row")
    if "samples_s" not in records[0]:
        raise SourceError(f"{label} holds no samples, only what was made of them; export with: layerbench run --csv")
    first = records[0]
    machine = {"id": first["machine"], "commit": first["commit"]}
    run = Run("", first["suite"], 0, int(first["run_threads"]), first["started"], machine, id=int(first["run_id"]))
    return Source(label, run, tuple(map(_csv_row, records)))


def _csv_row(record: Mapping[str, str]) -> Row:
    names = ("op", "direction", "spec", "implementation", "device", "algorithm", "arithmetic", "status", "reason")
    texts: dict[str, Any] = {name: record[name] for name in names}
    samples = tuple(map(float, record["samples_s"].split()))
    is_competitor, state = record["competitor"] == "True", record.get("state") or HOT
    return Row(**texts, competitor=is_competitor, state=state, samples_s=samples)


def _of_pytest_benchmark(label: str, text: str) -> Source:
    """Each benchmark is a row: its file is the case, its name the implementation."""
    document = json.loads(text)
    info = document["machine_info"]
    hardware = {name: info.get(name) for name in ("node", "system", "machine", "cpu")}
    cpu = hardware["cpu"] if isinstance(hardware["cpu"], Mapping) else {}
    stable = {name: cpu.get(name) for name in ("brand_raw", "count", "arch")}  # not the clock of the moment
    digest = hashlib.sha256(json.dumps(hardware | {"cpu": stable}, sort_keys=True).encode()).hexdigest()[:8]
    commit = document.get("commit_info") or {}
    machine = {
        "id": digest,
        "cpu": stable["brand_raw"] or "",
        "commit": str(commit.get("id") or "")[:12] + "+" * bool(commit.get("dirty")),
        "python": info.get("python_version", ""),
    }
    run = Run("pytest-benchmark", "pytest-benchmark", 0, 0, str(document.get("datetime", "")), machine)
    return Source(label, run, tuple(_benchmark_row(label, each) for each in document["benchmarks"]))


def _benchmark_row(label: str, benchmark: Mapping[str, Any]) -> Row:
    data = benchmark["stats"].get("data")
    if not data:
        raise SourceError(
            f"{label} holds no times, only statistics; save them with --benchmark-json or with --benchmark-save-data"
        )
    file, _, name = benchmark["fullname"].partition("::")
    group = benchmark.get("group") or ""
    return Row("pytest-benchmark", group, file, name, "", False, "", "", "OK", samples_s=joined(data))


def joined(samples: Sequence[float]) -> tuple[float, ...]:
    """The samples, or the medians of at most MOST_SAMPLES groups of neighbours."""
    size = -(-len(samples) // MOST_SAMPLES)
    return tuple(median(samples[first : first + size]) for first in range(0, len(samples), size))


_READERS: Mapping[str, Callable[[str, str], Source]] = {
    "run": _of_json,
    "csv": _of_csv,
    "pytest-benchmark": _of_pytest_benchmark,
}
