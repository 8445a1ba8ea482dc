"""What compiled code may count on: the processor's vectors, as numba is told of them.

``NUMBA_CPU_FEATURES`` and ``NUMBA_CPU_NAME=generic`` take features away from numba; tiles are then cut to what is left.
Reads the environment alone, so that it can be asked before numba is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import llvmlite.binding as llvm


class Host(NamedTuple):
    """What a tile is cut to: float32 values of the widest vector, and how many vector registers there are."""

    lanes: int
    registers: int


def features() -> Mapping[str, bool]:
    """Whether code may use each feature, by LLVM's names; those that are not named may not be used."""
    is_generic = os.environ.get("NUMBA_CPU_NAME", "").lower() == "generic"
    given = os.environ.get("NUMBA_CPU_FEATURES", "" if is_generic else None)
    if given is None:
        return dict(llvm.get_host_cpu_features())
    return {name[1:]: name.startswith("+") for name in given.split(",") if name}


def host() -> Host:
    """The processor's vectors: AVX-512, AVX2 with FMA, NEON; else four lanes."""
    has = features()
    if has.get("avx512f"):
        return Host(16, 32)
    if has.get("avx2") and has.get("fma"):
        return Host(8, 16)
    return Host(4, 32 if llvm.get_process_triple().startswith(("aarch64", "arm64")) else 16)


def vector_bits() -> tuple[int, ...]:
    """The widths of vectors that code may compute with, ascending."""
    has = features()
    return (128, *(bits for bits, name in ((256, "avx"), (512, "avx512f")) if has.get(name)))
