"""What the compiler makes of the CUDA kernels, without a GPU and without a driver.

The simulator runs Python, and accepts what the compiler refuses: every kernel is compiled here for the processors it
is meant for, and compared with a table. That needs numba-cuda with the compiler and the linker from its wheels.
"""

from __future__ import annotations

import pytest

from tests.cuda_golden import (
    COMMAND,
    PROCESSORS,
    TOLERANCE,
    blocks_per_sm,
    compile_all,
    complaints,
    every_kernel,
    missing,
    read,
)

GOLDEN = read()


@pytest.fixture(scope="module")
def figures():
    """{(kernel, arch): Figures} of everything, or a skip that says what is missing."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    return {(row.kernel, row.arch): row for row in compile_all()}


@pytest.mark.parametrize("arch", PROCESSORS)
@pytest.mark.parametrize("name", every_kernel())
def test_kernel_compiles_as_the_table_says(figures, name, arch):
    """No float64, nothing spilled, no stack, the shared memory that it declares, and no more registers than it had."""
    found = figures[name, arch]
    assert complaints(every_kernel()[name], found) == []
    known = GOLDEN.get((name, arch))
    assert known is not None, f"{name} is not in the table; after a look at it run {COMMAND}"
    assert found.registers <= known.registers + TOLERANCE, f"if that is wanted, run {COMMAND}"
    assert found.shared_bytes == known.shared_bytes, f"if that is wanted, run {COMMAND}"


def test_the_table_has_a_row_for_every_kernel_and_no_other():
    """What was renamed or removed does not stay behind."""
    expected = {(name, arch) for name in every_kernel() for arch in PROCESSORS}
    assert set(GOLDEN) == expected, f"run {COMMAND}"


@pytest.mark.parametrize("name", every_kernel())
def test_the_table_agrees_with_the_kernel(name):
    """Also where nothing can be compiled: threads and shared memory are the kernel's, and nothing is wrong with it."""
    kernel = every_kernel()[name]
    for arch in PROCESSORS:
        row = GOLDEN[name, arch]
        assert (row.threads, row.shared_bytes) == (kernel.threads, kernel.shared_bytes), f"run {COMMAND}"
        assert complaints(kernel, row) == []


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared_bytes", "blocks"),
    [
        ("sm_90", 128, 32, 0, 16),  # threads: 2048 / 128
        ("sm_90", 32, 16, 0, 32),  # blocks
        ("sm_90", 256, 128, 0, 2),  # registers: 65536 / (128 * 256)
        ("sm_90", 256, 255, 0, 1),
        ("sm_90", 1024, 65, 0, 0),  # 72 registers a thread are given out: 73728
        ("sm_90", 64, 32, 48 << 10, 4),  # 228 KB / 49 KB
        ("sm_75", 64, 32, 48 << 10, 1),  # 64 KB / 48 KB
        ("sm_90", 2048, 16, 0, 0),
        ("sm_90", 64, 32, (48 << 10) + 4, 0),
    ],
)
def test_blocks_of_a_multiprocessor_are_counted_as_the_guide_does(arch, threads, registers, shared_bytes, blocks):
    """The scarcest of threads, blocks, registers and shared memory decides."""
    assert blocks_per_sm(PROCESSORS[arch], threads, registers, shared_bytes) == blocks
