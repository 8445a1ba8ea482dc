"""Find implementations: the file name is the name; import only what is asked for.

Ours are the modules of ``impls/<op>/``; competitors are the modules of ``impls/competitors/``, each with one record
per operation; other packages add their own through the entry point group ``layerbench.implementations``, with entries
``<op>.<name> = "package.module"``. A missing library is a reason; a mistake in our own files is an error.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from impls.contract import Implementation, Unavailable
from impls.specs import OPS, SpecError
from impls.wording import worded

GROUP = "layerbench.implementations"
REFERENCE = "reference"
VARIANT = "@"
"""In a name: what stands before it, once more or slowed down (impls.variants); for the harness's test of itself."""
AUTO = "auto"
"""The fastest by a table of measurements (impls.auto): there for every operation, listed nowhere as one more."""


def names(op: str) -> tuple[str, ...]:
    """The implementations of an operation, ours first, then other packages'; neither reference nor competitors.

    Raises SpecError for an unknown operation.
    """
    _require_op(op)
    return (*_modules(f"impls.{op}"), *_entries(op))


def rivals(op: str) -> tuple[str, ...]:
    """The names of the competitors that compute an operation. Imports none of their libraries."""
    _require_op(op)
    return tuple(
        f"{module}{suffix}"
        for module in _modules("impls.competitors")
        for suffix in importlib.import_module(f"impls.competitors.{module}").FIGURES.get(op, ())
    )


def is_foreign(op: str, name: str) -> bool:
    """Whether another package brings it: importing that may do anything."""
    return name in _entries(op) and name not in _modules(f"impls.{op}")


@cache
def get(op: str, name: str) -> Implementation:
    """Import one implementation, and nothing else.

    Raises KeyError for an unknown name (listing the known ones), Unavailable for a missing library.
    """
    _require_op(op)
    if name == REFERENCE or name in _modules(f"impls.{op}"):
        return _import_own(f"impls.{op}.{name}").named(op, name)
    if VARIANT in name:
        variant: Implementation = importlib.import_module("impls.variants").implementation(op, name)
        return variant.named(op, name)
    if name == AUTO:
        fastest: Implementation = importlib.import_module("impls.auto").implementation(op)
        return fastest.named(op, name)
    entries = _entries(op)
    if name in entries:
        return _import_foreign(entries[name]).named(op, name)
    for module in _modules("impls.competitors"):
        records = importlib.import_module(f"impls.competitors.{module}")
        for suffix in records.FIGURES.get(op, ()):
            if name == f"{module}{suffix}":
                implementation: Implementation = records.implementation(op, suffix)
                return implementation.named(op, name)
    raise KeyError(f"no implementation {name!r} of {op}; known: {', '.join((*names(op), *rivals(op)))}")


def reference(op: str) -> Implementation:
    """The float64 definition of an operation, the truth for all others."""
    return get(op, REFERENCE)


def _require_op(op: str) -> None:
    if op not in OPS:
        raise SpecError(f"unknown operation {op!r}; known: {', '.join(OPS)}")


def _modules(package: str) -> tuple[str, ...]:
    """Public modules of a package, by listing its folder; nothing is imported but the package itself."""
    path = importlib.import_module(package).__path__
    return tuple(
        sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_") and m.name != REFERENCE)
    )


def _entries(op: str) -> dict[str, EntryPoint]:
    """Entry points of other packages for this operation, by name."""
    found = ((e.name.partition("."), e) for e in entry_points(group=GROUP))
    return {name: entry for (entry_op, _, name), entry in found if entry_op == op and name}


def _import_own(module: str) -> Implementation:
    try:
        implementation: Implementation = importlib.import_module(module).IMPL
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if root in ("impls", "bench", "datasets", "reports"):
            raise
        raise Unavailable(f"{error.name} is not installed") from error
    return implementation


def _import_foreign(entry: EntryPoint) -> Implementation:
    try:
        loaded = entry.load()
    except Exception as error:  # another package's mistake must not stop the list
        raise Unavailable(f"{entry.value} cannot be imported: {worded(error)}") from error
    implementation = getattr(loaded, "IMPL", loaded)
    if not isinstance(implementation, Implementation):
        raise Unavailable(f"{entry.value} has no record named IMPL")
    return implementation
