"""Without a device, CuPy, or Numba's CUDA target everything imports, and every entry says why it cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ASK = """
import importlib, json, pkgutil, sys
for module in {hidden!r}:
    sys.modules[module] = None
import impls
for module in pkgutil.walk_packages(impls.__path__, "impls."):
    if not module.name.startswith("impls.competitors._"):
        importlib.import_module(module.name)
from impls import registry
from impls.contract import Unavailable
from impls.specs import OPS
def reason(op, name):
    try:
        return registry.get(op, name).missing()
    except Unavailable as error:
        return str(error)
print(json.dumps({{f"{{op}}.{{name}}": reason(op, name) for op in OPS for name in registry.names(op)
                   if name.startswith(("numba_cuda_", "cupy_"))}}))
"""
"""Import every module of ours (those behind the records of competitors need their libraries), and ask for reasons."""

HIDDEN = {
    "no device": ((), "no CUDA device or driver is visible"),
    "no CUDA target in Numba": (("numba.cuda",), "CUDA target cannot be imported"),
    "no CuPy": (("cupy",), ""),
    "no bindings of the driver": (("cuda", "cuda.bindings"), ""),
    "nothing of CUDA": (("numba.cuda", "cuda", "cuda.bindings", "cupy"), "CUDA target cannot be imported"),
}
"""name: (modules that cannot be imported, words of every numba_cuda_ entry's reason)."""


@pytest.mark.parametrize("what", HIDDEN)
def test_everything_imports_and_every_entry_gives_its_reason(what):
    """A missing library is a sentence, and neither an exception nor a warning."""
    hidden, words = HIDDEN[what]
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", ASK.format(hidden=hidden)],
        cwd=ROOT,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    reasons = json.loads(child.stdout)
    assert {"conv2d.numba_cuda_direct", "maxpool2d.numba_cuda_direct", "avgpool2d.numba_cuda_direct"} <= set(reasons)
    for entry, reason in reasons.items():
        assert isinstance(reason, str), f"{entry} gives no reason"
        assert len(reason.split()) > 3, f"{entry}: {reason}"
        assert words in reason or ".cupy_" in entry
