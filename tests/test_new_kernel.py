"""A kernel in another package is found, listed, checked, timed and reported, without a change to this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins import install

ROOT = Path(__file__).parent.parent
CASE = "conv2d:2x8x8x3,k3x3,f4,relu"

KERNEL = '''
"""One matrix product per tap."""

import numpy as np

from impls.contract import DIRECT, Implementation, Plan
from impls.conv2d.reference import taps


class MyKernel(Plan):
    offers = ("forward",)

    def forward(self, x, w, b, out):
        xp = np.pad(x, ((0, 0), *self.spec.pads, (0, 0)))
        out[...] = b
        for i, j, rows, columns in taps(self.spec):
            out += xp[:, rows, columns] @ w[i, j]
        np.maximum(out, 0, out=out)


IMPL = Implementation(MyKernel, algorithm=DIRECT, note="a kernel of somebody else's")
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A package with two kernels: one that works and one that cannot be imported."""
    path = tmp_path_factory.mktemp("plugin")
    (path / "my_package.py").write_text(KERNEL)
    (path / "broken_package.py").write_text("import a_library_that_does_not_exist\n")
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(path, {"conv2d.my_kernel": "my_package", "conv2d.broken": "broken_package"}, monkeypatch)
        yield path


def layerbench(folder, *words):
    """Run the command line as somebody would who has the package installed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def test_it_is_listed_and_the_broken_one_says_why(folder):
    done = layerbench(folder, "list", "--op", "conv2d")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "my_kernel cpu forward direct float32 yes" in text
    assert "a kernel of somebody else's" in text
    assert "broken_package cannot be imported" in text


def test_it_is_checked(folder):
    done = layerbench(folder, "verify", "--case", CASE, "--impl", "my_kernel", "--competitor", "none", "--threads", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my_kernel" in done.stdout
    assert "1/1" in done.stdout


def test_it_is_timed_stored_and_reported(folder):
    run = layerbench(
        folder,
        *("run", "--case", CASE, "--impl", "my_kernel", "--competitor", "none", "--budget", "0.2", "--threads", "1"),
        *("--json", "rows.json", "--csv", "rows.csv"),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = json.loads((folder / "rows.json").read_text())["rows"]
    by_direction = {row["direction"]: row for row in rows}
    assert by_direction["forward"]["status"] in ("OK", "NOISY")
    assert by_direction["forward"]["error_bounds"] <= 1
    assert len(by_direction["forward"]["samples_s"]) >= 5
    assert by_direction["grad_input"]["status"] == "UNSUPPORTED"
    assert by_direction["grad_input"]["reason"] == "my_kernel does not compute grad_input"

    again = layerbench(
        folder,
        *("run", "--case", CASE, "--impl", "my_kernel", "--competitor", "none", "--budget", "0.2", "--threads", "1"),
        "--resume",
    )
    assert "3 of 3 done, 0 to go" in again.stdout

    pieces = {"markdown": "| my_kernel", "csv": "my_kernel,", "latex": "longtable", "table": "my_kernel"}
    for form, piece in pieces.items():
        report = layerbench(folder, "report", "--format", form)
        assert report.returncode == 0, report.stderr
        assert piece in report.stdout
