"""NVIDIA GPUs as NVML tells them, and when it does not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgelm.devices.detection.machine import DetectedGpu, Unread
from edgelm.devices.detection.nvidia import read_gpus
from tests.devices.recorded_machines import (
    RecordedNvml,
    failing,
    nvml_module,
    recorded,
    recording,
)

GIB = 2**30
MACHINE_BYTES = 128 * GIB
LAPTOP = DetectedGpu(
    name="NVIDIA GeForce RTX 4060 Laptop GPU",
    sm=89,
    sm_count=24,
    memory_bytes=8_585_740_288,
    memory_kind="dedicated",
    driver="580.95.05",
    cuda="13.0",
    power_limit_w=80.0,
    max_clock_mhz=3105,
)


def answers(machine: str) -> RecordedNvml:
    nvml = recording(machine).nvml
    assert nvml
    return nvml


def read_laptop(folder: Path, **functions: Any) -> tuple[list[DetectedGpu], list[Unread]]:
    nvml = nvml_module(answers("rtx-4060-laptop"), **functions)
    return read_gpus(recorded("rtx-4060-laptop", folder, nvml=nvml), MACHINE_BYTES)


def test_laptop(tmp_path: Path) -> None:
    assert read_laptop(tmp_path) == ([LAPTOP], [])


def test_older_bindings_answer_with_bytes(tmp_path: Path) -> None:
    gpus, unread = read_laptop(
        tmp_path,
        nvmlDeviceGetName=lambda _: LAPTOP.name.encode(),
        nvmlSystemGetDriverVersion=lambda: b"580.95.05",
    )
    assert (gpus, unread) == ([LAPTOP], [])


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (
            "gb10",
            DetectedGpu(
                "NVIDIA GB10",
                sm=121,
                sm_count=48,
                memory_bytes=MACHINE_BYTES,
                memory_kind="shared",
                driver="580.126.09",
                cuda="13.0",
                max_clock_mhz=3003,
            ),
        ),
        (
            "thor-t5000",
            DetectedGpu(
                "NVIDIA Thor",
                sm=110,
                memory_bytes=MACHINE_BYTES,
                memory_kind="shared",
                driver="580.00",
                cuda="13.0",
            ),
        ),
        (
            "orin-nano-super",
            DetectedGpu(
                "Orin (nvgpu)",
                sm=87,
                memory_bytes=MACHINE_BYTES,
                memory_kind="shared",
                driver="540.4.0",
                cuda="12.6",
            ),
        ),
    ],
    ids=["gb10", "thor", "orin"],
)
def test_not_supported_is_an_answer(tmp_path: Path, machine: str, expected: DetectedGpu) -> None:
    assert read_gpus(recorded(machine, tmp_path), MACHINE_BYTES) == ([expected], [])


def test_integrated_gpu_whose_driver_reports_memory(tmp_path: Path) -> None:
    nvml = nvml_module(answers("gb10"), nvmlDeviceGetMemoryInfo=failing("must not be asked"))
    gpus, _ = read_gpus(recorded("gb10", tmp_path, nvml=nvml), MACHINE_BYTES)
    assert (gpus[0].memory_bytes, gpus[0].memory_kind) == (MACHINE_BYTES, "shared")


def test_memory_that_cannot_be_read_is_not_the_machines(tmp_path: Path) -> None:
    gpus, unread = read_laptop(tmp_path, nvmlDeviceGetMemoryInfo=failing("GPU is lost"))
    assert (gpus[0].memory_bytes, gpus[0].memory_kind) == (None, None)
    what = "memory of NVIDIA GeForce RTX 4060 Laptop GPU"
    assert unread == [Unread(what, "NVML nvmlDeviceGetMemoryInfo", "GPU is lost")]


def test_every_function_may_fail(tmp_path: Path) -> None:
    names = [
        name for name in vars(nvml_module(answers("gb10"))) if name.startswith("nvmlDeviceGet")
    ]
    names = [name for name in names if name[13:] not in ("Count", "HandleByIndex")]
    functions = {name: failing("Unknown Error") for name in names}
    gpus, unread = read_laptop(tmp_path, **functions)
    assert gpus == [DetectedGpu("NVIDIA GPU", driver="580.95.05", cuda="13.0")]
    assert {it.where for it in unread} == {f"NVML {name}" for name in names}


def test_function_that_an_older_binding_lacks(tmp_path: Path) -> None:
    nvml = nvml_module(answers("rtx-4060-laptop"))
    del nvml.nvmlDeviceGetNumGpuCores
    gpus, unread = read_gpus(recorded("rtx-4060-laptop", tmp_path, nvml=nvml), MACHINE_BYTES)
    assert gpus[0].sm_count is None
    assert [it.where for it in unread] == ["NVML nvmlDeviceGetNumGpuCores"]


def test_one_gpu_of_two_is_lost(tmp_path: Path) -> None:
    def handle(index: int) -> int:
        if index == 0:
            failing("GPU is lost")()
        return 0

    gpus, unread = read_laptop(
        tmp_path, nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetHandleByIndex=handle
    )
    assert gpus == [LAPTOP]
    assert unread == [Unread("GPU 0", "NVML nvmlDeviceGetHandleByIndex", "GPU is lost")]


def test_nvml_is_shut_down(tmp_path: Path) -> None:
    calls: list[str] = []

    def shutdown() -> None:
        calls.append("shutdown")
        failing("Uninitialized")()

    assert read_laptop(tmp_path, nvmlShutdown=shutdown) == ([LAPTOP], [])
    assert calls == ["shutdown"]


def test_stand_in_has_nothing_that_nvidias_binding_lacks() -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    assert [name for name in vars(nvml_module(answers("gb10"))) if not hasattr(pynvml, name)] == []


SIGNS = {
    "driver": {"/proc/driver/nvidia/version": "NVRM"},
    "device": {"/dev/nvidia0": ""},
    "wsl": {"/usr/lib/wsl/lib/libnvidia-ml.so.1": ""},
    "pci": {
        "/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
        "/sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
    },
}


@pytest.mark.parametrize("sign", SIGNS)
def test_sign_of_a_gpu_without_the_package(tmp_path: Path, sign: str) -> None:
    gpus, unread = read_gpus(recorded("plain-pc", tmp_path, files=SIGNS[sign]), MACHINE_BYTES)
    why = "needs the package nvidia-ml-py: pip install 'edgelm[nvml]'"
    assert (gpus, unread) == ([], [Unread("NVIDIA GPU", "NVML", why)])


@pytest.mark.parametrize(
    ("functions", "why"),
    [
        ({"nvmlInit": failing("Driver Not Loaded")}, "Driver Not Loaded"),
        ({"nvmlDeviceGetCount": lambda: 0}, "lists no GPU"),
    ],
    ids=["no-driver", "none-listed"],
)
def test_nothing_through_nvml(tmp_path: Path, functions: dict[str, Any], why: str) -> None:
    assert read_laptop(tmp_path, **functions) == ([], [Unread("NVIDIA GPU", "NVML", why)])


@pytest.mark.parametrize(
    "functions",
    [{"nvmlInit": failing("NVML Shared Library Not Found")}, {"nvmlDeviceGetCount": lambda: 0}],
    ids=["no-library", "none-listed"],
)
def test_plain_pc_hears_nothing_of_nvidia(tmp_path: Path, functions: dict[str, Any]) -> None:
    assert read_gpus(recorded("plain-pc", tmp_path), MACHINE_BYTES) == ([], [])
    nvml = nvml_module(answers("gb10"), **functions)
    assert read_gpus(recorded("plain-pc", tmp_path, nvml=nvml), MACHINE_BYTES) == ([], [])


PART = SimpleNamespace(total=int(9.75 * GIB))


def test_part_of_a_divided_gpu(tmp_path: Path) -> None:
    def memory(handle: object) -> SimpleNamespace:
        if handle != "part":
            failing("Insufficient Permissions")()
        return PART

    parts = {
        "nvmlDeviceGetMigMode": lambda _: (1, 1),
        "nvmlDeviceGetMaxMigDeviceCount": lambda _: 7,
        "nvmlDeviceGetMigDeviceHandleByIndex": lambda _, index: "part" if index == 2 else None,
        "nvmlDeviceGetAttributes_v2": lambda _: SimpleNamespace(multiprocessorCount=16),
        "nvmlDeviceGetMemoryInfo": memory,
    }
    ((gpu,), unread) = read_laptop(tmp_path, **parts)
    assert (gpu.mig, gpu.sm_count, gpu.memory_bytes) == (True, 16, PART.total)
    assert unread == []


def test_part_that_does_not_show_its_memory(tmp_path: Path) -> None:
    denied = {"nvmlDeviceGetMemoryInfo": failing("Insufficient Permissions")}
    ((gpu,), (entry,)) = read_laptop(tmp_path, **denied)
    assert (gpu.mig, gpu.sm_count, gpu.memory_bytes, gpu.memory_kind) == (True, None, None, None)
    assert entry.why.startswith("Insufficient Permissions; this is how a part of a divided GPU")


def test_card_without_a_memory_figure_has_not_the_machines(tmp_path: Path) -> None:
    nvml = answers("rtx-4060-laptop")
    bare = msgspec.structs.replace(
        nvml, gpus=[msgspec.structs.replace(nvml.gpus[0], memory_bytes=None)]
    )
    probes = recorded("rtx-4060-laptop", tmp_path, nvml=nvml_module(bare))
    ((gpu,), (entry,)) = read_gpus(probes, MACHINE_BYTES)
    assert (gpu.memory_bytes, gpu.memory_kind) == (None, None)
    assert "--max-memory" in entry.why


def test_power_limits(tmp_path: Path) -> None:
    limits = {
        "nvmlDeviceGetPowerManagementDefaultLimit": lambda _: 55_000,
        "nvmlDeviceGetPowerManagementLimitConstraints": lambda _: (5_000, 105_000),
    }
    ((gpu,), _) = read_laptop(tmp_path, **limits)
    assert (gpu.power_limit_w, gpu.default_power_limit_w, gpu.max_power_limit_w) == (80, 55, 105)
