"""The layout keeps its promises: imports run one way, nothing heavy is imported early, everything says what it is."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("datasets", "impls", "bench", "reports")
ROOF = ("bench/cli.py", "bench/__main__.py")
"""They may import everything, and nothing but each other imports them."""

HEAVY = {"tensorflow", "keras", "torch", "jax", "cupy", "numba.cuda"}
ON_REQUEST = ("impls/cuda_setup.py",)
"""Imported by nothing but CUDA implementations, and these by nothing but the registry when it is asked for them."""

MODULES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def name_of(path: Path) -> str:
    """``bench/cli.py`` for its path."""
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text("utf-8"))


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """What is imported, and every package above it: ``from a.b import c`` is a, a.b and a.b.c."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {".".join(name.split(".")[: depth + 1]) for name in found for depth in range(name.count(".") + 1)}


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: not functions, nor what is there for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from at_import_time(child)


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) not in ROOF], ids=name_of)
def test_imports_run_one_way(path):
    """datasets -> impls -> bench -> reports; and nobody imports the roof, or the tests."""
    above = LAYERS[LAYERS.index(path.relative_to(ROOT).parts[0]) + 1 :]
    assert not imported(ast.walk(tree(path))) & {*above, "tests", "bench.cli", "bench.__main__"}


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) not in ON_REQUEST], ids=name_of)
def test_no_module_imports_a_heavy_library_when_it_is_imported(path):
    assert not imported(at_import_time(tree(path))) & HEAVY


CUDA = ("numba_cuda_", "cuda_", "_cuda_", "cupy")
"""How the names of modules begin that may import what imports CUDA."""


@pytest.mark.parametrize("path", [p for p in MODULES if not p.name.startswith(CUDA)], ids=name_of)
def test_only_cuda_implementations_import_what_imports_cuda(path):
    assert not [
        name
        for name in imported(ast.walk(tree(path)))
        if name.startswith(("impls.cuda_setup", "impls.cuda_gemm", "impls.cupy_"))
    ]


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))], ids=name_of)
def test_every_module_says_what_it_is(path):
    """In its first line; a file without a line has nothing to say."""
    assert ast.get_docstring(tree(path)) or not path.stat().st_size


def test_every_folder_with_modules_is_a_package_that_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({".".join(path.parent.relative_to(ROOT).parts) for path in MODULES})
    assert all((ROOT / package.replace(".", "/") / "__init__.py").exists() for package in listed)


def test_names_are_known_without_importing_a_library():
    """Listing answers at once: neither numba nor OpenCV nor a competitor's library is imported for it."""
    program = "import sys\nfrom impls import *\nfor op in OPS: names(op), rivals(op)\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & {*HEAVY, "numba", "cv2", "scipy", "pandas"}
