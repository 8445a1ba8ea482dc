"""One implementation in its own process, asked as ``bench.process`` says."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import arena, machine, memory, process, timing
from bench.footprint import Footprint, changes, footprint
from bench.leaks import leak, resident_bytes
from bench.machine import peak_memory
from bench.memory_limit import limit_memory
from bench.process import Answer, Responder
from bench.results import END_TO_END, KERNEL, KERNEL_FLUSHED
from impls import Plan, get, parse_case
from impls.contract import Call, Implementation
from impls.devices import CPU, Device, Timer, is_lost
from impls.specs import Spec, arguments

MAX_COPIED = 8
"""Calls with copies both ways in one sample."""

DEVICE_MEMORY_SHARE = 0.9
"""The part of a device's free memory that arrays and scratch may need: each process takes some for itself."""


@dataclass
class Bound:
    """A call on one input set: where its inputs came from, and the result that was verified."""

    call: Call
    path: Path
    inputs: arena.Resident
    outputs: arena.Resident
    seconds: float
    """What binding took: a framework traces and compiles then."""
    verified: tuple[Any, ...] = ()

    @property
    def results(self) -> tuple[Any, ...]:
        """What was fetched last."""
        return self.outputs.host.arrays


@dataclass
class Worker(Responder):
    """What this process holds between requests: one plan, a call for checking, and the calls bound for timing."""

    threads: int
    plan: Plan | None = None
    direction: str = ""
    is_competitor: bool = False
    checked: Bound | None = None
    bound: list[Bound] = field(default_factory=list)
    turn: int = 0
    """The bound set that the next sample begins with."""
    timer: Timer | None = None
    """The device's own clock, where it has one."""
    hold_seconds: float = timing.HOLD_SECONDS
    """How long the device was held last, so that all launches of a figure were enqueued meanwhile."""
    copied_loops: int = 1
    """Calls with copies both ways in the next sample."""
    before: Footprint = field(default_factory=dict)
    """What this process was like before it planned."""
    readings: list[tuple[int, int]] = field(default_factory=list)
    """(calls so far, resident bytes) after every sample."""

    def do_load(self, op: str, name: str) -> Answer:
        """Import the implementation and what it computes with."""
        record = get(op, name)
        threads = {} if record.missing() else process.set_threads(record.plan_type, self.threads)
        return {"device": record.device.name, "threads": threads}

    def do_compile(self, pairs: list[tuple[str, str]]) -> Answer:
        """Compile every CUDA kernel of these (op, name) and of what they import, where there is a device for them."""
        for op, name in pairs:
            if get(op, name).missing():
                return {"kernels": 0}
        setup = sys.modules.get("impls.cuda_setup")
        kernels = setup.KERNELS if setup else []
        for kernel in kernels:
            kernel.compile()
        return {"kernels": len(kernels)}

    def do_plan(self, case: str, implementation: str, direction: str, sets: int, sharers: int) -> Answer:
        """Make the plan for one case and direction, and drop what was held before.

        ``sets`` of arrays will be kept beside the one that is checked; ``sharers``: the workers that have as many on
        the same device.
        """
        self.do_release()
        problem = parse_case(case)
        record = get(problem.op, implementation)
        missing = record.missing()
        if missing:
            return {"status": "UNAVAILABLE", "reason": missing}
        reason = record.supports(problem.spec, direction)
        if reason:
            return {"status": "UNSUPPORTED", "reason": reason}
        too_large = _too_large(record, problem.spec, direction, sets, sharers)
        if too_large:
            return {"status": "OUT_OF_MEMORY", "reason": too_large}
        if record.device is CPU:  # a GPU's driver takes address space for all memory that it might ever use
            limit_memory()
        pools = process.set_threads(record.plan_type, self.threads)
        self.before = footprint(pools)
        start = timing.CLOCK()
        self.plan = record.plan(problem.spec, (direction,))
        setup = timing.CLOCK() - start
        self.direction, self.is_competitor = direction, record.competitor
        self.timer, clocks = _timer(record.device)
        self.hold_seconds, self.copied_loops = timing.HOLD_SECONDS, 1
        return {
            "setup_s": setup,
            "workspace_bytes": int(self.plan.workspace_bytes),
            "threads": pools,
            "clocks": clocks,
        }

    def do_compute(self, inputs: str, result: str, keep: bool = False) -> Answer:
        """Compute one input set into the result file; ``keep`` binds it for timing.

        Sets that are not kept take turns in one bound call, whose contents are free: what an implementation keeps by
        address is seen. A competitor may copy its inputs when it is bound, so it is bound anew for every set, and may
        compile at its first call: what tells of later calls is the second.
        """
        bound = self._bind(Path(inputs)) if keep or self.checked is None else self._refill(self.checked, Path(inputs))
        first = call = timing.sample([bound.call], self._device.wait, loops=1, warm=False, timer=self.timer)
        if self.is_competitor:
            bound.outputs.poison()
            call = timing.sample([bound.call], self._device.wait, loops=1, warm=False, timer=self.timer)
        side_effect = self._side_effect([bound])
        bound.call.fetch(*bound.results)
        self._write(bound, Path(result))
        if keep:
            bound.verified = tuple(None if a is None else a.copy() for a in bound.results)
            self.bound.append(bound)
        elif not self.is_competitor:
            self.checked = bound
        return {
            "seconds": call.longer,
            "first_call_s": first.longer,
            "bind_s": bound.seconds,
            "launched": getattr(bound.call.run, "launched", ""),
            "side_effect": side_effect,
            "peak_bytes": peak_memory(),
        }

    def do_sample(
        self, loops: int, warm: bool, results: list[str], compared: int | None = None, state: str = memory.HOT
    ) -> Answer:
        """One timed sample over the bound sets in rotation; results that changed since they were verified are written.

        The rotation goes on where the last sample ended, so that rounds of one call differ in their inputs too.
        ``differs`` lists the sets whose result is not the verified one bit for bit; each is in its result file. Of the
        sets that are called the last ``compared`` are looked at; None: all.
        ``device_seconds`` is the same loop by the device's clock, or None. ``state``: that of the caches before a call.
        """
        order, watched = self._poisoned(loops, compared)
        calls = [self.bound[i].call for i in order]
        steps = self._flushed(order, state) if state in memory.FLUSHED else []
        before = memory.faults()
        if steps:
            found = timing.prepared(steps, self._device.wait, loops)
        else:
            found = timing.sample(calls, self._device.wait, loops, warm, timer=self.timer)
        after = memory.faults()
        self._note(loops)
        return {
            "faults": memory.faults_per_call(before, after, loops + (warm and not steps)),
            "seconds": found.host,
            "device_seconds": found.device,
            "longer_seconds": found.longer,
            "differs": self._differing(watched, results),
            "peak_bytes": peak_memory(),
        }

    def do_figures(
        self, loops: int, flush: bool, results: list[str], copied: bool = True, compared: int | None = None
    ) -> Answer:
        """One sample of every figure beside the resident one: ``figures``, by the names of bench.results.FIGURES.

        ``hidden`` is whether no launch latency is in the device's own. End to end is taken if ``copied``, and left out
        where the device's arrays are the host's: a library that keeps tensors of its own copies its inputs when it is
        bound. ``differs`` and ``compared`` are those of a sample.
        """
        if self.timer is None:
            raise RuntimeError("the device has no clock of its own")
        order, watched = self._poisoned(min(loops, timing.MAX_QUEUED), compared, advance=False)
        calls = [self.bound[i].call for i in order]
        figures, hidden = {}, True
        for name, is_flushed in ((KERNEL, False), (KERNEL_FLUSHED, True)):
            if flush or not is_flushed:
                found = timing.queued(calls, self._device.wait, loops, self.timer, self.hold_seconds, is_flushed)
                self.hold_seconds = found.held
                figures[name] = found.seconds
                hidden = hidden and found.hidden
        if copied and self.bound[0].inputs.is_copy:
            steps = [partial(_end_to_end, self.bound[i]) for i in order]
            figures[END_TO_END] = timing.sample(steps, self._device.wait, self.copied_loops, warm=False).host
            self.copied_loops = min(MAX_COPIED, timing.loops_for(figures[END_TO_END]))
        return {
            "figures": figures,
            "hidden": hidden,
            "differs": self._differing(watched, results),
        }

    def do_threads(self) -> Answer:
        """The thread pools that are in force now."""
        return {"threads": process.threads_of(type(self._plan))}

    def do_inspect(self) -> Answer:
        """After timing: whether anything was changed that is not an output, and whether memory leaked."""
        grown = self.readings[-1][1] - self.readings[0][1] if self.readings else None
        found = {"side_effect": self._side_effect(self.bound), "leak": self._leak(), "grown_bytes": grown}
        return found | self.do_threads()

    def do_release(self) -> Answer:
        """Drop the plan and all arrays: a worker that waits for its next case holds no memory."""
        device = self.plan.device if self.plan else None
        self.plan, self.checked, self.bound, self.readings = None, None, [], []
        if device:
            device.trim()
        return {}

    def _side_effect(self, bound: list[Bound]) -> str | None:
        """What was changed beside the outputs since it planned, or None. A competitor's process is its own."""
        written = next((text for each in bound if (text := _written(each))), None)
        if written or self.is_competitor:
            return written
        return changes(self.before, footprint(process.threads_of(type(self._plan))))

    def _note(self, loops: int) -> None:
        """Read the resident memory after so many more calls."""
        resident = resident_bytes()
        if resident is not None:
            self.readings.append((loops + (self.readings[-1][0] if self.readings else 0), resident))

    def _leak(self) -> str | None:
        """The reason why its calls leak memory, or None. Competitors are not judged."""
        if self.is_competitor or not self.readings:
            return None
        return leak(*zip(*self.readings, strict=True))

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
        """Map the inputs, allocate outputs, bind a call to them, and poison what binding may have computed."""
        dtype = self._plan.spec.dtype
        inputs = arena.put(arena.open_private(path, self._shapes(outputs=False), dtype), self._device)
        outputs = arena.put(arena.allocate(self._shapes(outputs=True), dtype), self._device)
        start = timing.CLOCK()
        call = self._plan.bind(self.direction, *inputs.arrays, *outputs.arrays)
        seconds = timing.CLOCK() - start
        outputs.poison()
        return Bound(call, path, inputs, outputs, seconds)

    def _refill(self, bound: Bound, path: Path) -> Bound:
        """Other contents at the same addresses, and poisoned outputs."""
        source = arena.open_private(path, self._shapes(outputs=False), self._plan.spec.dtype)
        np.copyto(bound.inputs.host.block, source.block)
        bound.path = path
        bound.inputs.send()
        bound.outputs.poison()
        return bound

    def _write(self, bound: Bound, result: Path) -> None:
        """Copy the fetched outputs into a result file."""
        shared = arena.open_shared(result, self._shapes(outputs=True), self._plan.spec.dtype)
        for target, source in zip(shared.arrays, bound.results, strict=True):
            if target is not None and source is not None:
                np.copyto(target, source)

    def _poisoned(self, loops: int, compared: int | None, *, advance: bool = True) -> tuple[list[int], list[int]]:
        """The order in which the bound sets are called from here on, and those of the called that are to be compared.

        These have their outputs poisoned; ``compared``: the last so many, None for all. With ``advance`` the next order
        begins where ``loops`` calls end.
        """
        order = [(self.turn + i) % len(self.bound) for i in range(len(self.bound))]
        called = order[:loops]
        watched = called[max(0, len(called) - (len(called) if compared is None else compared)) :]
        for i in watched:
            self.bound[i].outputs.poison()
        self.turn += loops if advance else 0
        return order, watched

    def _flushed(self, order: list[int], state: str) -> list[tuple[Any, Call]]:
        """(flush, call) of each bound set; what the state leaves warm is read after the flush."""
        flusher = memory.Flusher()
        names = [a.name for a in arguments(self._plan.spec, self.direction)]
        steps = []
        for bound in (self.bound[i] for i in order):
            warm = memory.kept_warm(state, names, (*bound.inputs.arrays, *bound.outputs.arrays))
            steps.append((partial(flusher.flush, warm), bound.call))
        return steps

    def _differing(self, called: list[int], results: list[str]) -> list[int]:
        """The sets whose result is not the verified one bit for bit; it is written to its file."""
        differs = []
        for i in called:
            bound = self.bound[i]
            bound.call.fetch(*bound.results)
            if not _same_bits(bound.results, bound.verified):
                self._write(bound, Path(results[i]))
                differs.append(i)
        return differs


