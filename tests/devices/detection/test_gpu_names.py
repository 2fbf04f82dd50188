"""The profile of a GPU by the name that its driver gives it."""

import pytest

from edgelm.devices.detection.machine import DetectedGpu
from edgelm.devices.detection.nvidia import gpu_profile
from tests.devices.test_profile import DELIVERED

GIB = 2**30
KNOWN = [
    *("rtx-3050-laptop", "rtx-3050-6gb-laptop", "rtx-3050ti-laptop"),
    *("rtx-3080-laptop", "rtx-3080ti-laptop", "rtx-4060-laptop", "rtx-4070-laptop"),
    *("rtx-4090-laptop", "rtx-4090", "rtx-5070-laptop", "rtx-5070ti-laptop", "rtx-5090"),
    *("rtx-2000-ada-laptop", "rtx-a1000-laptop", "rtx-a5500-laptop", "dgx-spark-gb10"),
    *("h100-pcie-80gb", "h100-sxm-80gb", "h200-sxm-141gb", "jetson-orin-nano-8gb", "cpu"),
]


@pytest.mark.parametrize(
    ("name", "gib", "laptop", "profile"),
    [
        ("NVIDIA GeForce RTX 3080 Laptop GPU", 15.99, True, "rtx-3080-laptop-16gb"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", 7.99, True, "rtx-3080-laptop"),
        ("NVIDIA RTX A2000 8GB Laptop GPU", 8.0, True, "rtx-a2000-laptop-8gb"),
        ("NVIDIA RTX A2000 Laptop GPU", 4.0, True, "rtx-a2000-laptop"),
        ("NVIDIA RTX A1000 6GB Laptop GPU", 6.0, True, "rtx-a1000-laptop-6gb"),
        ("NVIDIA RTX A3000 12GB Laptop GPU", 12.0, True, "rtx-a3000-laptop-12gb"),
        ("NVIDIA RTX A4500 Laptop GPU", 16.0, True, "rtx-a4500-laptop"),
        ("NVIDIA RTX 500 Ada Generation Laptop GPU", 4.0, True, "rtx-500-ada-laptop"),
        (
            "NVIDIA RTX PRO 2000 Blackwell Generation Laptop GPU",
            7.96,
            True,
            "rtx-pro-2000-blackwell-laptop",
        ),
        ("NVIDIA RTX PRO 2000 Blackwell", 15.9, False, None),
        ("NVIDIA GeForce RTX 2060", 6.0, True, "rtx-2060-laptop"),
        ("NVIDIA GeForce RTX 2060", 6.0, False, None),
        ("NVIDIA GeForce RTX 2070 with Max-Q Design", 8.0, False, "rtx-2070-laptop"),
        ("NVIDIA GeForce RTX 2070 Super with Max-Q Design", 8.0, True, "rtx-2070-super-laptop"),
        ("NVIDIA GeForce GTX 1650 Ti", 4.0, True, "gtx-1650ti-laptop"),
        ("NVIDIA GeForce RTX 2050", 4.0, True, "rtx-2050-laptop"),
        ("NVIDIA GeForce RTX 3060", 12.0, False, "rtx-3060-12gb"),
        ("NVIDIA GeForce RTX 3060", 8.0, False, None),
        ("NVIDIA GeForce RTX 5060 Ti", 15.93, False, "rtx-5060ti-16gb"),
        ("NVIDIA GeForce RTX 5060 Ti", 7.96, False, "rtx-5060ti-8gb"),
        ("NVIDIA GeForce RTX 4060", 8.0, False, "rtx-4060"),
        ("NVIDIA L4", 22.5, False, "l4"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.75, False, "h100-sxm-80gb"),
        ("NVIDIA GeForce RTX 5090 D", 31.8, False, None),
    ],
)
def test_delivered_profile_by_name(
    name: str, gib: float, laptop: bool, profile: str | None
) -> None:
    gpu = DetectedGpu(name, memory_bytes=int(gib * GIB))
    assert gpu_profile(gpu, sorted(DELIVERED), laptop=laptop) == profile


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
