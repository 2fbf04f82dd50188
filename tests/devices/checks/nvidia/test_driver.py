"""Whether the driver, or JetPack, knows the CUDA of the wheels."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.nvidia.driver import cuda_driver
from edgelm.devices.detection.machine import DetectedGpu, Machine, Unread
from tests.devices.checks.recorded import (
    FOLDER,
    LAPTOP,
    ORIN_NANO,
    PLAIN,
    WHERE_IS_IT,
    context,
    with_jetson,
    with_packages,
)

BUILD_INFO = f"{FOLDER}/capi/build_and_package_info.py"
CUDA_13 = "package_name = 'onnxruntime-gpu'\n__version__ = '1.31.1'\ncuda_version = '13.0'\n"
CUDA_12 = CUDA_13.replace("13.0", "12.8")


def with_driver(machine: Machine, driver: str | None) -> Machine:
    gpus = tuple(msgspec.structs.replace(gpu, driver=driver) for gpu in machine.gpus)
    return msgspec.structs.replace(machine, gpus=gpus)


@pytest.mark.parametrize(
    ("driver", "info", "severity", "what"),
    [
        ("580.95.05", CUDA_13, "ok", "driver 580.95.05 runs CUDA 13 (onnxruntime-gpu)"),
        (
            "575.57.08",
            CUDA_13,
            "error",
            "driver 575.57.08 is too old for onnxruntime-gpu, built for CUDA 13; expected 580 or "
            "newer",
        ),
        ("535.183.01", CUDA_12, "ok", "driver 535.183.01 runs CUDA 12 (onnxruntime-gpu)"),
        (
            "470.256.02",
            CUDA_12,
            "error",
            "driver 470.256.02 is too old for onnxruntime-gpu, built for CUDA 12; expected 525 or "
            "newer",
        ),
        (
            "580.95.05",
            CUDA_13.replace("13.0", "14.0"),
            "unknown",
            "whether driver 580.95.05 is new enough for onnxruntime-gpu",
        ),
    ],
)
def test_driver(driver: str, info: str, severity: str, what: str, tmp_path: Path) -> None:
    machine = with_packages(with_driver(LAPTOP, driver), onnxruntime_gpu="1.31.1")
    verdict = cuda_driver(
        context(machine, tmp_path, files={BUILD_INFO: info}, answers={WHERE_IS_IT: FOLDER})
    )
    assert verdict
    assert (verdict.severity, verdict.what) == (severity, what)
    assert verdict.fix.startswith("install NVIDIA driver") == (severity == "error")


def test_tensorrt_rtx_names_its_cuda(tmp_path: Path) -> None:
    machine = with_packages(with_driver(LAPTOP, "550.10"), tensorrt_rtx_cu13="1.7.1.116")
    verdict = cuda_driver(context(machine, tmp_path))
    assert verdict
    assert verdict.severity == "error"
    assert verdict.what.startswith("driver 550.10 is too old for tensorrt-rtx-cu13")


def test_unknown_driver(tmp_path: Path) -> None:
    machine = msgspec.structs.replace(
        with_packages(PLAIN, tensorrt_rtx_cu13="1.7.1.116"),
        unread=(Unread("NVIDIA GPU", "NVML", "driver not loaded"),),
    )
    verdict = cuda_driver(context(machine, tmp_path))
    assert verdict
    assert verdict.severity == "unknown"
    assert verdict.why == "NVML: driver not loaded"


@pytest.mark.parametrize(
    ("l4t", "severity", "what"),
    [
        (
            "36.4.3",
            "error",
            "onnxruntime-gpu is built for CUDA 13, JetPack 6.2 has 12.6",
        ),
        ("39.2.0", "ok", "JetPack 7.2 has CUDA 13.2, onnxruntime-gpu needs 13"),
        ("99.1", "unknown", "the CUDA version of this JetPack"),
        (None, "unknown", "the CUDA version of this JetPack"),
    ],
)
def test_jetson(l4t: str | None, severity: str, what: str, tmp_path: Path) -> None:
    machine = with_packages(with_jetson(ORIN_NANO, l4t=l4t), onnxruntime_gpu="1.31.1")
    # The number of a Jetson's driver means nothing here.
    machine = msgspec.structs.replace(machine, gpus=(DetectedGpu("Orin", driver="540.4.0"),))
    verdict = cuda_driver(
        context(machine, tmp_path, files={BUILD_INFO: CUDA_13}, answers={WHERE_IS_IT: FOLDER})
    )
    assert verdict
    assert (verdict.severity, verdict.what) == (severity, what)
    if severity == "error":
        assert verdict.fix.startswith("pip uninstall -y onnxruntime-gpu && pip install --index-")


def test_other_wheels_on_a_jetson(tmp_path: Path) -> None:
    verdict = cuda_driver(context(with_packages(ORIN_NANO, tensorrt_cu13="11.4.0"), tmp_path))
    assert verdict
    assert verdict.fix == "pip uninstall -y tensorrt-cu13, or upgrade to JetPack 7 (CUDA 13)"


def test_nothing_to_look_at(tmp_path: Path) -> None:
    assert cuda_driver(context(LAPTOP, tmp_path)) is None
    assert cuda_driver(context(with_packages(PLAIN, tensorrt_cu13="11.4.0"), tmp_path)) is None
    cpu_build = context(
        with_packages(LAPTOP, onnxruntime_gpu="1.31.1"),
        tmp_path,
        files={BUILD_INFO: "package_name = 'onnxruntime'\n"},
        answers={WHERE_IS_IT: FOLDER},
    )
    assert cuda_driver(cpu_build) is None


def test_build_that_cannot_be_read(tmp_path: Path) -> None:
    here = context(
        with_packages(LAPTOP, onnxruntime_gpu="1.31.1"), tmp_path, answers={WHERE_IS_IT: FOLDER}
    )
    with pytest.raises(FileNotFoundError):
        cuda_driver(here)
