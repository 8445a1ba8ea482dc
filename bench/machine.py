"""What was measured on: processor, memory, system, versions, commit. Read once per run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import nvml

ROOT = Path(__file__).resolve().parent.parent

CONTROL_DEVICE = Path("/dev/nvidiactl")
"""What the NVIDIA driver puts there, on a machine that has no nvidia-smi too."""

DESCRIBE_DEVICE = "import json; from impls.devices import CUDA; print(json.dumps(CUDA.describe()))"
DEVICE_SECONDS = 120.0
"""Importing numba and starting a CUDA context: seconds, more on a machine that does it for the first time."""

LIBRARIES = (
    "numpy",
    "numba",
    "llvmlite",
    "opencv-python-headless",
    "scipy",
    "keras",
    "tensorflow",
    "torch",
    "jax",
    "numba-cuda",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "nvidia-ml-py",
)


def describe(device: str | None = None) -> dict[str, Any]:
    """The machine and software as plain values, with an id that is the same for the same hardware and system.

    ``device``: the GPU that is measured, an index or a UUID; what it is stands under "cuda_device", empty without one.
    Raises nvml.DeviceError for a device that does not exist.
    """
    hardware = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(_memory("total") / 1e9, 1),
        "os": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu_names(),
    }
    digest = hashlib.sha256(repr(sorted(hardware.items())).encode()).hexdigest()[:8]
    return {
        "id": digest,
        **hardware,
        "cuda_device": _cuda_device(nvml.settings(device)),
        "gpu_driver": _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "gpu_slices": [str(found) for found in nvml.listed() if found.is_slice],
        "vector_features": _vector_features(),
        "python": platform.python_version(),
        "commit": _commit(),
        "versions": {name: found for name in LIBRARIES if (found := _version(name))},
        "keras_backend": os.environ.get("KERAS_BACKEND", "tensorflow"),
    }


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(cores())


def cores() -> frozenset[int]:
    """The numbers of the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpuinfo(key: str) -> str | None:
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _cpu_name() -> str:
    return _cpuinfo("model name") or _command("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()


def _vector_features() -> list[str]:
    flags = set((_cpuinfo("flags") or "").split())
    return sorted(flags & {"avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "amx_tile"})


def _gpu_names() -> str | None:
    return _command("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


def _cuda_device(settings: Mapping[str, str]) -> dict[str, Any]:
    """What the workers' CUDA device is. Asked by a process of its own: one that asks keeps memory on the device."""
    if not (_gpu_names() or CONTROL_DEVICE.exists()):
        return {}
    found = _command(sys.executable, "-c", DESCRIBE_DEVICE, seconds=DEVICE_SECONDS, settings=settings)
    return dict(json.loads(found.splitlines()[-1])) if found else {}


def _commit() -> str:
    """The commit of this clone, with + where files differ from it; empty outside a clone."""
    commit = _command("git", "rev-parse", "--short=12", "HEAD")
    if not commit:
        return ""
    return commit + ("+" if _command("git", "status", "--porcelain", "-uno") else "")


def _command(*words: str, seconds: float = 10, settings: Mapping[str, str] | None = None) -> str | None:
    """What a program prints in this clone's folder, or None where it is missing, fails or says nothing.

    ``settings``: environment variables beside those that there are.
    """
    if not shutil.which(words[0]):
        return None
    environment = os.environ | dict(settings or {})
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def free_memory() -> int:
    """Bytes that processes can still take without swapping."""
    return _memory("available")


def peak_memory() -> int:
    """Bytes of the largest resident memory of this process so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def oom_kills() -> int:
    """Processes that this system has ended for want of memory since it started; 0 where it does not say."""
    found = re.search(r"^oom_kill (\d+)", _read("/proc/vmstat"), re.MULTILINE)
    return int(found[1]) if found else 0


def _memory(which: str) -> int:
    """Bytes of memory, "total" or "available". Linux tells it itself, so that a bare machine needs no library."""
    found = re.search(rf"^Mem{which}:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE | re.IGNORECASE)
    if found:
        return int(found[1]) * 1024
    import psutil

    return int(getattr(psutil.virtual_memory(), which))


def _read(path: str) -> str:
    """A text file of the system's; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
