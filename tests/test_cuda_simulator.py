"""Every CUDA kernel computes what the reference computes in Numba's simulator: a second witness beside the emulator.

The simulator is Numba's own reading of its language, and knows nothing of ours. It is slow, so each entry and direction
is given its cheapest cases, and what is needed to reach every kernel. It is chosen while numba is imported, so child
processes (this file run as a program) compute the cases and hand the results back; the tests judge them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from impls import registry
from impls.specs import arguments
from tests.cuda_runs import CASES, ENTRIES, RUNS, computed, input_arrays, judge

ROOT = Path(__file__).parents[1]
CHILDREN = 2

THREAD_S = 0.5e-3
WAITING_THREAD_S = 5e-3
"""Seconds that the simulator takes for a thread, and for one that waits at barriers."""

BUDGET_S = 6.0
"""Predicted, for all cases of an entry's direction."""

WORKSPACE_BYTES = 1 << 22


def predicted_s(name: str, what: str, direction: str) -> float:
    """Seconds that a run will take in the simulator, by its threads."""
    return sum(
        np.prod(launch.blocks) * launch.kernel.threads * (WAITING_THREAD_S if launch.kernel.shared_bytes else THREAD_S)
        for launch in launches(name, what, direction)
    )


def launches(name: str, what: str, direction: str) -> tuple:
    """What a run launches."""
    case = CASES[what]
    return registry.get(case.op, name).plan_type.launches(case.spec, direction)


def chosen() -> list[tuple[str, str, str]]:
    """Of each entry and direction, the cheapest runs that fit the budget, and the cheapest that reaches each kernel."""
    found = []
    spent: dict[tuple[str, str, str], float] = {}
    reached: set[str] = set()
    for run in sorted(RUNS, key=lambda run: predicted_s(*run)):
        name, what, direction = run
        key = (CASES[what].op, name, direction)
        names = {launch.kernel.name for launch in launches(*run)}
        total = spent.get(key, 0) + predicted_s(*run)
        if total <= BUDGET_S or not names <= reached:
            found.append(run)
            spent[key] = total
            reached |= names
    return found


CHOSEN = chosen()


def simulate(child: int, path: str) -> None:
    """Compute this child's runs; save inputs as they are afterwards, then outputs, as "<run>/<number of the array>".

    The workspace starts as NaN and is shared: no plan may count on what it finds there.
    """
    from impls.devices import CUDA

    workspace = CUDA.put(np.full(WORKSPACE_BYTES, 255, np.uint8))
    saved = {}
    for number in range(child, len(CHOSEN), CHILDREN):
        name, what, direction = CHOSEN[number]
        case = CASES[what]
        record = registry.get(case.op, name)
        ins = input_arrays(case, direction, special="NaN" in what)
        # A plan for one pixel takes its own scratch: both ways are tried.
        given = None if what.endswith("one pixel") else workspace
        got = computed(record, case, direction, ins, workspace=given)
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


@pytest.mark.parametrize("number", range(len(CHOSEN)), ids=lambda number: "-".join(CHOSEN[number]))
def test_kernel_equals_the_reference_and_leaves_its_inputs_alone(simulated, number):
    """Every value is written, every value is exact, every input is as it was."""
    name, what, direction = CHOSEN[number]
    case = CASES[what]
    ins = input_arrays(case, direction, special="NaN" in what)
    got = [simulated.get(f"{number}/{place}") for place in range(len(arguments(case.spec, direction)))]
    judge(registry.get(case.op, name), case, direction, ins, got)


def test_every_entry_and_direction_is_simulated():
    """What is left out for its price is tried in the emulator; nothing is left out altogether."""
    runs = {(CASES[what].op, name, direction) for name, what, direction in CHOSEN}
    assert runs == {(op, name, direction) for op, name in ENTRIES for direction in registry.get(op, name).directions}


if __name__ == "__main__":
    simulate(int(sys.argv[1]), sys.argv[2])
