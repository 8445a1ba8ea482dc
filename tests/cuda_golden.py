"""Every CUDA kernel compiled for the processors it is meant for, without a driver: registers, spills, shared memory.

``python -m tests.cuda_golden`` rewrites the table that tests/test_cuda_compile.py compares with: do so after a kernel
was changed, and look at the difference.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path

from numba import config

from impls.cuda_setup import MAX_SHARED_BYTES, MAX_THREADS, Kernel, cuda
from tests.cuda_runs import instruments, kernels

PATH = Path(__file__).parent / "golden" / "cuda_kernels.csv"
COMMAND = "python -m tests.cuda_golden"
PROCESSES = 2

TOLERANCE = 8
"""Registers above the table that pass: they are given out in eights, and compilers' versions differ by less."""


@dataclass(frozen=True)
class Processor:
    """One multiprocessor of an architecture (CUDA C++ Programming Guide, technical specifications)."""

    arch: str
    target: tuple[int, int]
    """The capability that its PTX is made for: numba's compiler makes the same code for 7.5 to 9.0."""
    threads: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int
    """Of shared memory, which every block takes beside its own."""
    registers: int = 65_536


PROCESSORS = {
    processor.arch: processor
    for processor in (
        Processor("sm_75", (7, 5), threads=1024, blocks=16, shared_bytes=64 << 10, reserved_bytes=0),
        Processor("sm_80", (7, 5), threads=2048, blocks=32, shared_bytes=164 << 10, reserved_bytes=1024),
        Processor("sm_90", (7, 5), threads=2048, blocks=32, shared_bytes=228 << 10, reserved_bytes=1024),
        Processor("sm_100", (10, 0), threads=2048, blocks=32, shared_bytes=228 << 10, reserved_bytes=1024),
    )
}
"""T4, A100, H100, B200."""

WARP = 32
REGISTER_UNIT = 256
SHARED_UNIT = 128
"""What registers are given out in to a warp, and bytes of shared memory to a block (CUDA occupancy calculator)."""


@dataclass(frozen=True)
class Figures:
    """One row of the table: a kernel on an architecture."""

    kernel: str
    arch: str
    registers: int
    """Of a thread."""
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    """Of a block."""
    threads: int
    """Of a block."""
    float64: int
    """Instructions of the PTX that work on float64."""

    @property
    def blocks_per_sm(self) -> int:
        """Blocks that one multiprocessor holds at a time: 0 where the kernel cannot be launched."""
        return blocks_per_sm(PROCESSORS[self.arch], self.threads, self.registers, self.shared_bytes)


COLUMNS = [*(field.name for field in fields(Figures)), "blocks_per_sm"]


