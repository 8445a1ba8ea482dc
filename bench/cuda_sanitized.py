"""Every CUDA entry of ours once, on tiny cases, to be run under compute-sanitizer: a line a call.

``compute-sanitizer --tool memcheck python -m bench.cuda_sanitized [CASE ...]`` prints {"op", "name", "case",
"direction", "status", "bounds", "reason"} as lines of JSON: the error in units of its bound, or the reason why there is
none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import check, inputs, local
from impls import Case, Unavailable, get, parse_case
from impls.specs import directions_of

NAMES: Mapping[str, tuple[str, ...]] = {
    "conv2d": ("numba_cuda_tiles", "numba_cuda_direct", "numba_cuda_viafft"),
    "dense": ("numba_cuda_tiles",),
    "maxpool2d": ("numba_cuda_direct",),
    "avgpool2d": ("numba_cuda_direct",),
}
"""The entries that are looked at, those that share memory within a block first."""

CASES = ("conv2d:2x3x2x3,k3x2,f4", "dense:5x3,u4", "maxpool2d:2x5x4x3,pool3x3,s2x2,same", "avgpool2d:2x5x4x3,pool2")
"""Odd sizes, and a border as wide as the image; the smallest transforms there are. Each tool has half a minute, begins
a process, and slows every launch down 10 to 100 times."""

Wanted = tuple[Case, str, str]
"""A case, a direction, an implementation."""


def wanted(cases: Sequence[str]) -> tuple[Wanted, ...]:
    """What is to be called, in this order: of CASES, or of these. Imports no implementation."""
    parsed = [parse_case(text) for text in cases or CASES]
    return tuple(
        (case, direction, name) for case in parsed for name in NAMES[case.op] for direction in directions_of(case.op)
    )


def described(call: Wanted) -> dict[str, str]:
    """What a record says of a call."""
    case, direction, name = call
    return {"op": case.op, "name": name, "case": str(case), "direction": direction}


def computed(calls: Sequence[Wanted]) -> Iterator[dict[str, Any]]:
    """One record per call, each as soon as it is known."""
    for call in calls:
        status, bounds, reason = "OK", None, ""
        try:
            judgement = _judged(*call)
        except Unavailable as missing:
            status, reason = "UNSUPPORTED", str(missing)
        except Exception as error:  # what a kernel does wrong is what is looked for
            status, reason = "ERROR", f"{type(error).__name__}: {error}"
        else:
            bounds = judgement.bounds
            if not judgement.is_right:
                status, reason = "WRONG", f"{judgement.where}: {judgement.bounds:.3g} times its bound"
        yield {**described(call), "status": status, "bounds": bounds, "reason": reason}


def _judged(case: Case, direction: str, name: str) -> check.Judgement:
    """One call on one design of inputs: all are judged elsewhere."""
    record = get(case.op, name)
    design = inputs.judged(case)[0]
    arrays = inputs.make(case, direction, design, seed=0)
    outputs = local.compute(record.plan(case.spec, (direction,)), direction, arrays)
    truth = check.expected(case, direction, arrays)
    how = record.algorithm_of(case.spec, direction), record.arithmetic_of(case.spec, direction)
    return check.verdict(case, direction, design, arrays, outputs, truth, *how)


def main() -> None:
    """Print a record as soon as it is known."""
    for record in computed(wanted(sys.argv[1:])):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
