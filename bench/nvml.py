"""What a GPU says about itself while it is measured: clocks, power, temperature, throttling, and who else is on it.

Read through NVML where nvidia-ml-py or a cuda-bindings that has it is installed, else through the nvidia-smi program,
else not at all. Nothing is ever set. Also which devices there are, and how a worker is made to see one of them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Protocol

THROTTLING = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal, software",
    0x40: "thermal, hardware",
    0x80: "power brake",
}
"""Bits of the clocks' event reasons that slow a device under load (NVML API Reference, nvmlClocksEventReasons). An
idle device, set application clocks and a display's clock are left out: no event slowed anything there."""

IDLE = 0x1
"""The bit that says that nothing runs and clocks are on their way down: nothing to hold against a measurement."""

CLOCK_DROP = 0.1
"""A multiprocessor clock that has fallen by more than this share makes the round dirty, unless the device is idle."""

SMI_SECONDS = 10.0


class DeviceError(ValueError):
    """No such device; the message lists those that there are."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a GPU; None for what it does not tell."""

    sm_mhz: float | None = None
    memory_mhz: float | None = None
    watts: float | None = None
    celsius: float | None = None
    throttling: tuple[str, ...] = ()
    processes: tuple[int, ...] = ()
    """Process numbers with work on it, as its driver counts them: in a container often another count than ours."""
    mig: bool | None = None
    """Whether it is cut into slices."""
    is_idle: bool = False
    """Whether nothing ran at that moment, so that the clock says nothing."""

    def as_record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"throttling": list(self.throttling), "processes": list(self.processes)}


class Reader(Protocol):
    """Something that can look at a GPU."""

    is_quick: bool
    """Whether a look takes about a millisecond, so that there can be one between rounds."""

    def read(self) -> Reading | None:
        """What it says now; None where it says nothing."""


class Nvml:
    """Looks through nvidia-ml-py, or through what has its names."""

    is_quick = True

    def __init__(self, library: Any, device: str | None) -> None:
        """``library``: the module pynvml. ``device``: an index or a UUID. Raises the library's NVMLError."""
        library.nvmlInit()
        self._library = library
        self._handle = self._find(device)

    def _find(self, device: str | None) -> Any:
        """The whole GPU's handle: a slice has no clocks, power or temperature of its own."""
        if device is None or device.isdecimal():
            return self._library.nvmlDeviceGetHandleByIndex(int(device or 0))
        handle = self._library.nvmlDeviceGetHandleByUUID(device)
        if device.startswith("MIG-"):
            return self._library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        return handle

    def read(self) -> Reading | None:
        """What each query says; one that a device does not support leaves a gap."""
        nvml = self._library
        power = self._ask("nvmlDeviceGetPowerUsage")
        bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses")
        mig = self._ask("nvmlDeviceGetMigMode")
        return Reading(
            sm_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            memory_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            watts=None if power is None else power / 1000,
            celsius=self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            throttling=_throttling(bits or 0),
            processes=tuple(sorted(process.pid for process in processes or ())),
            mig=None if mig is None else bool(mig[0]),
            is_idle=bool((bits or 0) & IDLE),
        )

    def _ask(self, function: str, *arguments: Any) -> Any:
        with suppress(self._library.NVMLError, AttributeError):
            return getattr(self._library, function)(self._handle, *arguments)
        return None


PYNVML = {
    "nvmlInit": "init_v2",
    "nvmlDeviceGetHandleByIndex": "device_get_handle_by_index_v2",
    "nvmlDeviceGetHandleByUUID": "device_get_handle_by_uuid",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": "device_get_device_handle_from_mig_device_handle",
    "nvmlDeviceGetPowerUsage": "device_get_power_usage",
    "nvmlDeviceGetClockInfo": "device_get_clock_info",
    "nvmlDeviceGetTemperature": "device_get_temperature_v",
    "nvmlDeviceGetCurrentClocksThrottleReasons": "device_get_current_clocks_event_reasons",
    "nvmlDeviceGetComputeRunningProcesses": "device_get_compute_running_processes_v3",
    "nvmlDeviceGetMigMode": "device_get_mig_mode",
}
"""What a function of nvidia-ml-py is called in cuda.bindings.nvml."""


class Bindings:
    """cuda.bindings.nvml, which numba-cuda brings along, by the names of nvidia-ml-py."""

    def __init__(self, library: Any) -> None:
        """``library``: the module. Raises AttributeError where it is another version's."""
        self._library = library
        self.NVML_CLOCK_SM, self.NVML_CLOCK_MEM = library.ClockType.SM, library.ClockType.MEM
        self.NVML_TEMPERATURE_GPU = library.TemperatureSensors.GPU
        self.NVMLError = (library.NvmlError, RuntimeError)  # the latter for a function that an old driver lacks

    def __getattr__(self, name: str) -> Any:
        """A function."""
        if name not in PYNVML:
            raise AttributeError(name)
        return getattr(self._library, PYNVML[name])


SMI_QUERY = (
    "clocks.sm",
    "clocks.mem",
    "power.draw",
    "temperature.gpu",
    "clocks_throttle_reasons.active",
    "mig.mode.current",
)


