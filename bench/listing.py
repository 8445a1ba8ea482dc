"""What there is: every implementation with what it declares and whether it can run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from impls import OPS, SpecError, Unavailable, competitors, get, names


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
    return tuple(_entry(op, name) for op in ops or OPS for name in (*names(op), *competitors(op)))


def table(found: Sequence[Entry]) -> Any:
    """The list as a rich table."""
    from rich.table import Table

    grid = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("op", "name", "device", "directions", "algorithm", "arithmetic", "here", "note"):
        grid.add_column(heading, overflow="fold", no_wrap=heading in ("op", "name", "device"))
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
            entry.note,
            style="dim" if entry.missing else "",
        )
        previous = entry.op
    return grid


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
        ("competitor: " if implementation.competitor else "") + implementation.note,
    )


def _declared(value: Any) -> str:
    return value if isinstance(value, str) else "depends on the case"
