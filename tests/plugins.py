"""Register kernels as another installed package would: a folder on the path with entry points."""

import importlib
import os
import sys
from pathlib import Path

from impls import registry


def install(folder: Path, entries: dict[str, str], monkeypatch) -> None:
    """Make ``{"op.name": "module:attribute"}`` known to this process and to its workers, from modules in ``folder``."""
    metadata = folder / "plugin-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in entries.items()]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *lines, ""]))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
    importlib.invalidate_caches()
    registry.get.cache_clear()


def forget(modules: list[str]) -> None:
    """Drop modules that a test imported from its folder."""
    for module in modules:
        sys.modules.pop(module, None)
    registry.get.cache_clear()
