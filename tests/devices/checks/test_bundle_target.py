"""Whether a bundle was exported for this machine: the first thing that the doctor says of it."""

from pathlib import Path

import msgspec
import pytest

from edgelm.bundle import EngineRequirement, Manifest
from edgelm.devices.checks.bundle_target import bundle_target
from edgelm.devices.detection.machine import Jetson, Machine
from tests.devices.checks.recorded import LAPTOP, ORIN_NANO, PLAIN, context, manifest

CPU = manifest()
CUDA = manifest(target="h100-pcie-80gb", engine=EngineRequirement("onnxruntime-cuda"))
ORIN = manifest("decomposed", "jetson-orin-nano-8gb", compute_capabilities=(87,))
RTX = manifest(
    "standard",
    "rtx-4060-laptop",
    engine=EngineRequirement("tensorrt-rtx", "1.4", (89, 120)),
)
UNREAD_SM = msgspec.structs.replace(
    LAPTOP, gpus=(msgspec.structs.replace(LAPTOP.gpus[0], sm=None),)
)
UNKNOWN_JETSON = msgspec.structs.replace(ORIN_NANO, gpus=(), jetson=Jetson("NVIDIA Jetson"))


@pytest.mark.parametrize(
    ("bundle", "machine", "severity"),
    [
        (CPU, PLAIN, "ok"),
        (CPU, LAPTOP, "ok"),
        (CPU, ORIN_NANO, "ok"),
        (CUDA, PLAIN, "error"),
        (CUDA, LAPTOP, "ok"),
        (ORIN, PLAIN, "error"),
        (ORIN, LAPTOP, "error"),
        (ORIN, ORIN_NANO, "ok"),
        (ORIN, UNKNOWN_JETSON, "unknown"),
        (RTX, PLAIN, "error"),
        (RTX, LAPTOP, "ok"),
        (RTX, ORIN_NANO, "error"),
        (RTX, UNKNOWN_JETSON, "error"),
        (RTX, UNREAD_SM, "unknown"),
    ],
)
def test_verdict(bundle: Manifest, machine: Machine, severity: str, tmp_path: Path) -> None:
    verdict = bundle_target(context(machine, tmp_path, manifest=bundle))
    assert verdict
    assert verdict.severity == severity


def test_message_names_both_devices_and_what_to_do(tmp_path: Path) -> None:
    verdict = bundle_target(context(PLAIN, tmp_path, manifest=ORIN))
    assert verdict
    assert verdict.what == (
        "this bundle is for Jetson Orin Nano 8GB (tensorrt, sm_87); this machine has no NVIDIA GPU"
    )
    assert verdict.fix.endswith("edge-export MODEL --target cpu")
    laptop = msgspec.structs.replace(LAPTOP, profile="rtx-4060-laptop")
    verdict = bundle_target(context(laptop, tmp_path, manifest=ORIN))
    assert verdict
    assert verdict.what.endswith("; this machine has NVIDIA GeForce RTX 4060 Laptop GPU (sm_89)")
    assert verdict.fix.endswith("--target rtx-4060-laptop")


def test_a_target_that_only_the_exporting_machine_knew(tmp_path: Path) -> None:
    bundle = msgspec.structs.replace(ORIN, target="my-board")
    verdict = bundle_target(context(PLAIN, tmp_path, manifest=bundle))
    assert verdict
    assert verdict.what.startswith("this bundle is for my-board (tensorrt, sm_87)")


def test_without_a_bundle(tmp_path: Path) -> None:
    assert bundle_target(context(PLAIN, tmp_path)) is None
