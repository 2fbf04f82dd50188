"""NVIDIA GPUs as NVML tells them, and when it does not."""

from pathlib import Path
from typing import Any

import pytest

from edgelm.devices.detection.machine import DetectedGpu, Unread
from edgelm.devices.detection.nvidia import gpu_profile, read_gpus
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
KNOWN = [
    *("rtx-3050-laptop", "rtx-3050-6gb-laptop", "rtx-3050ti-laptop"),
    *("rtx-3080-laptop", "rtx-3080ti-laptop", "rtx-4060-laptop", "rtx-4070-laptop"),
    *("rtx-4090-laptop", "rtx-4090", "rtx-5070-laptop", "rtx-5070ti-laptop", "rtx-5090"),
    *("rtx-2000-ada-laptop", "rtx-a1000-laptop", "rtx-a5500-laptop", "dgx-spark-gb10"),
    *("h100-pcie-80gb", "h100-sxm-80gb", "h200-sxm-141gb", "jetson-orin-nano-8gb", "cpu"),
]


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


@pytest.mark.parametrize(
    ("name", "gib", "profile"),
    [
        ("NVIDIA GeForce RTX 4060 Laptop GPU", 7.99, "rtx-4060-laptop"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.99, "rtx-4090-laptop"),
        ("NVIDIA GeForce RTX 4090", 23.99, "rtx-4090"),
        ("NVIDIA GeForce RTX 3050 Laptop GPU", 4.0, "rtx-3050-laptop"),
        ("NVIDIA GeForce RTX 3050 Laptop GPU", 5.99, "rtx-3050-6gb-laptop"),
        ("NVIDIA GeForce RTX 3050 6GB Laptop GPU", 5.99, "rtx-3050-6gb-laptop"),
        ("NVIDIA GeForce RTX 3050 Ti Laptop GPU", 4.0, "rtx-3050ti-laptop"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", 15.99, "rtx-3080-laptop"),
        ("NVIDIA GeForce RTX 5070 Ti Laptop GPU", 11.9, "rtx-5070ti-laptop"),
        ("NVIDIA RTX 2000 Ada Generation Laptop GPU", 7.99, "rtx-2000-ada-laptop"),
        ("NVIDIA RTX A5500 Laptop GPU", 15.9, "rtx-a5500-laptop"),
        ("NVIDIA RTX A1000 6GB Laptop GPU", 5.99, "rtx-a1000-laptop"),
        ("NVIDIA GB10", 121.7, "dgx-spark-gb10"),
        ("NVIDIA H100 80GB HBM3", 79.65, "h100-sxm-80gb"),
        ("NVIDIA H100 PCIe", 79.65, "h100-pcie-80gb"),
        ("NVIDIA H200", 140.4, "h200-sxm-141gb"),
        ("NVIDIA H200 NVL", 140.4, None),
        ("NVIDIA GeForce RTX 4060", 7.99, None),
        ("NVIDIA GeForce RTX 5090 D", 31.8, None),
        ("NVIDIA GeForce RTX 2060", 6.0, None),
        ("NVIDIA GPU", None, None),
    ],
)
def test_profile_by_name(name: str, gib: float | None, profile: str | None) -> None:
    gpu = DetectedGpu(name, memory_bytes=int(gib * GIB) if gib else None)
    assert gpu_profile(gpu, KNOWN) == profile
