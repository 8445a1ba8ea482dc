"""Which library an array belongs to, so that one definition computes where its arrays lie."""

from __future__ import annotations

import sys
from typing import Any


def array_module(array: Any) -> Any:
    """The library whose arrays these are, with NumPy's functions: NumPy itself, or CuPy for arrays on a device."""
    return sys.modules[type(array).__module__.partition(".")[0]]
