"""Packages that do not go together, or not with the driver, are named with their remedy."""

from __future__ import annotations

import ctypes
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from impls import cuda_packages as packages

CUDA12 = {
    "cupy-cuda12x": "14.2.0",
    "cuda-toolkit": "12.9.2.0",
    "cuda-bindings": "12.9.10",
    "nvidia-cuda-nvrtc-cu12": "12.9.86",
    "nvidia-cublas-cu12": "12.9.2.10",
    "numba-cuda": "0.30.4",
}
CUDA13 = {
    "cupy-cuda13x": "14.2.0",
    "cuda-toolkit": "13.0.2",
    "cuda-bindings": "13.0.3",
    "nvidia-cuda-nvrtc": "13.0.88",
    "nvidia-cublas": "13.1.0.3",
    "numba-cuda": "0.30.4",
}


@pytest.mark.parametrize("found", [{}, CUDA12, CUDA13, {"cupy-cuda12x": "14.2.0"}], ids=["none", "12", "13", "CuPy"])
def test_what_one_extra_installs_goes_together(found):
    assert packages.conflict(found) is None
    assert packages.cupy_conflict(found) is None


def test_two_packages_of_cupy_are_named():
    """They install the same files: what is imported is a mixture."""
    reason = packages.cupy_conflict(CUDA12 | {"cupy-cuda13x": "14.2.0"})
    assert "cupy-cuda12x and cupy-cuda13x overwrite each other" in reason
    assert packages.conflict(CUDA12 | {"cupy-cuda13x": "14.2.0"}) == reason


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ({"nvidia-cuda-nvrtc": "13.0.88"}, "nvidia-cuda-nvrtc 13.0.88, nvidia-cuda-nvrtc-cu12 12.9.86"),
        ({"cuda-bindings": "13.0.3"}, "cuda-bindings 13.0.3"),
        ({"nvidia-nvjitlink": "13.5.37"}, "nvidia-nvjitlink 13.5.37"),
    ],
)
def test_parts_of_two_toolkits_are_named(added, named):
    reason = packages.conflict(CUDA12 | added)
    assert "parts of several CUDA toolkits" in reason
    assert named in reason


def test_cupy_of_another_generation_than_the_toolkit_is_named():
    found = {name: text for name, text in CUDA13.items() if name != "cupy-cuda13x"} | {"cupy-cuda12x": "14.2.0"}
    reason = packages.conflict(found)
    assert "cupy-cuda12x does not go with" in reason
    assert "cuda-toolkit 13.0.2" in reason
    assert "install the extra cuda12" in reason


@pytest.mark.parametrize(
    ("driver", "found", "told"),
    [
        ((12, 4), CUDA13, ("CUDA 12.4", "CUDA 13.0", "the extra cuda12 instead of cuda13", "a newer driver")),
        ((12, 4), CUDA12, ("CUDA 12.4", "CUDA 12.9", "cuda-toolkit==12.4.*", "a newer driver")),
        ((11, 8), CUDA12, ("CUDA 11.8", "CUDA 12.9", "install a newer driver")),
        ((12, 4), {"cuda-bindings": "13"}, ("CUDA 12.4", "CUDA 13.0", "cuda12 instead of cuda13")),
    ],
)
def test_a_driver_older_than_the_toolkit_is_named_with_both_versions_and_the_remedy(driver, found, told):
    reason = packages.too_old(driver, found)
    assert all(text in reason for text in told)


@pytest.mark.parametrize(("driver", "found"), [((13, 0), CUDA13), ((13, 1), CUDA12), ((12, 9), CUDA12), ((12, 0), {})])
def test_a_driver_as_new_as_the_toolkit_is_fine(driver, found):
    assert packages.too_old(driver, found) is None


@pytest.mark.parametrize(("driver", "extra"), [((12, 8), "cuda12"), ((13, 0), "cuda13"), ((14, 1), "cuda13")])
def test_without_a_package_the_extra_for_the_driver_is_named(driver, extra):
    assert packages.nothing_installed({}, driver).endswith(f"install the extra {extra}")
    assert packages.nothing_installed({"numba-cuda": "0.30.4"}, driver) is None
    assert packages.nothing_installed({"cupy-cuda12x": "14.2.0"}, driver) is None


@pytest.mark.parametrize(
    ("found", "driver", "told"),
    [
        (CUDA12, None, None),
        ({}, None, None),
        (CUDA12, (13, 0), None),
        (CUDA12 | {"cupy-cuda13x": "14.2.0"}, None, "overwrite each other"),
        ({}, (12, 8), "no CUDA package is installed"),
        (CUDA13, (12, 8), "instead of cuda13"),
    ],
)
def test_explanation_asks_what_is_installed_and_what_the_driver_can_do(monkeypatch, found, driver, told):
    """Without a driver only a conflict is worth a word: the missing driver is the reason."""

    def version(name):
        if name not in found:
            raise PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(packages, "version", version)
    monkeypatch.setattr(packages, "driver_version", lambda: driver)
    explanation = packages.explanation()
    assert explanation is None if told is None else told in explanation
    assert packages.explained("it fails") == ("it fails" if told is None else f"it fails; {explanation}")


@pytest.mark.parametrize(("status", "expected"), [(0, (12, 4)), (100, None)], ids=["answers", "fails"])
def test_the_driver_is_asked_for_its_version(monkeypatch, status, expected):
    """1000 * major + 10 * minor, through a pointer; the result says whether it was written."""

    def get_version(pointer):
        pointer._obj.value = 12040
        return status

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=get_version))
    assert packages.driver_version() == expected


def test_no_driver_is_no_version(monkeypatch):
    def fail(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert packages.driver_version() is None
