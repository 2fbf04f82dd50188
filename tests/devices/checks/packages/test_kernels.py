"""Whether wheels hold kernels for the GPU that is there."""

import json
from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.packages.kernels import covers, onnxruntime_kernels, torch_kernels
from edgelm.devices.checks.packages.providers import CUDA_LIBRARY
from edgelm.devices.detection.machine import Machine
from tests.devices.checks.nvidia.test_fatbin import SASS, entry, fat_binary
from tests.devices.checks.recorded import (
    FOLDER,
    LAPTOP,
    ORIN_NANO,
    PLAIN,
    WHERE_IS_IT,
    WHICH_TORCH,
    context,
    with_jetson,
    with_packages,
)

X86_WHEEL = (75, 80, 86, 89, 90, 120)  # onnxruntime-gpu 1.31.1 from PyPI
ARM_WHEEL = (89, 90, 120, 121)
LIBRARY = f"{FOLDER}/{CUDA_LIBRARY}"
ORIN = with_packages(ORIN_NANO, onnxruntime_gpu="1.31.1")


def library(*capabilities: int) -> bytes:
    return fat_binary(*(entry(SASS, capability) for capability in capabilities))


def with_sm(machine: Machine, sm: int | None) -> Machine:
    gpus = tuple(msgspec.structs.replace(gpu, sm=sm) for gpu in machine.gpus)
    return msgspec.structs.replace(machine, gpus=gpus)


@pytest.mark.parametrize(
    ("targets", "sm", "jetson", "expected"),
    [
        (["sm_86", "sm_89"], 89, False, True),
        (["sm_86"], 89, False, True),
        (["sm_89"], 86, False, False),
        (["sm_75"], 86, False, False),
        (["sm_87"], 87, True, True),
        (["sm_80", "sm_90"], 87, True, None),
        (["sm_89", "sm_90", "sm_120"], 87, True, False),
        (["compute_80"], 87, True, True),
        (["compute_87"], 87, True, True),
        (["compute_90"], 87, True, False),
        (["sm_90a", "compute_90a"], 100, False, False),
        (["sm_120"], 121, False, None),
        (["sm_100f"], 103, False, None),
        (["sm_120a"], 121, False, False),
        (["sm_120a"], 120, False, True),
        (["gfx90a"], 89, False, False),
        ([], 89, False, False),
    ],
)
def test_covers(targets: list[str], sm: int, jetson: bool, expected: bool | None) -> None:
    assert covers(targets, sm, jetson=jetson) is expected


def test_wheel_for_servers_on_a_jetson(tmp_path: Path) -> None:
    verdict = onnxruntime_kernels(
        context(ORIN, tmp_path, files={LIBRARY: library(*ARM_WHEEL)}, answers={WHERE_IS_IT: FOLDER})
    )
    assert verdict
    assert verdict.severity == "error"
    assert verdict.what == (
        "onnxruntime-gpu 1.31.1 has kernels for sm_89, sm_90, sm_120, sm_121, but not for "
        "this GPU, sm_87"
    )
    assert "fails at the first kernel" in verdict.why
    assert "https://pypi.jetson-ai-lab.io/jp6/cu126 onnxruntime-gpu" in verdict.fix


@pytest.mark.parametrize(
    ("jetpack", "index"),
    [
        ("6.2.2", "https://pypi.jetson-ai-lab.io/jp6/cu126 "),
        ("7.2", "https://pypi.jetson-ai-lab.io/jp7/cu132 "),
        ("7.0", "https://pypi.jetson-ai-lab.io "),
        (None, "https://pypi.jetson-ai-lab.io "),
    ],
)
def test_index_by_jetpack(jetpack: str | None, index: str, tmp_path: Path) -> None:
    verdict = onnxruntime_kernels(
        context(
            with_jetson(ORIN, jetpack=jetpack),
            tmp_path,
            files={LIBRARY: library(*ARM_WHEEL)},
            answers={WHERE_IS_IT: FOLDER},
        )
    )
    assert verdict
    assert f"--index-url {index}" in verdict.fix