def _written(bound: Bound) -> str | None:
    """What was written beside the outputs, or None. The outputs' contents on the host are the device's afterwards."""
    bound.inputs.fetch()
    if not arena.unchanged(bound.inputs.host, bound.path):
        return "an input, or memory around it, was changed"
    bound.outputs.fetch()
    if not bound.outputs.host.guards_intact():
        return "memory around an output was written"
    return None


def _end_to_end(bound: Bound) -> None:
    """Host arrays in, host arrays out."""
    device = bound.inputs.device
    for target, source in zip(bound.inputs.arrays, bound.inputs.host.arrays, strict=True):
        if source is not None:
            device.set(target, source)
    bound.call()
    bound.call.fetch(*bound.results)


def _timer(device: Device) -> tuple[Timer | None, str]:
    """The device's clock, and which clocks there are, in words."""
    try:
        timer = device.timer()
    except Exception as error:  # the host's clock is enough for a row
        if is_lost(error):
            raise
        return None, f"host; the device's cannot be read: {type(error).__name__}: {error}"
    return timer, "host and device" if timer else "host"


def _too_large(record: Implementation, spec: Spec, direction: str, sets: int, sharers: int) -> str | None:
    """The reason why the device cannot hold the arrays and the scratch of all who share it, or None.

    In the computer's memory the arrays were found to fit, and who came before has taken what it needs.
    """
    free = record.device.free_bytes()
    scratch = record.plan_type.scratch_bytes(spec, (direction,))
    if record.device is CPU and scratch > DEVICE_MEMORY_SHARE * machine.free_memory():
        return f"needs {scratch / 1e9:.1f} GB of scratch; {machine.free_memory() / 1e9:.1f} GB of memory are free"
    if free is None:
        return None
    arrays = (sets + 1) * sum(
        arena.size_of(arena.shapes_of(spec, direction, outputs=which), spec.dtype) for which in (False, True)
    )
    if sharers * (arrays + scratch) <= DEVICE_MEMORY_SHARE * free:
        return None
    needed = f"needs {arrays} bytes for {sets} sets of arrays and one that is checked, and {scratch} of scratch"
    return f"{needed}, as each of {sharers} does; {free} bytes are free on the device"


def _same_bits(arrays: tuple[Any, ...], verified: tuple[Any, ...]) -> bool:
    return all(
        a is None or np.array_equal(a.view(np.uint8), v.view(np.uint8)) for a, v in zip(arrays, verified, strict=True)
    )


if __name__ == "__main__":
    process.serve(Worker(threads=int(sys.argv[1])))