class Smi:
    """Looks through the nvidia-smi program, which takes a tenth of a second and more."""

    is_quick = False

    def __init__(self, device: str | None) -> None:
        """``device``: an index or a UUID; of a slice, the GPU that it is cut from is looked at."""
        whole = {d.uuid: str(d.index) for d in listed() if d.is_slice}
        self._which = ("-i", whole.get(device, device) if device else "0")

    def read(self) -> Reading | None:
        """One line of numbers, and one line per process."""
        line = _smi(f"--query-gpu={','.join(SMI_QUERY)}", "--format=csv,noheader,nounits", *self._which)
        if line is None:
            return None
        cells = dict(zip(SMI_QUERY, (cell.strip() for cell in line.splitlines()[0].split(",")), strict=False))
        reasons = cells.get("clocks_throttle_reasons.active", "").lower()
        bits = int(reasons, 16) if reasons.startswith("0x") else 0
        found = _smi("--query-compute-apps=pid", "--format=csv,noheader", *self._which) or ""
        mig = cells.get("mig.mode.current", "")
        sm_mhz, memory_mhz, watts, celsius = (_number(cells.get(name, "")) for name in SMI_QUERY[:4])
        return Reading(
            sm_mhz,
            memory_mhz,
            watts,
            celsius,
            throttling=_throttling(bits),
            processes=tuple(sorted(int(pid) for pid in re.findall(r"^\d+", found, re.MULTILINE))),
            mig={"Enabled": True, "Disabled": False}.get(mig),
            is_idle=bool(bits & IDLE),
        )


class Nobody:
    """Where there is nobody to ask."""

    is_quick = False

    def read(self) -> Reading | None:
        """Nothing."""
        return None


def reader(device: str | None) -> Reader:
    """What can look at this device: an index, a UUID, or None for the first that a worker sees."""
    device = device or os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or None
    for module, named in (("pynvml", lambda library: library), ("cuda.bindings.nvml", Bindings)):
        with suppress(Exception):  # not installed, no driver, no such device, another version: the next may know more
            return Nvml(named(import_module(module)), device)
    return Smi(device) if shutil.which("nvidia-smi") else Nobody()


def dirt(before: Reading | None, after: Reading | None, own: Set[int]) -> tuple[str, ...]:
    """What makes the time between two readings a bad time to measure; nothing where there are no readings.

    ``own``: process numbers of ours. Where the driver counts processes otherwise than we do and lists none of them, a
    foreign one is one that was not there before.
    """
    if before is None or after is None:
        return ()
    found = [f"throttled: {reason}" for reason in after.throttling]
    if before.sm_mhz and after.sm_mhz and not after.is_idle and after.sm_mhz < (1 - CLOCK_DROP) * before.sm_mhz:
        found.append(f"clock fell from {before.sm_mhz:g} to {after.sm_mhz:g} MHz")
    there = set(after.processes)
    foreign = there - own if there & own else there - set(before.processes)
    if foreign:
        found.append(f"{len(foreign)} other process{'es' * (len(foreign) > 1)} on the device")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Listed:
    """A device that can be chosen; ``index``: its own, or that of the GPU that a slice is cut from."""

    index: int
    uuid: str
    text: str

    @property
    def is_slice(self) -> bool:
        """Whether it is a MIG slice of a GPU."""
        return self.uuid.startswith("MIG-")

    def __str__(self) -> str:
        return f"{'slice of ' * self.is_slice}{self.index}: {self.text} ({self.uuid})"


def listed() -> tuple[Listed, ...]:
    """The GPUs of this machine and their MIG slices; none where nvidia-smi is missing or finds none."""
    found: list[Listed] = []
    index = -1
    for line in (_smi("-L") or "").splitlines():
        match = re.match(r"\s*(GPU|MIG) (.+?)\s*\(UUID: ([^)]+)\)", line)
        if not match:
            continue
        kind, text, uuid = match.groups()
        if kind == "GPU":
            number, _, text = text.partition(": ")
            index = int(number)
        found.append(Listed(index, uuid, re.sub(r"\s+Device\s+\d+:$", "", text)))
    return tuple(found)


def settings(device: str | None, known: tuple[Listed, ...] | None = None) -> dict[str, str]:
    """Environment variables that show a worker this device and no other; empty for None.

    ``device``: an index in the order of the PCI bus, as nvidia-smi counts, or the UUID of a GPU or of a MIG slice.
    Raises DeviceError, listing the devices, for one that does not exist and for a GPU that is cut into slices.
    """
    if device is None:
        return {}
    known = listed() if known is None else known
    if known:
        chosen = [d for d in known if device == d.uuid or (device == str(d.index) and not d.is_slice)]
        choices = "; ".join(map(str, known))
        if not chosen:
            raise DeviceError(f"no device {device}; there are: {choices}")
        if not chosen[0].is_slice and any(d.is_slice and d.index == chosen[0].index for d in known):
            raise DeviceError(f"device {device} is cut into slices, give one by its UUID; there are: {choices}")
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": device}


def _throttling(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in THROTTLING.items() if bits & bit)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None


def _smi(*words: str) -> str | None:
    """What nvidia-smi prints, or None where it is missing, fails or says nothing."""
    if not shutil.which("nvidia-smi"):
        return None
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