def test_wheel_for_desktops_on_a_laptop(tmp_path: Path) -> None:
    verdict = onnxruntime_kernels(
        context(
            with_packages(LAPTOP, onnxruntime_gpu="1.31.1"),
            tmp_path,
            files={LIBRARY: library(*X86_WHEEL)},
            answers={WHERE_IS_IT: FOLDER},
        )
    )
    assert verdict
    assert verdict.severity == "ok"
    assert verdict.what == "onnxruntime-gpu 1.31.1 has kernels for sm_89"


def test_sm_of_a_jetson_is_known_from_its_soc(tmp_path: Path) -> None:
    verdict = onnxruntime_kernels(
        context(
            msgspec.structs.replace(ORIN, gpus=()),
            tmp_path,
            files={LIBRARY: library(87)},
            answers={WHERE_IS_IT: FOLDER},
        )
    )
    assert verdict
    assert verdict.severity == "ok"


def test_unknown_gpu(tmp_path: Path) -> None:
    verdict = onnxruntime_kernels(
        context(
            with_sm(with_packages(LAPTOP, onnxruntime_gpu="1.31.1"), None),
            tmp_path,
            files={LIBRARY: library(89)},
            answers={WHERE_IS_IT: FOLDER},
        )
    )
    assert verdict
    assert verdict.severity == "unknown"
    assert "compute capability is not known" in verdict.why


def test_library_without_kernels(tmp_path: Path) -> None:
    verdict = onnxruntime_kernels(
        context(ORIN, tmp_path, files={LIBRARY: b"\x7fELF"}, answers={WHERE_IS_IT: FOLDER})
    )
    assert verdict
    assert verdict.severity == "unknown"
    assert "no fat binary" in verdict.why


def test_no_library(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        onnxruntime_kernels(context(ORIN, tmp_path, answers={WHERE_IS_IT: FOLDER}))


def test_nothing_to_look_at(tmp_path: Path) -> None:
    assert onnxruntime_kernels(context(ORIN_NANO, tmp_path)) is None
    assert (
        onnxruntime_kernels(context(with_packages(PLAIN, onnxruntime_gpu="1.31.1"), tmp_path))
        is None
    )
    assert torch_kernels(context(ORIN_NANO, tmp_path)) is None
    assert torch_kernels(context(with_packages(LAPTOP, torch="2.13.0"), tmp_path)) is None


@pytest.mark.parametrize(
    ("answer", "severity", "what"),
    [
        ({"cuda": "12.6", "targets": ["sm_87"]}, "ok", "torch 2.13.0 has kernels for sm_87"),
        (
            {"cuda": "13.0", "targets": ["sm_90", "sm_110", "compute_120"]},
            "error",
            "torch 2.13.0 has kernels for compute_120, sm_90, sm_110, but not for this GPU, sm_87",
        ),
        (
            {"cuda": "13.0", "targets": ["sm_80", "sm_90"]},
            "unknown",
            "whether torch 2.13.0 runs on sm_87; it has sm_80, sm_90",
        ),
        ({"cuda": ""}, "warning", "torch 2.13.0 is built without CUDA"),
        (
            {"cuda": "13.0", "targets": []},
            "warning",
            "torch 2.13.0 is built for CUDA 13.0, but does not find the GPU",
        ),
        (
            {"failure": "OSError: libcudss.so.0: cannot open shared object file"},
            "error",
            "torch 2.13.0 cannot be imported: OSError: libcudss.so.0: cannot open shared object "
            "file",
        ),
    ],
    ids=["jetson", "server", "family", "cpu", "blind", "broken"],
)
def test_torch_on_a_jetson(
    answer: dict[str, object], severity: str, what: str, tmp_path: Path
) -> None:
    verdict = torch_kernels(
        context(
            with_packages(ORIN_NANO, torch="2.13.0"),
            tmp_path,
            answers={WHICH_TORCH: json.dumps(answer)},
        )
    )
    assert verdict
    assert (verdict.severity, verdict.what) == (severity, what)
    assert (verdict.severity == "ok") == (not verdict.fix)
    assert ("TORCH_CUDA_ARCH_LIST=8.7" in verdict.fix) == (severity != "ok")
