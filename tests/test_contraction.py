"""The micro-kernel as machine code of other processors: what it holds in registers, and what it does not call."""

from __future__ import annotations

from pathlib import Path

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from impls.contraction import FLOAT, INDEX, Tile, contraction, emit_tile
from impls.conv2d import _winograd_transforms
from impls.conv2d._register_tiles import LANES, SIZES, TILES
from impls.transposition import transposition

X86 = "x86_64-unknown-linux-gnu"
HASWELL, SKYLAKE = ("haswell", "ymm", 8), ("skylake-avx512", "zmm", 16)

pytestmark = pytest.mark.skipif(
    not llvm.get_process_triple().startswith("x86_64"), reason="LLVM has this processor's instructions alone"
)

every_tile = pytest.mark.parametrize(
    ("size", "processor"),
    [(size, kind) for registers, kind in ((16, HASWELL), (32, SKYLAKE)) for size in SIZES[registers]],
    ids=str,
)


def assembly(tile: Tile, processor: str) -> list[str]:
    """The lines of a tile's code for a processor of x86."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = "-prefer-256-bit" if processor == SKYLAKE[0] else ""
    machine = llvm.Target.from_triple(X86).create_target_machine(cpu=processor, features=features, opt=3)
    module = ir.Module()
    module.triple, module.data_layout = X86, str(machine.target_data)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INDEX] * 19 + [FLOAT, INDEX]), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    emit_tile(builder, tile, function.args)
    builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    return machine.emit_assembly(parsed).splitlines()


@every_tile
def test_all_sums_of_a_tile_stay_in_registers(size, processor):
    """None goes to the stack and back between two multiply-adds."""
    name, register, lanes = processor
    rows, columns, vectors = size
    lines = assembly(Tile(*size, lanes), name)
    places = [k for k, line in enumerate(lines) if "vfmadd" in line and register in line]
    assert len(places) == rows * columns * vectors
    assert [line for line in lines[places[0] : places[-1]] if register in line and "%rsp" in line] == []


@every_tile
def test_rows_are_reached_from_few_pointers_that_are_not_loaded_from_the_stack_one_by_one(size, processor):
    """A step or a limit may be: two or three loads beside up to 28 multiply-adds."""
    name, _, lanes = processor
    lines = assembly(Tile(*size, lanes), name)
    places = [k for k, line in enumerate(lines) if "vfmadd" in line]
    loop = lines[places[0] : next(k for k in range(places[-1], len(lines)) if "\tj" in lines[k])]
    assert sum("(%rsp)" in line for line in loop) <= 3


def test_the_loop_that_the_page_about_kernels_shows_is_the_one_that_is_made():
    """Instruction by instruction; registers are LLVM's choice."""
    page = (Path(__file__).parents[1] / "docs" / "cpu-kernels.md").read_text(encoding="utf-8")
    shown = page[page.index("    loop:") : page.index("jl           loop")].split("\n")[1:]
    lines = assembly(Tile(8, 1, 2, 16), SKYLAKE[0])
    end = max(k for k, line in enumerate(lines) if "vfmadd" in line)
    made = lines[max(k for k in range(end) if lines[k].startswith(".LBB")) + 1 :]
    names = [line.split()[0] for line in shown if line.strip()]
    assert names == [line.split()[0] for line in made[: len(names)]]
    assert names.count("vfmadd231ps") == 16


def test_a_processor_without_fused_multiply_adds_calls_no_function_for_them():
    """fmaf, of the C library, for every lane."""
    lines = assembly(Tile(4, 1, 2, 4), "x86-64")
    assert any("mulps" in line for line in lines)
    assert not any("fmaf" in line for line in lines)


@pytest.mark.parametrize("asks", [0, 1, 4])
def test_a_tile_asks_for_so_many_vectors_ahead_in_each_step_and_for_its_results_once(asks):
    lines = assembly(Tile(6, 1, 4, 16, asks), SKYLAKE[0])
    assert sum("prefetcht0" in line for line in lines) == asks
    assert sum("prefetchw" in line for line in lines) == 6 * 4


@pytest.mark.parametrize(
    "kernel",
    [contraction(TILES[0]), transposition(LANES), _winograd_transforms.of_image(4)],
    ids=["contraction", "transposition", "transform"],
)
def test_what_is_made_by_a_function_is_not_filed_where_it_is_never_found(kernel):
    """numba keeps such code by values that differ from process to process."""
    assert kernel.stats.cache_path is None
