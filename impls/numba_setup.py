"""Numba as every kernel here uses it: full vector width, one cache, one set of floating-point liberties.

Import ``njit``, ``prange`` from here and never from numba, so that this module runs before the first compilation.

* LLVM prefers 256-bit vectors on some processors that have 512-bit ones; that preference is switched off.
* The cache lies in the user's cache directory under a hash of all sources of ``impls`` and what tiles are cut to:
  numba notices a change in the file of a kernel, not in a file that the kernel calls, nor in a number of lanes.
* ``FASTMATH`` allows reordering, contraction and the loss of a zero's sign. It does not assume that NaN and infinity
  do not exist: those would make isnan(NaN) False and let max skip NaN.
"""

from __future__ import annotations

import hashlib
import os
import sys
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm

from impls.processor import features, host

FASTMATH = {"reassoc", "contract", "nsz"}


def cache_home() -> Path:
    """The user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home) if home else Path.home() / ".cache"


@cache
def sources_hash() -> str:
    """A hash of all sources of ``impls``, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _configure() -> None:
    if "numba" in sys.modules:
        import numba.core.config as config
    else:
        config = None
    folder = "-".join((sources_hash(), *map(str, host())))
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_home() / "layerbench" / "numba" / folder))
    if "NUMBA_CPU_FEATURES" not in os.environ and features().get("avx512f"):
        os.environ.setdefault("NUMBA_CPU_NAME", llvm.get_host_cpu_name())
        os.environ["NUMBA_CPU_FEATURES"] = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit"
    if config is not None:
        config.reload_config()


_configure()

import numba  # noqa: E402  # after the environment that it reads
from numba import prange  # noqa: E402


def njit(function=None, *, parallel=False, inline="never", cache=True):
    """``numba.njit`` with this project's settings; usable with and without arguments.

    ``cache=False`` is for what is made by a function: numba would file it anew in every process and never find it.
    What calls it is kept with its code.
    """
    decorate = numba.njit(parallel=parallel, fastmath=FASTMATH, cache=cache, nogil=True, inline=inline)
    return decorate if function is None else decorate(function)


__all__ = ["FASTMATH", "cache_home", "njit", "numba", "prange", "sources_hash"]
