"""What there is: every implementation with what it declares and whether it can run here.

``python -m bench.listing`` prints every entry as a line of JSON: asked in a process of its own, a driver or a library
that fails does not take the asker with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from impls import OPS, SpecError, Unavailable, get, names, rivals


@dataclass(frozen=True)
class Entry:
    """One line of the list; algorithm and arithmetic may depend on the case."""

    op: str
    name: str
    device: str
    directions: tuple[str, ...]
    algorithm: str
    arithmetic: str
    competitor: bool
    missing: str | None
    note: str


def entries(ops: Sequence[str] = ()) -> tuple[Entry, ...]:
    """Every implementation of these operations, or of all; imports no competitor's library. Raises SpecError."""
    for op in ops:
        if op not in OPS:
            raise SpecError(f"unknown operation {op!r}; known: {', '.join(OPS)}")
    return tuple(_entry(op, name) for op in ops or OPS for name in (*names(op), *rivals(op)))


def table(found: Sequence[Entry]) -> Any:
    """The list as a rich table, and under it what is worth knowing of each name."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table

    grid = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("op", "name", "device", "directions", "algorithm", "arithmetic", "here"):
        grid.add_column(heading, overflow="fold", no_wrap=heading != "here")
    previous = ""
    for entry in found:
        grid.add_row(
            entry.op if entry.op != previous else "",
            entry.name,
            entry.device,
            " ".join(_SHORT[d] for d in entry.directions),
            entry.algorithm,
            entry.arithmetic,
            entry.missing or "yes",
            style="dim" if entry.missing else "",
        )
        previous = entry.op
    notes = Table(box=None, show_header=False, pad_edge=False)
    notes.add_column(no_wrap=True)
    notes.add_column(overflow="fold")
    by_note: dict[tuple[str, str], list[str]] = {}
    for entry in found:
        if entry.note:
            by_note.setdefault((entry.name, entry.note), []).append(entry.op)
    for (name, note), ops in by_note.items():
        notes.add_row(f"{name} ({', '.join(ops)})" if not note.startswith("competitor") else name, note)
    return Group(grid, Padding(notes, (1, 0, 0, 0)))


_SHORT = {"forward": "forward", "grad_weights": "dw", "grad_input": "dx"}


def _entry(op: str, name: str) -> Entry:
    try:
        implementation = get(op, name)
    except Unavailable as reason:
        return Entry(op, name, "", (), "", "", False, str(reason), "")
    return Entry(
        op,
        name,
        str(implementation.device),
        implementation.directions,
        _declared(implementation.algorithm),
        _declared(implementation.arithmetic),
        implementation.competitor,
        implementation.missing(),
        ("competitor: " if implementation.competitor else "")
        + implementation.note
        + ("" if implementation.repeatable else "; bits may differ from call to call"),
    )


def _declared(value: Any) -> str:
    return value if isinstance(value, str) else "by case"


def main() -> None:
    """Print every entry, each as soon as it is known."""
    for op in OPS:
        for entry in entries((op,)):
            print(json.dumps(asdict(entry)), flush=True)


if __name__ == "__main__":
    main()
