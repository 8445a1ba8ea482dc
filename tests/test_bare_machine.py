"""On a machine that has NumPy, pandas and numba-cuda alone, the acceptance runs from end to end, page included.

It runs in Numba's simulator; a child process and all of its workers see no other package.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reports import acceptance

ROOT = Path(__file__).parents[1]

NEEDED = (
    *("numpy", "pandas", "dateutil", "pytz", "six", "tzdata"),
    *("numba", "llvmlite", "numba_cuda", "_numba_cuda_redirector", "cuda", "nvidia", "packaging"),
)
OURS = ("bench", "impls", "datasets", "reports")

HIDE = f"""
import sys
from importlib.machinery import PathFinder

SEEN = {{*sys.stdlib_module_names, *{NEEDED!r}, *{OURS!r}}}


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        is_seen = name.partition(".")[0] in SEEN or name.startswith("_sysconfigdata")
        return super().find_spec(name, path, target) if is_seen else None


sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""

CASES = """
conv2d:1x3x3x1,k2,f2
maxpool2d:1x4x4x1,pool2
avgpool2d:1x4x4x1,pool2
dense:2x3,u4
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A function that runs a command on the bare machine, in the simulator."""
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "sitecustomize.py").write_text(HIDE)
    path = os.pathsep.join([str(hidden), str(ROOT)])
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": path}

    def run(*words):
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture(scope="module")
def accepted(bare, tmp_path_factory):
    """The folder of one acceptance on a tiny suite, and what it printed."""
    folder = tmp_path_factory.mktemp("accepted")
    (folder / "tiny.txt").write_text(CASES)
    options = ("--suite", str(folder / "tiny.txt"), "--budget", "0.2", "--threads", "1")
    done = bare("-m", "bench", "cuda-acceptance", "-o", str(folder / "out"), *options)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "out", done.stdout


@pytest.mark.parametrize("package", ["click", "rich", "sqlalchemy", "psutil", "scipy", "matplotlib", "keras", "cv2"])
def test_the_bare_machine_is_bare(bare, package):
    done = bare("-c", f"import {package}")
    assert "ModuleNotFoundError" in done.stderr


def test_every_part_is_done_and_has_a_file(accepted):
    folder, printed = accepted
    parts = acceptance.read({path.stem[2:]: path for path in sorted(folder.glob("*.jsonl"))})
    left_out = {name: part.left_out for name, part in parts.items()}
    assert left_out.pop("sanitizer") == "compute-sanitizer is not installed"
    assert "graph launch (the simulator has no graphs)" in left_out.pop("ceilings")
    assert left_out == dict.fromkeys(("environment", "correctness", "networks", "grid"), "")
    assert "report.html" in printed


@pytest.mark.parametrize("part", ["correctness", "networks", "grid"])
def test_every_row_is_right(accepted, part):
    folder, _ = accepted
    (path,) = folder.glob(f"*-{part}.jsonl")
    rows = acceptance.read({part: path})[part].rows
    assert len({(row.op, row.direction) for row in rows}) >= 7
    assert {row.device for row in rows} == {"cuda"}
    judged = [row for row in rows if row.status != "OVER_BUDGET"]  # predicted from the part before: it is a simulator
    assert judged
    assert judged == rows or part != "correctness"
    assert all(row.error_bounds <= 1 for row in judged)
    assert any(row.median_s for row in rows) == (part != "correctness")


def test_the_page_names_what_is_missing_and_what_was_measured(accepted):
    folder, _ = accepted
    page = (folder / "report.md").read_text()
    assert "**Nothing of ours was found wrong in" in page
    assert "| not installed | cupy, torch, jax, keras, tensorflow, pynvml, click, rich, sqlalchemy" in page
    assert "on the host (CuPy cannot be imported" in page
    for table in ("What was done", "Ceilings, measured", "Fraction of the measured ceilings", "Noise"):
        assert f"### {table}" in page
        assert f"<h2>{table}</h2>" in (folder / "report.html").read_text()


def test_a_second_run_does_not_mix_with_the_first(bare, accepted):
    folder, _ = accepted
    done = bare("-m", "bench", "cuda-acceptance", "-o", str(folder))
    assert done.returncode == 2
    assert "is not empty, and two runs are never mixed" in done.stderr


def test_the_page_can_be_made_anew_from_the_files(bare, accepted):
    folder, _ = accepted
    before = (folder / "report.md").read_text()
    (folder / "report.md").unlink()
    done = bare("-m", "bench", "cuda-acceptance", "-o", str(folder), "--page-only")
    assert done.returncode == 0, done.stderr
    assert (folder / "report.md").read_text() == before
