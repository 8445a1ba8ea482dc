"""What a GPU says of itself is read, judged and chosen by: against a library and a program that are not there."""

from types import SimpleNamespace

import pytest

from bench import nvml
from bench.nvml import DeviceError, Listed, Reading


class NVMLError(Exception):
    pass


class FakeLibrary:
    """pynvml for one GPU at 1,980 MHz that two processes use; power cannot be read."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByIndex(self, index):
        return f"gpu {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return f"handle of {uuid}"

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):
        return f"parent of {handle}"

    def nvmlDeviceGetClockInfo(self, handle, which):
        return {1: 1980, 2: 2619}[which]

    def nvmlDeviceGetPowerUsage(self, handle):
        raise NVMLError("not supported")

    def nvmlDeviceGetTemperature(self, handle, which):
        return 41

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return 0x1 | 0x4 | 0x20

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=9), SimpleNamespace(pid=3)]

    def nvmlDeviceGetMigMode(self, handle):
        return [0, 0]


def test_a_reading_has_what_the_library_tells_and_gaps_where_it_does_not():
    assert nvml.Nvml(FakeLibrary(), None).read() == Reading(
        1980, 2619, None, 41, ("power cap", "thermal, software"), (3, 9), False, True
    )


class FakeBindings:
    """cuda.bindings.nvml for the same GPU, under its own names."""

    NvmlError = NVMLError
    ClockType = SimpleNamespace(SM=1, MEM=2)
    TemperatureSensors = SimpleNamespace(GPU=0)

    def __getattr__(self, name):
        return getattr(FakeLibrary(), {own: name for name, own in nvml.PYNVML.items()}[name])


@pytest.mark.parametrize(
    "installed",
    [{"pynvml": FakeLibrary()}, {"cuda.bindings.nvml": FakeBindings()}],
    ids=["nvidia-ml-py", "cuda-bindings"],
)
def test_either_library_is_read_before_the_program_is_started(monkeypatch, smi, installed):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(nvml, "import_module", installed.__getitem__)
    reader = nvml.reader(None)
    assert reader.is_quick
    assert reader.read() == nvml.Nvml(FakeLibrary(), None).read()
    assert not smi


def test_every_function_has_the_name_that_cuda_bindings_gives_it():
    library = pytest.importorskip("cuda.bindings.nvml", reason="this cuda-bindings has no NVML")
    found = nvml.Bindings(library)
    assert all(callable(getattr(found, name)) for name in nvml.PYNVML)
    assert (int(found.NVML_CLOCK_SM), int(found.NVML_CLOCK_MEM), int(found.NVML_TEMPERATURE_GPU)) == (1, 2, 0)


@pytest.mark.parametrize(
    ("device", "handle"),
    [
        (None, "gpu 0"),
        ("2", "gpu 2"),
        ("GPU-aa", "handle of GPU-aa"),
        ("MIG-bb", "parent of handle of MIG-bb"),
    ],
)
def test_the_whole_gpu_is_read_whatever_was_chosen(device, handle):
    assert nvml.Nvml(FakeLibrary(), device)._handle == handle


SMI = {
    "--query-gpu": "1980, 2619, 350.12, 41, 0x0000000000000004, Disabled",
    "--query-compute-apps": "12\n7",
    "-L": (
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aa)\n"
        "  MIG 1g.10gb     Device  0: (UUID: MIG-bb)\n"
        "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-cc)"
    ),
}
DEVICES = (
    Listed(0, "GPU-aa", "NVIDIA H100 80GB HBM3"),
    Listed(0, "MIG-bb", "1g.10gb"),
    Listed(1, "GPU-cc", "NVIDIA H100 80GB HBM3"),
)


@pytest.fixture
def smi(monkeypatch):
    """nvidia-smi with these answers, and a list of what it was asked."""
    asked = []

    def answer(*words):
        asked.append(words)
        return SMI[words[0].partition("=")[0]]

    monkeypatch.setattr(nvml, "_smi", answer)
    return asked


def test_a_reading_comes_from_the_program_where_there_is_no_library(smi):
    assert nvml.Smi("1").read() == Reading(1980, 2619, 350.12, 41, ("power cap",), (7, 12), False)
    assert smi[-1][-2:] == ("-i", "1")


def test_what_the_program_does_not_know_is_a_gap(smi, monkeypatch):
    monkeypatch.setitem(SMI, "--query-gpu", "[N/A], 2619, [Not Supported], 41, [N/A], [N/A]")
    monkeypatch.setitem(SMI, "--query-compute-apps", "")
    assert nvml.Smi(None).read() == Reading(None, 2619, None, 41)


def test_a_slice_is_read_through_the_gpu_that_it_is_cut_from(smi):
    nvml.Smi("MIG-bb").read()
    assert smi[-1][-2:] == ("-i", "0")


def test_where_there_is_nothing_to_ask_nothing_is_read(monkeypatch):
    monkeypatch.setattr(nvml.shutil, "which", lambda program: None)
    monkeypatch.setattr(nvml, "import_module", lambda name: 1 // 0)
    assert nvml.reader(None).read() is None
    assert nvml.dirt(None, None, frozenset()) == ()


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (Reading(1980), Reading(1980), ()),
        (Reading(1980), Reading(1783), ()),
        (Reading(1980), Reading(1700), ("clock fell from 1980 to 1700 MHz",)),
        (Reading(345), Reading(1980), ()),
        (Reading(1980), Reading(345, is_idle=True), ()),
        (Reading(), Reading(throttling=("power cap",)), ("throttled: power cap",)),
        (Reading(processes=(1, 2)), Reading(processes=(1, 2)), ()),
        (Reading(processes=(1, 2)), Reading(processes=(1, 2, 50)), ("1 other process on the device",)),
        (Reading(processes=(50, 51)), Reading(processes=(50, 51)), ()),
        (Reading(processes=(50,)), Reading(processes=(50, 51, 52)), ("2 other processes on the device",)),
    ],
    ids=[
        "nothing happened",
        "a clock a little lower",
        "a clock much lower",
        "a clock that rose from idle",
        "a clock that falls because nothing runs",
        "throttled",
        "only ours",
        "somebody else",
        "another count of processes, the same as before",
        "another count of processes, and more of them",
    ],
)
def test_what_happened_between_two_readings_is_named(before, after, found):
    assert nvml.dirt(before, after, frozenset((1, 2))) == found


def test_devices_and_slices_are_listed(smi):
    assert nvml.listed() == DEVICES
    assert list(map(str, DEVICES)) == [
        "0: NVIDIA H100 80GB HBM3 (GPU-aa)",
        "slice of 0: 1g.10gb (MIG-bb)",
        "1: NVIDIA H100 80GB HBM3 (GPU-cc)",
    ]


@pytest.mark.parametrize("device", ["1", "GPU-cc", "MIG-bb"])
def test_a_worker_sees_the_device_that_was_chosen(device):
    assert nvml.settings(device, DEVICES) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": device}


@pytest.mark.parametrize(
    ("device", "message"),
    [("2", "no device 2; there are: 0: NVIDIA H100"), ("0", "device 0 is cut into slices.*slice of 0: 1g.10gb")],
)
def test_a_device_that_cannot_be_chosen_lists_those_that_can(device, message):
    with pytest.raises(DeviceError, match=message):
        nvml.settings(device, DEVICES)


def test_without_a_choice_or_a_list_nothing_is_refused():
    assert nvml.settings(None, DEVICES) == {}
    assert nvml.settings("3", ())["CUDA_VISIBLE_DEVICES"] == "3"
