"""Packages that install the same folder over each other."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.packages.onnxruntimes import folder, needless_gpu_package, two_packages
from edgelm.devices.detection.machine import Machine, Unread
from tests.devices.checks.recorded import (
    FOLDER,
    LAPTOP,
    ORIN_NANO,
    PLAIN,
    WHERE_IS_IT,
    context,
    with_packages,
)


@pytest.mark.parametrize(
    ("machine", "fix"),
    [
        (PLAIN, "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime"),
        (
            LAPTOP,
            "pip uninstall -y onnxruntime onnxruntime-gpu && "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'",
        ),
        (
            ORIN_NANO,
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --index-url "
            "https://pypi.jetson-ai-lab.io/jp6/cu126 onnxruntime-gpu (if it has none for Python "
            "3.11: build it on the Jetson with CMAKE_CUDA_ARCHITECTURES=87)",
        ),
    ],
    ids=["no-gpu", "laptop", "jetson"],
)
def test_two_packages(machine: Machine, fix: str, tmp_path: Path) -> None:
    both = with_packages(machine, onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    verdict = two_packages(context(both, tmp_path))
    assert verdict
    assert verdict.severity == "error"
    assert verdict.what == (
        "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are all installed; expected one of them"
    )
    assert "share the folder onnxruntime" in verdict.why
    assert verdict.fix == fix


def test_one_package(tmp_path: Path) -> None:
    verdict = two_packages(context(with_packages(PLAIN, onnxruntime="1.32.0"), tmp_path))
    assert verdict
    assert verdict.severity == "ok"
    assert verdict.what == "onnxruntime 1.32.0 is the only onnxruntime package"


def test_packages_that_detection_does_not_list_are_asked_for(tmp_path: Path) -> None:
    here = context(
        with_packages(PLAIN, onnxruntime="1.32.0"),
        tmp_path,
        versions={"onnxruntime-openvino": "1.24.1"},
    )
    verdict = two_packages(here)
    assert verdict
    assert verdict.severity == "error"
    assert "onnxruntime-openvino 1.24.1" in verdict.what


def test_no_package(tmp_path: Path) -> None:
    assert two_packages(context(PLAIN, tmp_path)) is None


def test_gpu_package_without_a_gpu(tmp_path: Path) -> None:
    verdict = needless_gpu_package(
        context(with_packages(PLAIN, onnxruntime_gpu="1.31.1"), tmp_path)
    )
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == "onnxruntime-gpu 1.31.1 is installed, but no NVIDIA GPU was found"
    assert verdict.fix.startswith("pip uninstall -y onnxruntime-gpu && pip install onnxruntime;")


def test_gpu_package_with_a_gpu(tmp_path: Path) -> None:
    unread = (Unread("NVIDIA GPU", "NVML", "driver not loaded"),)
    for machine in (LAPTOP, ORIN_NANO, msgspec.structs.replace(PLAIN, unread=unread)):
        verdict = needless_gpu_package(
            context(with_packages(machine, onnxruntime_gpu="1.31.1"), tmp_path)
        )
        assert verdict
        assert verdict.severity == "ok"


def test_no_gpu_package(tmp_path: Path) -> None:
    assert needless_gpu_package(context(LAPTOP, tmp_path)) is None


def test_folder_is_where_python_says(tmp_path: Path) -> None:
    here = context(PLAIN, tmp_path, answers={WHERE_IS_IT: f"a warning\n{FOLDER}\n"})
    assert folder(here) == tmp_path / "site-packages/onnxruntime"


def test_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot find a module onnxruntime"):
        folder(context(PLAIN, tmp_path, answers={WHERE_IS_IT: "\n"}))


def test_folder_when_python_does_not_answer(tmp_path: Path) -> None:
    timeout = OSError("python: Command '['python', '-c', 'x']' timed out after 5.0 seconds")
    with pytest.raises(OSError, match=r"^Python: timed out after 5.0 seconds$"):
        folder(context(PLAIN, tmp_path, answers={WHERE_IS_IT: timeout}))
