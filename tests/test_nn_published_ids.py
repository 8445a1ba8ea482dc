"""The published experiments' numbers follow from their settings: all 66, and both tests'."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from impls.nn.published_ids import experiment_id, text_hash, timing_test_id
from impls.nn.structure import parse

TABLE = Path(__file__).parents[1] / "reports" / "published" / "experiments.csv"
GRID = {"batch": 32, "filters": [16, 32, 64], "channels": [16, 32, 64], "sides": [2, 4, 8, 16, 32, 64]}
CUDA = ["numba_cuda_direct", "numba_cuda_tiles", "numba_cuda_viafft"]
CPU = ["numpy_gemm", "numba_jit_direct", "numba_jit_gemm", "cv2"]


def experiments() -> list[dict[str, str]]:
    """Every published run: 33 experiments on two machines."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number_of(run: dict[str, str], structure: str | None = None) -> str:
    """The number recomputed from what the table says."""
    return experiment_id(
        run["dataset"].lower(),
        parse(structure or run["structure"]),
        tuple(int(side) for side in run["input_shape"].split("x")),
        batches=int(run["batches_per_epoch"]),
        repetitions=int(run["repetitions"]),
        epochs=int(run["epochs"]),
        learning_rate=float(run["learning_rate"]),
    )


def test_all_66_numbers_are_recomputed():
    """From structure, data set, batches, epochs and repetitions."""
    runs = experiments()
    assert len(runs) == 66
    assert [number_of(run) for run in runs] == [run["experiment"] for run in runs]


def test_another_structure_has_another_number():
    """One unit more."""
    run = experiments()[0]
    assert number_of(run, run["structure"].replace("D(8,r)", "D(9,r)")) != run["experiment"]


@pytest.mark.parametrize(
    ("number", "implementations", "kernels"),
    [
        ("3818676499", [*CPU, *CUDA, "keras"], [3, 5, 7]),
        ("3727783458", CUDA, [3, 5, 7, 9, 11, 13, 15, 17, 19]),
    ],
)
def test_both_tests_numbers_are_recomputed(number, implementations, kernels):
    """From the grid and the order of the implementations."""
    assert timing_test_id(implementations, kernels=kernels, repetitions=10, **GRID) == number


def test_the_hash_is_the_one_that_java_gives_strings():
    """Known values: of the empty text, of one letter, and of a text whose 32-bit hash is negative there."""
    assert text_hash("") == "0000000000"
    assert text_hash("a") == "0000000097"
    assert text_hash("polygenelubricants") == f"{2**31:010d}"
