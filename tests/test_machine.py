"""What was measured on is described once, and a GPU is asked by a process that ends."""

import json
import sys

from bench import machine, nvml


def test_a_machine_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(machine, "_gpu_names", lambda: None)
    monkeypatch.setattr(machine, "CONTROL_DEVICE", machine.ROOT / "no such file")
    monkeypatch.setattr(nvml, "listed", lambda: ())
    found = machine.describe()
    assert found["gpu"] is None
    assert found["cuda_device"] == {}
    assert found["gpu_slices"] == []


def test_the_chosen_device_is_asked_by_a_process_that_sees_no_other(monkeypatch):
    asked = []

    def command(*words, seconds=10, settings=None):
        if words[0] == sys.executable:
            asked.append(settings)
            return "a library's greeting\n" + json.dumps({"name": "H100", "l2_bytes": 52428800})
        return "580.1" if "driver_version" in str(words) else None

    monkeypatch.setattr(machine, "_command", command)
    monkeypatch.setattr(machine, "_gpu_names", lambda: "H100\nH100")
    monkeypatch.setattr(nvml, "listed", lambda: (nvml.Listed(1, "GPU-cc", "H100"), nvml.Listed(0, "MIG-bb", "1g.10gb")))
    found = machine.describe("1")
    assert asked == [{"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}]
    assert found["cuda_device"] == {"name": "H100", "l2_bytes": 52428800}
    assert found["gpu_driver"] == "580.1"
    assert found["gpu_slices"] == ["slice of 0: 1g.10gb (MIG-bb)"]


def test_the_question_to_the_device_runs():
    """In a process of its own, as it is asked; without a GPU the answer is empty."""
    found = machine._command(sys.executable, "-c", machine.DESCRIBE_DEVICE, seconds=60)
    assert set(json.loads(found.splitlines()[-1])) in (
        set(),
        {"name", "uuid", "compute_capability", "memory_bytes", "l2_bytes", "multiprocessors", "driver_cuda"},
    )
