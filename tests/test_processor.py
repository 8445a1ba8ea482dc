"""What code is compiled for: the processor's vectors, or fewer where numba is told of fewer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from impls.processor import features, host, vector_bits

SCRIPT = """
import os
from impls import numba_setup, processor
from numba.core import config
print(*processor.host(), config.CPU_NAME, config.CACHE_DIR)
"""
ELSEWHERE = not llvm.get_process_triple().startswith(("x86_64", "i686"))


def told(**environment: str) -> list[str]:
    """(lanes, registers, processor, folder of the cache) of a process in which numba is told this and nothing else."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU_") and k != "NUMBA_CACHE_DIR"}
    root = Path(__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**kept, "PYTHONPATH": str(root), **environment},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return run.stdout.split()


@pytest.mark.skipif(ELSEWHERE, reason="these features are x86's")
@pytest.mark.parametrize(
    ("given", "vectors", "widths"),
    [
        ("+avx,+avx2,+fma,+avx512f", (16, 32), (128, 256, 512)),
        ("+avx,+avx2,+fma,-avx512f", (8, 16), (128, 256)),
        ("+avx,+avx2,-fma", (4, 16), (128, 256)),
        ("", (4, 16), (128,)),
    ],
)
def test_tiles_are_cut_to_the_features_that_numba_is_told_of(given, vectors, widths, monkeypatch):
    monkeypatch.setenv("NUMBA_CPU_FEATURES", given)
    assert host() == vectors
    assert vector_bits() == widths


def test_any_processor_has_no_features_that_only_this_one_has(monkeypatch):
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert features() == {}


@pytest.mark.skipif(ELSEWHERE, reason="these features are x86's")
def test_code_of_another_number_of_lanes_is_kept_elsewhere_and_the_processor_asked_for_is_kept():
    """The folder is named by the tiles; a name that the user gave stays."""
    few = told(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx,+avx2,+fma")
    fewer = told(NUMBA_CPU_NAME="generic")
    assert few[:3] == ["8", "16", "haswell"]
    assert fewer[:3] == ["4", "16", "generic"]
    assert few[3] != fewer[3]
    assert told(NUMBA_CPU_NAME="nehalem")[2] == "nehalem"
