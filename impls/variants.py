"""An implementation once more, in another worker, or slowed down by real work: ``numpy@b``, ``numpy@b+5%``.

``layerbench selftest`` compares such variants, to see how often equal ones are told apart and slower ones are found.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from impls.contract import Call, Implementation, Plan
from impls.registry import VARIANT, get


def name_of(base: str, label: str, share: float = 0.0) -> str:
    """The name under which a variant is found; ``share`` of its calls are made twice."""
    return f"{base}{VARIANT}{label}" + (f"+{100 * share:g}%" if share else "")


def implementation(op: str, name: str) -> Implementation:
    """The record of a variant. Raises KeyError for a name that cannot be read, and what the registry raises."""
    base, _, rest = name.partition(VARIANT)
    percent = rest.partition("+")[2]
    try:
        share = float(percent.removesuffix("%")) / 100 if percent else 0.0
    except ValueError:
        raise KeyError(f"no variant {name!r}; write for example {name_of(base, 'b', 0.05)}") from None
    record = get(op, base)
    return replace(record, plan_type=slowed(record.plan_type, share))


def slowed(plan_type: type[Plan], share: float) -> type[Plan]:
    """A kind of plan that makes this share of its calls twice: of 0.05 every twentieth.

    The extra work is the work itself, so the slow-down needs no calibration and is as noisy as what it slows down.
    Variants without a share count their calls too: what the counting costs is in all of them.
    """

    class Slowed(plan_type):  # type: ignore[valid-type, misc]
        owed = 0.0

        def bind(self, direction: str, *arrays: Any) -> Call:
            call: Call = super().bind(direction, *arrays)
            once = call.run

            def run() -> None:
                once()
                self.owed += share
                if self.owed >= 1:
                    self.owed -= 1
                    once()

            call.run = run
            return call

    return Slowed
