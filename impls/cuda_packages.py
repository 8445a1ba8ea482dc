"""Why CUDA does not work although there is a driver: packages that do not go together, or not with the driver.

Pure functions of what is installed ({package: version}) and of the driver's version; ``explanation`` asks for both.
The remedies are the project's extras ``cuda12`` and ``cuda13``.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

Version = tuple[int, int]
"""(major, minor) of CUDA."""

CUPY = {"cupy-cuda11x": 11, "cupy-cuda12x": 12, "cupy-cuda13x": 13}
"""The CUDA generation of each of CuPy's packages; they install the same files."""

TOOLKIT = (
    "cuda-toolkit",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-nvcc-cu12",
    "nvidia-nvvm",
    "nvidia-nvjitlink",
    "nvidia-nvjitlink-cu12",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
)
"""The parts of a toolkit that compile kernels and compute products; their versions start with CUDA's generation."""

NUMBA = "numba-cuda"
FIRST_OF_13 = (13, 0)


def explained(reason: str) -> str:
    """Why CUDA does not work, and what the installed packages have to do with it."""
    return "; ".join(filter(None, (reason, explanation())))


def explanation() -> str | None:
    """What is wrong with the installed packages, by themselves or for this driver, in one sentence; None if nothing."""
    found = installed((*CUPY, *TOOLKIT, NUMBA))
    driver = driver_version()
    if driver is None:
        return conflict(found)
    return conflict(found) or nothing_installed(found, driver) or too_old(driver, found)


def cupy_conflict(found: Mapping[str, str] | None = None) -> str | None:
    """The reason why CuPy's files may be anybody's, or None; asks what is installed unless it is given."""
    several = [name for name in CUPY if name in (installed(tuple(CUPY)) if found is None else found)]
    if len(several) < 2:
        return None
    return (
        f"{' and '.join(several)} overwrite each other; uninstall both, then install one of the extras cuda12, cuda13"
    )


def conflict(found: Mapping[str, str]) -> str | None:
    """The reason why the installed packages do not go together, or None."""
    if reason := cupy_conflict(found):
        return reason
    parts = {name: generation(text) for name, text in found.items() if name in TOOLKIT}
    if len(set(parts.values())) > 1:
        listed = ", ".join(f"{name} {found[name]}" for name in sorted(parts))
        return (
            f"parts of several CUDA toolkits are installed ({listed}); install one of the extras cuda12, cuda13 afresh"
        )
    for name, wanted in CUPY.items():
        if name in found and parts and wanted not in parts.values():
            listed = ", ".join(f"{part} {found[part]}" for part in sorted(parts))
            return f"{name} does not go with {listed}; install the extra cuda{wanted} or uninstall {name}"
    return None


def nothing_installed(found: Mapping[str, str], driver: Version) -> str | None:
    """Which extra to install where there is a driver and no package that uses it, or None."""
    if NUMBA in found or any(name in found for name in CUPY):
        return None
    return f"no CUDA package is installed; the driver can do CUDA {_text(driver)}: install the extra {extra(driver)}"


def too_old(driver: Version, found: Mapping[str, str]) -> str | None:
    """The reason why the driver cannot run what the installed toolkit compiles, or None. The remedy is part of it."""
    toolkit = toolkit_version(found)
    if toolkit is None or driver >= toolkit:
        return None
    reason = f"the driver can do CUDA {_text(driver)}, the installed toolkit is CUDA {_text(toolkit)}"
    if driver[0] == toolkit[0]:
        return f"{reason}; install cuda-toolkit=={_text(driver)}.* or a newer driver"
    if toolkit[0] == 13 and driver[0] == 12:
        return f"{reason}; install the extra cuda12 instead of cuda13, or a newer driver"
    return f"{reason}; install a newer driver"


def toolkit_version(found: Mapping[str, str]) -> Version | None:
    """CUDA's version of the installed toolkit, or None: of the package named so, else of its compiler, else unknown."""
    for name in ("cuda-toolkit", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "cuda-bindings"):
        if name in found:
            major, minor, *_ = (*found[name].split("."), "0")
            return int(major), int(minor)
    return None


def extra(driver: Version) -> str:
    """The extra for this driver."""
    return "cuda13" if driver >= FIRST_OF_13 else "cuda12"


def generation(text: str) -> int:
    """The CUDA generation of a part with this version."""
    return int(text.split(".")[0])


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """The versions of those of ``names`` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def driver_version() -> Version | None:
    """The newest CUDA that the driver can do; None where there is no driver. Starts nothing on the device."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        number = ctypes.c_int()
        failed = library.cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed else (number.value // 1000, number.value % 1000 // 10)


def _text(number: Version) -> str:
    return f"{number[0]}.{number[1]}"
