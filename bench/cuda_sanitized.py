"""Every CUDA kernel of ours once, on small cases, to be run under compute-sanitizer: a line a call.

``compute-sanitizer --tool memcheck python -m bench.cuda_sanitized [CASE ...]`` prints {"op", "name", "case",
"direction", "bounds", "reason"} as lines of JSON: the error in units of its bound, or the reason why there is none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from bench import local
from impls import Case, Unavailable, get, names, parse_case
from impls.devices import CUDA
from impls.specs import directions_of

CASES = (
    "conv2d:2x9x11x33,k3x3,f35",
    "conv2d:2x7x6x4,k2x4,f6,s2x2,g2,nobias,relu",
    "conv2d:2x3x2x3,k5x7,f4",
    "maxpool2d:2x7x8x3,pool3x3,s2x2,same",
    "avgpool2d:2x7x8x3,pool3x3,s2x2,same",
    "dense:17x65,u67",
)
"""Odd sizes, a border that is wider than the image, groups, strides; small, since a sanitizer slows down 100 times."""


def computed(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """One record per case, direction and CUDA implementation of ours, in that order."""
    for case in cases:
        for direction in directions_of(case.op):
            for name in names(case.op):
                try:
                    record = get(case.op, name)
                except Unavailable:
                    continue
                if record.device.name == CUDA.name and record.supports(case.spec, direction) is None:
                    found = {"op": case.op, "name": name, "case": str(case), "direction": direction}
                    try:
                        yield {**found, "bounds": local.judge(record, case, direction).bounds, "reason": ""}
                    except Exception as error:  # what a kernel does wrong is what is looked for
                        yield {**found, "bounds": None, "reason": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Print a record as soon as it is known."""
    for record in computed([parse_case(text) for text in sys.argv[1:] or CASES]):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
