"""An array library as strict as one on a device: NumPy's functions, on arrays that never become NumPy's by themselves.

Stands in for CuPy where there is no device: whatever mixes host and device arrays raises TypeError here as it does
there. Imported as a module it is the library: ``strict_arrays.zeros(3)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class StrictArray:
    """Wraps a NumPy array; mixing with one raises TypeError."""

    __module__ = "strict_arrays"
    """As the array of a library that was installed under this name."""
    __array_ufunc__ = None
    """NumPy's own operators give way to ours, which refuse."""

    def __init__(self, inner: Any) -> None:
        self.inner = np.asarray(inner)

    def __array__(self, *unused: Any, **also_unused: Any) -> Any:
        raise TypeError("implicit conversion to a NumPy array is not allowed; use .get()")

    def get(self) -> np.ndarray:
        """A NumPy array of the same contents."""
        return self.inner.copy()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # __array_interface__ would be a way out
        found = getattr(self.inner, name)
        return _strict_function(found) if callable(found) else _wrapped(found)

    def __getitem__(self, index: Any) -> StrictArray:
        return StrictArray(self.inner[_inner(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.inner[_inner(index)] = _inner(value)

    def __len__(self) -> int:
        return len(self.inner)

    def __bool__(self) -> bool:
        return bool(self.inner)

    def __int__(self) -> int:
        return int(self.inner)

    def __float__(self) -> float:
        return float(self.inner)


def _inner(value: Any) -> Any:
    """What NumPy computes with. Raises TypeError for a NumPy array: it lies on the wrong side."""
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"a NumPy array of shape {value.shape} among arrays on a device")
    if isinstance(value, tuple):
        return tuple(map(_inner, value))
    return value.inner if isinstance(value, StrictArray) else value


def _wrapped(value: Any) -> Any:
    return StrictArray(value) if isinstance(value, np.ndarray | np.generic) else value


def _strict_function(function: Any) -> Any:
    def call(*values: Any, **named: Any) -> Any:
        return _wrapped(function(*map(_inner, values), **{name: _inner(value) for name, value in named.items()}))

    return call


def _operator(name: str) -> Any:
    def operate(self: StrictArray, *others: Any) -> Any:
        found = getattr(self.inner, name)(*map(_inner, others))
        return self if found is self.inner else _wrapped(found)

    return operate


for _name in ("add", "sub", "mul", "truediv", "matmul", "and", "or", "lt", "le", "gt", "ge", "eq", "ne", "pow"):
    for _form in ("", "r", "i"):
        if hasattr(np.ndarray, f"__{_form}{_name}__"):
            setattr(StrictArray, f"__{_form}{_name}__", _operator(f"__{_form}{_name}__"))
for _name in ("__abs__", "__neg__", "__invert__"):
    setattr(StrictArray, _name, _operator(_name))

zeros, ones, full, pad, where, maximum, isnan, isfinite, broadcast_to, zeros_like, empty_like = map(
    _strict_function,
    (
        *(np.zeros, np.ones, np.full, np.pad, np.where, np.maximum, np.isnan, np.isfinite, np.broadcast_to),
        *(np.zeros_like, np.empty_like),
    ),
)


def asarray(array: Any) -> StrictArray:
    """The only way onto the device."""
    return array if isinstance(array, StrictArray) else StrictArray(array)
