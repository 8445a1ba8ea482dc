"""One implementation in its own process: reads requests from standard input, answers on what was standard output.

A request is one line of JSON, {"do": name, ...plain values}; its answer is one line, {...} or {"status", "reason"}.
Whatever libraries print goes to standard error. The process ends with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bench import arena, timing
from bench.machine import peak_memory
from impls import Plan, Unavailable, get, parse_case
from impls.contract import Call, Implementation

Answer = dict[str, Any]


@dataclass
class Bound:
    """A call on one input set: where its inputs came from, and the result that was verified."""

    call: Call
    path: Path
    inputs: arena.Arena
    device_inputs: tuple[Any, ...]
    outputs: arena.Arena
    device_outputs: tuple[Any, ...]
    seconds: float
    """What binding took: a framework traces and compiles then."""
    verified: tuple[Any, ...] = ()


@dataclass
class Worker:
    """What this process holds between requests: one plan, a call for checking, and the calls bound for timing."""

    threads: int
    plan: Plan | None = None
    direction: str = ""
    is_competitor: bool = False
    checked: Bound | None = None
    bound: list[Bound] = field(default_factory=list)
    turn: int = 0
    """The bound set that the next sample begins with."""

    def answer(self, request: Answer) -> Answer:
        """Do what is asked. An exception is an answer: status ERROR and its text."""
        action: Callable[..., Answer] = getattr(self, f"do_{request.pop('do')}")
        try:
            return action(**request)
        except Unavailable as error:
            return {"status": "UNAVAILABLE", "reason": str(error)}
        except MemoryError as error:
            return {"status": "OUT_OF_MEMORY", "reason": str(error) or "memory ran out"}
        except Exception as error:  # whatever a kernel raises becomes a row
            return {"status": "ERROR", "reason": f"{type(error).__name__}: {error}"}

    def do_load(self, op: str, name: str) -> Answer:
        """Import the implementation and what it computes with."""
        record = get(op, name)
        return {"threads": {} if record.missing() else _set_threads(record, self.threads)}

    def do_plan(self, case: str, implementation: str, direction: str) -> Answer:
        """Make the plan for one case and direction, and drop what was held before."""
        self.do_release()
        problem = parse_case(case)
        record = get(problem.op, implementation)
        missing = record.missing()
        if missing:
            return {"status": "UNAVAILABLE", "reason": missing}
        reason = record.supports(problem.spec, direction)
        if reason:
            return {"status": "UNSUPPORTED", "reason": reason}
        pools = _set_threads(record, self.threads)
        start = timing.CLOCK()
        self.plan = record.plan(problem.spec, (direction,))
        setup = timing.CLOCK() - start
        self.direction, self.is_competitor = direction, record.competitor
        return {
            "setup_s": setup,
            "workspace_bytes": int(self.plan.workspace_bytes),
            "threads": pools,
        }

    def do_compute(self, inputs: str, result: str, keep: bool = False) -> Answer:
        """Compute one input set into the result file; ``keep`` binds it for timing.

        Sets that are not kept take turns in one bound call, whose contents are free: what an implementation keeps by
        address is seen. A competitor may copy its inputs when it is bound.
        """
        bound = self._bind(Path(inputs)) if keep or self.checked is None else self._refill(self.checked, Path(inputs))
        seconds = timing.once(bound.call, self._device.wait)
        bound.call.fetch(*bound.outputs.arrays)
        side_effect = self._side_effect(bound)
        self._write(bound, Path(result))
        if keep:
            bound.verified = tuple(None if a is None else a.copy() for a in bound.outputs.arrays)
            self.bound.append(bound)
        elif not self.is_competitor:
            self.checked = bound
        return {
            "seconds": seconds,
            "bind_s": bound.seconds,
            "side_effect": side_effect,
            "peak_bytes": peak_memory(),
        }

    def do_sample(self, loops: int, warm: bool, results: list[str]) -> Answer:
        """One timed sample over the bound sets in rotation; results that changed since they were verified are written.

        The rotation goes on where the last sample ended, so that rounds of one call differ in their inputs too.
        ``differs`` lists the sets whose result is not the verified one bit for bit; each is in its result file.
        """
        for bound in self.bound:
            self._poison(bound)
        order = [(self.turn + i) % len(self.bound) for i in range(len(self.bound))]
        self.turn += loops
        seconds = timing.sample([self.bound[i].call for i in order], self._device.wait, loops, warm)
        differs = []
        for i in order[:loops]:
            bound = self.bound[i]
            bound.call.fetch(*bound.outputs.arrays)
            if not _same_bits(bound.outputs.arrays, bound.verified):
                self._write(bound, Path(results[i]))
                differs.append(i)
        return {"seconds": seconds, "differs": differs, "peak_bytes": peak_memory()}

    def do_inspect(self) -> Answer:
        """After timing: whether inputs or guard bands of the bound sets were written to."""
        return {"side_effect": next((text for b in self.bound if (text := self._side_effect(b))), None)}

    def do_release(self) -> Answer:
        """Drop the plan and all arrays: a worker that waits for its next case holds no memory."""
        self.plan, self.checked, self.bound = None, None, []
        return {}

    @property
    def _plan(self) -> Plan:
        if self.plan is None:
            raise RuntimeError("nothing is planned")
        return self.plan

    @property
    def _device(self) -> Any:
        return self._plan.device

    def _shapes(self, *, outputs: bool) -> tuple[Any, ...]:
        return arena.shapes_of(self._plan.spec, self.direction, outputs=outputs)

    def _bind(self, path: Path) -> Bound:
        """Map the inputs, allocate poisoned outputs, and bind a call to them."""
        dtype = self._plan.spec.dtype
        inputs = arena.open_private(path, self._shapes(outputs=False), dtype)
        outputs = arena.allocate(self._shapes(outputs=True), dtype)
        outputs.poison()
        put = self._device.put
        on_device = tuple(None if a is None else put(a) for a in outputs.arrays)
        given = tuple(None if a is None else put(a) for a in inputs.arrays)
        start = timing.CLOCK()
        call = self._plan.bind(self.direction, *given, *on_device)
        return Bound(call, path, inputs, given, outputs, on_device, timing.CLOCK() - start)

    def _refill(self, bound: Bound, path: Path) -> Bound:
        """Other contents at the same addresses, and poisoned outputs."""
        source = arena.open_private(path, self._shapes(outputs=False), self._plan.spec.dtype)
        np.copyto(bound.inputs.block, source.block)
        bound.path = path
        self._set(bound.device_inputs, bound.inputs)
        self._poison(bound)
        return bound

    def _write(self, bound: Bound, result: Path) -> None:
        """Copy the fetched outputs into a result file."""
        shared = arena.open_shared(result, self._shapes(outputs=True), self._plan.spec.dtype)
        for target, source in zip(shared.arrays, bound.outputs.arrays, strict=True):
            if target is not None and source is not None:
                np.copyto(target, source)

    def _poison(self, bound: Bound) -> None:
        bound.outputs.poison()
        self._set(bound.device_outputs, bound.outputs)

    def _set(self, targets: tuple[Any, ...], source: arena.Arena) -> None:
        for target, array in zip(targets, source.arrays, strict=True):
            if target is not None:
                self._device.set(target, array)

    def _side_effect(self, bound: Bound) -> str | None:
        for given, array in zip(bound.device_inputs, bound.inputs.arrays, strict=True):
            if array is not None:
                self._device.get(given, array)
        if not arena.unchanged(bound.inputs, bound.path):
            return "an input, or memory around it, was changed"
        if not bound.outputs.guards_intact():
            return "memory around an output was written"
        return None


def _same_bits(arrays: tuple[Any, ...], verified: tuple[Any, ...]) -> bool:
    return all(
        a is None or np.array_equal(a.view(np.uint8), v.view(np.uint8)) for a, v in zip(arrays, verified, strict=True)
    )


def _set_threads(implementation: Implementation, count: int) -> dict[str, int]:
    """Give every thread pool in this process the same size, and read back what is in force."""
    library = implementation.plan_type
    if hasattr(library, "set_threads"):
        library.set_threads(count)
    pools: dict[str, int] = {}
    if "cv2" in sys.modules:
        import cv2

        cv2.setNumThreads(count)
        pools["opencv"] = cv2.getNumThreads()
    if "numba" in sys.modules:
        import numba

        numba.set_num_threads(count)
        pools["numba"] = numba.get_num_threads()
    pools |= _native_pools()
    if hasattr(library, "threads"):
        pools |= library.threads()
    return pools


def _native_pools() -> dict[str, int]:
    """Threads of the BLAS and OpenMP libraries in this process; unknown, and left out, without threadpoolctl."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return {}
    return {str(pool["internal_api"]): int(pool["num_threads"]) for pool in threadpool_info()}


def _end_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends; elsewhere the closed pipe does it."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _private_output() -> TextIO:
    """The pipe to the parent; from here on whatever is printed goes to standard error."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return pipe


def main() -> None:
    """Answer requests until standard input ends."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = _private_output()
    worker = Worker(threads=int(sys.argv[1]))
    for line in sys.stdin:
        pipe.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        pipe.flush()


if __name__ == "__main__":
    main()
