"""A CUDA device for tests: kernels run thread by thread in Python, and whatever a GPU would forgive raises.

Numba's simulator runs the threads of a block in one fixed order, wraps negative indices silently, and takes
milliseconds for each thread that waits. Here a kernel's source is rewritten so that ``cuda.syncthreads()`` becomes a
``yield``; a block's threads are generators that run from barrier to barrier in a shuffled order. These raise Fault:

    an index that is negative or too large, on any axis of any array
    two threads that touch the same value, one of them writing, with no barrier between them (in any memory)
    threads of a block that wait at different barriers, or end while others wait
    arguments that are not what the kernel's signature says
    shared arrays that take more, or less, than the kernel declares

Shared and local arrays start as NaN (integers as -1), so that what was never written is seen in the result. Whole
numbers do not overflow here; everything else about types is the compiler's to check.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from numba import types
from numba.core.sigutils import normalize_signature
from numba.np.numpy_support import as_dtype

from impls.cuda_setup import CudaPlan, Kernel, Launch
from impls.devices import CPU, Device

POISON = 255
"""Every byte of memory that nobody has written: NaN as a float, -1 as an integer."""


class Fault(AssertionError):
    """What a kernel must not do; the message says where and what."""


class Dim3(NamedTuple):
    """Three sizes, or a place in three dimensions."""

    x: int
    y: int
    z: int


@dataclass(eq=False)
class Memory:
    """Who touched which value last: enough to tell whether a barrier orders each access after the others.

    A toucher is (block, barriers passed, thread). A barrier orders only threads of one block; nothing orders blocks.
    """

    grid: Grid
    written: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    read: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def note_read(self, address: int) -> str | None:
        """Note that the running thread reads a value; the reason why that is a race, or None."""
        me = self.grid.toucher
        writer = self.written.get(address)
        if writer is not None and _unordered(writer, me):
            return "reads what another thread writes"
        last = self.read.get(address)
        self.read[address] = me if last is None or not _unordered(last, me) else _several(last, me)
        return None

    def note_write(self, address: int) -> str | None:
        """Note that the running thread writes a value; the reason why that is a race, or None."""
        me = self.grid.toucher
        for last, what in ((self.written.get(address), "writes"), (self.read.get(address), "reads")):
            if last is not None and _unordered(last, me):
                return f"writes what another thread {what}"
        self.written[address] = me
        return None


MANY = -1
"""In place of a block or of a thread: several of them."""


def _unordered(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    """Whether no barrier stands between two touchers, and they are two threads."""
    return one[0] != other[0] or (one[1] == other[1] and one[2] != other[2])


def _several(one: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, int]:
    """Two readers with no barrier between them, as one."""
    return (one[0] if one[0] == other[0] else MANY, other[1], MANY)


class Array:
    """A C-contiguous array inside a kernel: every index is checked, and every access noted where threads share it."""

    __slots__ = ("_base", "_memory", "_start", "_values", "dtype", "name", "ndim", "shape", "size")

    def __init__(self, name: str, values: np.ndarray, shape: tuple[int, ...], memory: Memory | None, start: int = 0):
        """``values`` are flat; ``memory`` is None for what one thread alone can reach."""
        self.name = name
        self.shape = shape
        self.ndim = len(shape)
        self.size = math.prod(shape)
        self.dtype = values.dtype
        self._values = values
        self._base = values.__array_interface__["data"][0]
        self._memory = memory
        self._start = start

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        index = index if isinstance(index, tuple) else (index,)
        place = self._place(index)
        if len(index) < self.ndim:
            return Array(self.name, self._values, self.shape[len(index) :], self._memory, place)
        if self._memory is not None:
            self._refuse(index, self._memory.note_read(self._address(place)))
        return self._values[place]

    def __setitem__(self, index: Any, value: Any) -> None:
        index = index if isinstance(index, tuple) else (index,)
        place = self._place(index)
        if len(index) < self.ndim:
            raise Fault(f"{self.name}[{_text(index)}] is a whole row; the emulator writes single values")
        if self._memory is not None:
            self._refuse(index, self._memory.note_write(self._address(place)))
        self._values[place] = value

    def _place(self, index: tuple[Any, ...]) -> int:
        """Where in the flat values an index, or the row that it begins, lies."""
        if len(index) > self.ndim:
            raise Fault(f"{self.name}[{_text(index)}] has more indices than axes")
        place = 0
        for one, size in zip(index, self.shape, strict=False):
            if not isinstance(one, (int, np.integer)):
                raise Fault(f"{self.name}[{_text(index)}] is not indexed by whole numbers")
            if not 0 <= one < size:
                raise Fault(f"{self.name}[{_text(index)}] is outside {self.shape}")
            place = place * size + int(one)
        return self._start + place * math.prod(self.shape[len(index) :])

    def _address(self, place: int) -> int:
        return int(self._base) + place * self.dtype.itemsize

    def _refuse(self, index: tuple[Any, ...], race: str | None) -> None:
        if race is not None:
            raise Fault(f"race: {race} at {self.name}[{_text(index)}] with no barrier between them")


def _text(index: tuple[Any, ...]) -> str:
    return ", ".join(map(str, index))


class Grid:
    """One launch as its threads see it: what stands for ``cuda`` inside a kernel."""

    def __init__(self, kernel: Kernel, blocks: tuple[int, int, int]):
        self.kernel = kernel
        self.gridDim = Dim3(*blocks)
        self.blockDim = Dim3(kernel.threads, 1, 1)
        self.memory = Memory(self)
        self.shared = _Shared(self)
        self.local = _Local()
        self.const = _Const()
        self.blockIdx = self.threadIdx = Dim3(0, 0, 0)
        self.toucher = (0, 0, 0)

    def grid(self, axes: int) -> Any:
        """The thread's place in the grid."""
        place = tuple(b * d + t for b, d, t in zip(self.blockIdx, self.blockDim, self.threadIdx, strict=True))
        return place[0] if axes == 1 else place[:axes]

    def gridsize(self, axes: int) -> Any:
        """The threads of the grid."""
        sizes = tuple(b * d for b, d in zip(self.gridDim, self.blockDim, strict=True))
        return sizes[0] if axes == 1 else sizes[:axes]

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], seed: int) -> None:
        """Every block, in a shuffled order. Raises Fault."""
        random = np.random.default_rng(seed)
        given = [self._argument(*pair) for pair in self._typed(function, arguments)]
        for block in random.permutation(math.prod(self.gridDim)).tolist():
            z, y, x = np.unravel_index(block, self.gridDim[::-1])
            self.blockIdx = Dim3(int(x), int(y), int(z))
            self.shared.begin_block()
            self._run_block(block, function, given, random)
            self.shared.end_block()

    def _run_block(self, block: int, function: Callable[..., Any], given: list[Any], random: np.random.Generator):
        """All threads to their next barrier, each time in another order, until all have ended."""
        waiting: dict[int, Any] = {}
        for thread in random.permutation(self.kernel.threads).tolist():
            self._enter(block, 0, thread)
            started = function(*given)
            if inspect.isgenerator(started):
                waiting[thread] = started
        barriers = 0
        while waiting:
            ended = set()
            places = set()
            for thread in random.permutation(list(waiting)).tolist():
                self._enter(block, barriers, thread)
                try:
                    places.add(next(waiting[thread]))
                except StopIteration:
                    ended.add(thread)
            if len(places) > 1 or (places and ended):
                lines = ", ".join(map(str, sorted(places)))
                raise Fault(f"divergent barrier: threads wait at lines {lines}; {len(ended)} others have ended")
            waiting = {} if ended else waiting
            barriers += 1

    def _enter(self, block: int, barriers: int, thread: int) -> None:
        """Let a thread be the running one."""
        self.threadIdx = Dim3(thread, 0, 0)
        self.toucher = (block, barriers, thread)
        self.shared.begin_thread(thread)

    def _typed(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Iterator[tuple[str, Any, Any]]:
        """(name, type, value) of every argument. Raises Fault for another number of them."""
        expected, _ = normalize_signature(self.kernel.signature)
        if len(expected) != len(arguments):
            raise Fault(f"{len(arguments)} arguments for the signature {self.kernel.signature}")
        return zip(inspect.signature(function).parameters, expected, arguments, strict=True)

    def _argument(self, name: str, kind: Any, value: Any) -> Any:
        """The argument as the kernel sees it. Raises Fault where it is not of the declared type."""
        if isinstance(kind, types.Array):
            fits = isinstance(value, np.ndarray) and value.dtype == as_dtype(kind.dtype) and value.ndim == kind.ndim
            if fits and value.flags.c_contiguous:
                return Array(name, value.reshape(-1), value.shape, self.memory)
        elif isinstance(kind, types.UniTuple):
            if isinstance(value, tuple) and len(value) == kind.count:
                return tuple(self._argument(name, kind.dtype, one) for one in value)
        elif isinstance(kind, types.Boolean):
            if isinstance(value, (bool, np.bool_)):
                return bool(value)
        elif isinstance(kind, types.Integer):
            if isinstance(value, (int, np.integer)):
                return int(value)
        elif isinstance(kind, types.Float) and isinstance(value, (float, np.floating)):
            return as_dtype(kind).type(value)
        raise Fault(f"{name}={value!r} is not of the declared type {kind}")


class _Shared:
    """``cuda.shared``: the n-th array that a thread asks for is its block's n-th."""

    def __init__(self, grid: Grid):
        self._grid = grid
        self._arrays: list[Array] = []
        self._asked: dict[int, int] = {}

    def begin_block(self) -> None:
        """Forget the arrays of the block before."""
        self._arrays = []
        self._asked = {}
        self._memory = Memory(self._grid)

    def begin_thread(self, thread: int) -> None:
        """Let the running thread be the one that asks."""
        self._thread = thread

    def end_block(self) -> None:
        """Raise Fault unless the arrays took what the kernel declares."""
        used = sum(array.size * array.dtype.itemsize for array in self._arrays)
        if used != self._grid.kernel.shared_bytes:
            raise Fault(f"shared arrays take {used} bytes; the kernel declares {self._grid.kernel.shared_bytes}")

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Array:
        """The next shared array of the block; where it lies makes no difference here."""
        number = self._asked.get(self._thread, 0)
        self._asked[self._thread] = number + 1
        if number == len(self._arrays):
            self._arrays.append(_poisoned(f"shared array {number}", shape, dtype, self._memory))
        found = self._arrays[number]
        if (shape if isinstance(shape, tuple) else (shape,)) != found.shape:
            raise Fault(f"{found.name} is {found.shape} for one thread and {shape} for another")
        return found


class _Local:
    """``cuda.local``: arrays of one thread."""

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Array:
        """A new array; where it lies makes no difference here."""
        return _poisoned("local array", shape, dtype, None)


class _Const:
    """``cuda.const``: tables that nobody writes."""

    def array_like(self, values: np.ndarray) -> Array:
        """The table with its indices checked."""
        table = values.copy()
        table.flags.writeable = False
        return Array("constant array", table.reshape(-1), table.shape, None)


def _poisoned(name: str, shape: Any, dtype: Any, memory: Memory | None) -> Array:
    shape = shape if isinstance(shape, tuple) else (shape,)
    kind = as_dtype(dtype) if isinstance(dtype, types.Type) else np.dtype(dtype)
    values = np.full(math.prod(shape) * kind.itemsize, POISON, np.uint8).view(kind)
    return Array(name, values, shape, memory)


class _Barriers(ast.NodeTransformer):
    """Turns ``cuda.syncthreads()`` into a yield of its line, and a call of a function that waits into a yield from."""

    def __init__(self, waits: Callable[[str], bool]):
        self._waits = waits
        self.found = False

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Rewrite the call, or leave it."""
        self.generic_visit(node)
        called = node.func
        new: ast.expr | None = None
        if isinstance(called, ast.Attribute) and ast.unparse(called) == "cuda.syncthreads":
            new = ast.Yield(ast.Constant(node.lineno))
        elif isinstance(called, ast.Name) and self._waits(called.id):
            new = ast.YieldFrom(node)
        if new is None:
            return node
        self.found = True
        return ast.copy_location(new, node)


def rewritten(function: FunctionType, grid: Any) -> FunctionType:
    """The function with ``cuda`` replaced by the grid, device functions by their rewritten selves, barriers by yields.

    Raises OSError where the source cannot be had.
    """
    names = function.__globals__ | dict(
        zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()), strict=True)
    )
    plain = {name: getattr(value, "py_func", value) for name, value in names.items() if name in _called(function)}
    called = {name: rewritten(one, grid) for name, one in plain.items() if isinstance(one, FunctionType)}
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    ast.increment_lineno(tree, first - 1)
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    _Barriers(lambda name: name in called and inspect.isgeneratorfunction(called[name])).visit(definition)
    space = names | called | {"cuda": grid}
    exec(compile(ast.fix_missing_locations(tree), inspect.getfile(function), "exec"), space)
    new = space[function.__name__]
    assert isinstance(new, FunctionType)
    return new


def _called(function: FunctionType) -> set[str]:
    """The names from outside that a function uses."""
    return {*function.__code__.co_names, *function.__code__.co_freevars}


@dataclass
class Emulator:
    """Launches kernels here; ``launched`` are the names of those that ran."""

    seed: int = 0
    more_blocks: int = 0
    """Blocks along x beside those that a launch asks for: they must find nothing to do."""
    launched: set[str] = field(default_factory=set)

    def launch(self, launch: Launch, *arguments: Any) -> None:
        """Run one launch. Raises Fault with the kernel, block and thread in front."""
        x, y, z = launch.blocks
        grid = Grid(launch.kernel, (x + self.more_blocks, y, z))
        self.launched.add(launch.kernel.name)
        try:
            with np.errstate(all="ignore"):
                grid.run(rewritten(launch.kernel.function, grid), arguments, self.seed)
        except Fault as fault:
            where = f"{launch.kernel.name}, block {tuple(grid.blockIdx)}, thread {grid.threadIdx.x}"
            raise Fault(f"{where}: {fault}") from fault


DEVICE = Device("cuda", missing=CPU.missing, put=np.copy, get=CPU.get, set=CPU.set, wait=CPU.wait)
"""Its arrays are NumPy's."""


@contextmanager
def emulated(seed: int = 0, more_blocks: int = 0) -> Iterator[Emulator]:
    """Let every CUDA plan that is made and run in this block run on the emulator."""
    emulator = Emulator(seed, more_blocks)
    with (
        patch.object(CudaPlan, "device", DEVICE),
        patch.object(CudaPlan, "allocate", staticmethod(lambda count: np.full(count, POISON, np.uint8))),
        patch.object(Kernel, "compile", lambda kernel: None),
        patch.object(Launch, "__call__", lambda launch, *arguments: emulator.launch(launch, *arguments)),
    ):
        yield emulator
