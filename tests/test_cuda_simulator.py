"""Every CUDA kernel computes what the reference computes in Numba's simulator: a second witness beside the emulator.

The simulator is Numba's own reading of its language, and knows nothing of ours. It is slow, so each entry and direction
is given its cheapest cases, and what is needed to reach every kernel. It is chosen while numba is imported, so child
processes (this file run as a program) compute the cases and hand the results back; the tests judge them.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from impls import registry
from impls.devices import CUDA
from impls.specs import arguments
from tests.cuda_runs import ENTRIES, RUNS, Run

ROOT = Path(__file__).parents[1]
CHILDREN = 2

THREAD_S = 0.5e-3
WAITING_THREAD_S = 5e-3
"""Seconds that the simulator takes for a thread, and for one that waits at barriers."""

BUDGET_S = 6.0
"""Predicted, for all cases of an entry's direction."""

MOST_S = 20.0
"""Predicted, for a run that alone reaches a kernel: the emulator tries what is dearer."""

WORKSPACE_BYTES = 1 << 22


def predicted_s(run: Run) -> float:
    """Seconds that a run will take in the simulator, by its threads."""
    return sum(
        math.prod(launch.blocks)
        * launch.kernel.threads
        * (WAITING_THREAD_S if launch.kernel.shared_bytes else THREAD_S)
        for launch in run.launches()
    )


def chosen() -> list[Run]:
    """Of each entry and direction, the cheapest runs that fit the budget, and the cheapest that reaches each kernel."""
    found = []
    spent: Counter[tuple[str, str, str]] = Counter()
    reached: set[str] = set()
    for run in sorted(RUNS, key=predicted_s):
        key = run.op, run.name, run.direction
        names = {launch.kernel.name for launch in run.launches()}
        if spent[key] + predicted_s(run) <= BUDGET_S or (predicted_s(run) <= MOST_S and not names <= reached):
            found.append(run)
            spent[key] += predicted_s(run)
            reached |= names
    return found


CHOSEN = chosen()


def simulate(child: int, path: str) -> None:
    """Compute this child's runs; save inputs as they are afterwards, then outputs, as "<run>/<number of the array>".

    The workspace starts as NaN and is shared: no plan may count on what it finds there.
    """
    workspace = CUDA.put(np.full(WORKSPACE_BYTES, 255, np.uint8))
    saved = {}
    for number in range(child, len(CHOSEN), CHILDREN):
        run = CHOSEN[number]
        # A plan for one pixel takes its own scratch: both ways are tried.
        got = run.computed(workspace=None if run.what.endswith("one pixel") else workspace)
        saved |= {f"{number}/{place}": array for place, array in enumerate(got) if array is not None}
    np.savez(path, **saved)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """All arrays of all runs, by "<run>/<number of the array>"."""
    paths = [tmp_path_factory.mktemp("simulator") / f"{child}.npz" for child in range(CHILDREN)]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen([sys.executable, __file__, str(child), str(path)], env=environment, stderr=subprocess.PIPE)
        for child, path in enumerate(paths)
    ]
    arrays = {}
    for child, path in zip(children, paths, strict=True):
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors.decode()
        with np.load(path) as found:
            arrays |= dict(found)
    return arrays


@pytest.mark.parametrize("number", range(len(CHOSEN)), ids=lambda number: str(CHOSEN[number]))
def test_kernel_equals_the_reference_and_leaves_its_inputs_alone(simulated, number):
    """Every value is written, every value is exact, every input is as it was."""
    run = CHOSEN[number]
    places = range(len(arguments(run.case.spec, run.direction)))
    run.judge([simulated.get(f"{number}/{place}") for place in places])


def test_every_entry_and_direction_is_simulated():
    """What is left out for its price is tried in the emulator; nothing is left out altogether."""
    runs = {(run.op, run.name, run.direction) for run in CHOSEN}
    assert runs == {(op, name, direction) for op, name in ENTRIES for direction in registry.get(op, name).directions}


if __name__ == "__main__":
    simulate(int(sys.argv[1]), sys.argv[2])
