"""What every competitor shares: a quiet import, the reason why its library is missing, and calls that keep results.

A library allocates the arrays that it returns, anew at each call; that is how it is used, and it is timed so. Whether
their pages are new as well is up to the C library: glibc returns large arrays to the system and asks for others, and to
touch every page for the first time can take longer than the layer. Figures that end in ``_reuse`` have it keep them.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any, ClassVar, TypeAlias

import numpy as np

from impls.contract import FLOAT32, FLOAT64, TF32, Call, Plan, Unavailable
from impls.specs import FORWARD, GRAD_INPUT, GRAD_WEIGHTS, Spec, arguments

Run: TypeAlias = Callable[[], Iterable[Any]]
"""Computes and returns the results that exist, in the contract's order.

They are finished when it returns, or on a GPU when the device's ``wait`` returns: there a library enqueues.
"""


class ResultCall(Call):
    """A bound call that returns new arrays; the last ones are kept for ``fetch``.

    ``absent`` stands for the results that do not exist: (None,) for db without bias, else ().
    """

    __slots__ = ("absent",)

    def __init__(self, run: Run, fetch_one: Callable[[Any, np.ndarray], None], absent: tuple[None, ...]):
        super().__init__(run, (), fetch_one)
        self.absent = absent

    def __call__(self) -> None:
        self._outputs = (*self.run(), *self.absent)


class LibraryPlan(Plan):
    """A plan whose directions are bound calls of a library; a subclass gives ``bound`` and ``get``.

    A call may use the contents that its inputs had when it was bound: each library's file says which.
    """

    arithmetic: ClassVar[str] = FLOAT32
    """Of problems in float32."""
    reuses_memory: ClassVar[bool] = False
    """Whether making a plan calls ``keep_memory``."""

    @classmethod
    def set_threads(cls, count: int) -> None:
        """Let the library compute with ``count`` threads. Raises RuntimeError if it has started with another count."""
        raise NotImplementedError

    @classmethod
    def threads(cls) -> dict[str, int]:
        """The numbers of threads in force, by the library's names for them."""
        raise NotImplementedError

    def bound(self, direction: str, inputs: Mapping[str, Any]) -> Run:
        """The computation on resident tensors made of the inputs, which come by their names in the contract."""
        raise NotImplementedError

    def get(self, direction: str, result: Any, out: np.ndarray) -> None:
        """Copy one result of a direction into a NumPy array of the contract's layout."""
        raise NotImplementedError

    def bind(self, direction: str, *arrays: Any) -> Call:
        """Make the inputs resident, outside the clock. Raises NotImplementedError as every plan does."""
        if direction not in self.directions:
            raise self._not_offered(direction)
        signature = arguments(self.spec, direction)
        inputs = {a.name: array for a, array in zip(signature, arrays, strict=True) if not a.is_output}
        absent = tuple(None for a in signature if a.is_output and a.shape is None)
        with quiet():
            return ResultCall(self.bound(direction, inputs), partial(self.get, direction), absent)

    def forward(self, *arrays: Any) -> None:
        """Fill ``out``: bind, call and fetch."""
        self._once(FORWARD, arrays)

    def grad_weights(self, *arrays: Any) -> None:
        """Fill ``dw`` and ``db``: bind, call and fetch."""
        self._once(GRAD_WEIGHTS, arrays)

    def grad_input(self, *arrays: Any) -> None:
        """Fill ``dx``: bind, call and fetch."""
        self._once(GRAD_INPUT, arrays)

    def _once(self, direction: str, arrays: tuple[Any, ...]) -> None:
        call = self.bind(direction, *arrays)
        call()
        signature = arguments(self.spec, direction)
        call.fetch(*(array for a, array in zip(signature, arrays, strict=True) if a.is_output))


REUSE: Mapping[str, Any] = {"reuses_memory": True}
"""What makes plans of a library whose freed memory stays with the process."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3): from how many free bytes on they are returned; how many blocks are mapped alone."""


def keep_memory() -> None:
    """Have the C library give freed memory to later allocations of this process, never back to the system.

    Raises Unavailable where it has no such setting.
    """
    if reason := missing_reuse():
        raise Unavailable(reason)
    library = ctypes.CDLL(None)
    if not (library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):
        raise Unavailable("mallopt(3) did not take the settings that keep freed memory")


def missing_reuse() -> str | None:
    """The reason why ``keep_memory`` cannot work here, or None."""
    has_mallopt = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt")
    return None if has_mallopt else "the C library has no mallopt(3), which would keep freed memory"


def missing(library: str) -> str | None:
    """The reason why a library cannot be used, or None; it is looked for and not imported."""
    return None if find_spec(library) else f"{library} is not installed"


def arithmetic_of(plan_type: type[LibraryPlan]) -> str | Callable[[Any, str], str]:
    """What plans of this type declare: float64 for problems in it, which TF32 refuses."""
    if plan_type.arithmetic == TF32:
        return TF32
    return lambda spec, direction: FLOAT64 if spec.dtype == "float64" else plan_type.arithmetic


def why_not_tf32(plan_type: type[LibraryPlan], spec: Spec) -> str | None:
    """The reason why a plan in TF32 is not for this problem, or None."""
    if plan_type.arithmetic == TF32 and spec.dtype != FLOAT32:
        return f"TF32 is an arithmetic for float32, not for {spec.dtype}"
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Python warnings: what a library warns of at import or while tracing is not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def quiet_import(library: str) -> ModuleType:
    """Import a library that greets on stderr. Raises what the import raises, after showing what it wrote.

    TensorFlow writes some lines from C++ before any setting can stop them, so the descriptor itself is held.
    """
    if library in sys.modules:
        return sys.modules[library]
    with quiet(), _held_stderr():
        return importlib.import_module(library)


@contextmanager
def _held_stderr() -> Iterator[None]:
    """Keep what is written to file descriptor 2; show it if the body raises."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