def blocks_per_sm(processor: Processor, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks that a multiprocessor holds at a time, by threads, registers and shared memory."""
    if threads > MAX_THREADS or shared_bytes > MAX_SHARED_BYTES:
        return 0
    warps = -(-threads // WARP)
    of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    of_block = -(-(shared_bytes + processor.reserved_bytes) // SHARED_UNIT) * SHARED_UNIT
    return min(
        processor.blocks,
        processor.threads // (warps * WARP),
        processor.registers // of_warp // warps,
        processor.shared_bytes // of_block if of_block else processor.blocks,
    )


def missing() -> str | None:
    """The reason why nothing can be compiled here, or None."""
    if config.ENABLE_CUDASIM:
        return "the simulator compiles nothing"
    if getattr(cuda, "implementation", None) != "NVIDIA":
        return "numba-cuda is not installed, and numba's own CUDA target asks a driver before it compiles"
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    for library in ("nvvm", "nvrtc", "nvJitLink"):
        try:
            load_nvidia_dynamic_lib(library)
        except DynamicLibNotFoundError:
            return f"the library {library} is not installed"
    return None


def compiled(kernel: Kernel) -> list[Figures]:
    """Compile one kernel, link it for every architecture, and read the linker's reports.

    Shared memory is read from the PTX: what the linker reports includes, on some architectures, what every block has
    reserved.
    """
    targets = sorted({processor.target for processor in PROCESSORS.values()})
    made = {
        target: cuda.compile_ptx(kernel.function, kernel.signature, cc=target, device=False)[0] for target in targets
    }
    return [_figures(kernel, arch, made[processor.target]) for arch, processor in PROCESSORS.items()]


def _figures(kernel: Kernel, arch: str, ptx: str) -> Figures:
    log = _linked(ptx, arch)
    return Figures(
        kernel=kernel.name,
        arch=arch,
        registers=_reported(log, r"[Uu]sed (\d+) registers"),
        spill_bytes=_reported(log, r"(\d+) bytes spill stores") + _reported(log, r"(\d+) bytes spill loads"),
        stack_bytes=_reported(log, r"(\d+) bytes stack frame"),
        shared_bytes=sum(map(int, re.findall(r"\.shared .*\[(\d+)\];", ptx))),
        threads=kernel.threads,
        float64=ptx.count(".f64"),
    )


def _linked(ptx: str, arch: str) -> str:
    """The linker's report. Raises an error of nvJitLink for what does not fit, as too much shared memory."""
    from cuda.bindings import nvjitlink

    code = ptx.encode()
    options = [f"-arch={arch}", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "kernel")
        nvjitlink.complete(handle)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
    finally:
        nvjitlink.destroy(handle)
    return log.decode()


def _reported(log: str, pattern: str) -> int:
    """The largest number that a pattern finds in a report. Raises ValueError where it finds none."""
    found = re.findall(pattern, log)
    if not found:
        raise ValueError(f"the linker's report has no {pattern!r}: {log}")
    return max(map(int, found))


def complaints(kernel: Kernel, figures: Figures) -> list[str]:
    """What is wrong with a compiled kernel, whatever the table says."""
    wrong = []
    if figures.float64:
        wrong.append(f"{figures.float64} float64 operations in its PTX")
    if figures.spill_bytes:
        wrong.append(f"{figures.spill_bytes} bytes of spilled registers")
    if figures.stack_bytes:
        wrong.append(f"{figures.stack_bytes} bytes of stack: a local array that registers cannot hold")
    if figures.shared_bytes != kernel.shared_bytes:
        wrong.append(f"{figures.shared_bytes} bytes of shared memory; it declares {kernel.shared_bytes}")
    if not figures.blocks_per_sm:
        wrong.append(
            f"no block fits: {figures.threads} threads of {figures.registers} registers, {figures.shared_bytes} bytes"
        )
    return wrong


def every_kernel() -> dict[str, Kernel]:
    """Those of the registry's entries, and those that measure, by name."""
    return kernels() | instruments()


def compile_all() -> list[Figures]:
    """Every kernel for every architecture, in the order of the table."""
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        return [row for rows in pool.map(_compiled_by_name, sorted(every_kernel())) for row in rows]


def _compiled_by_name(name: str) -> list[Figures]:
    return compiled(every_kernel()[name])


def read() -> dict[tuple[str, str], Figures]:
    """The table, by kernel and architecture."""
    with PATH.open(newline="", encoding="utf-8") as file:
        rows = [Figures(**_typed(row)) for row in csv.DictReader(file)]
    return {(row.kernel, row.arch): row for row in rows}


def _typed(row: dict[str, str]) -> dict:
    return {field.name: row[field.name] if field.type == "str" else int(row[field.name]) for field in fields(Figures)}


def write(rows: Iterable[Figures]) -> None:
    """Replace the table."""
    PATH.parent.mkdir(exist_ok=True)
    with PATH.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) | {"blocks_per_sm": row.blocks_per_sm} for row in rows)


def main() -> None:
    """Compile everything and write the table. Exits with the reason where nothing can be compiled."""
    reason = missing()
    if reason:
        raise SystemExit(reason)
    rows = compile_all()
    write(rows)
    print(f"{PATH}: {len(rows)} rows")


if __name__ == "__main__":
    main()
