"""Whether TensorRT fits the bundle's dialect, JetPack and ONNX Runtime."""

from pathlib import Path

import pytest

from edgelm.bundle import EngineRequirement
from edgelm.devices.checks.nvidia.tensorrt import dialect, jetpack_support, onnxruntime_link
from tests.devices.checks.recorded import (
    FOLDER,
    LAPTOP,
    ORIN_NANO,
    PLAIN,
    WHERE_IS_IT,
    context,
    manifest,
    with_jetson,
    with_packages,
)

RTX = manifest("standard", engine=EngineRequirement("tensorrt-rtx"))
PROVIDER = f"{FOLDER}/capi/libonnxruntime_providers_tensorrt.so"


@pytest.mark.parametrize(
    ("name", "version", "severity"),
    [
        ("decomposed", "10.2.0", "error"),
        ("decomposed", "10.3", "ok"),
        ("decomposed", "10.3.0", "ok"),
        ("decomposed", "10.13.3.9", "ok"),
        ("decomposed", "10.14.1", "ok"),
        ("decomposed", "10.15", "warning"),
        ("decomposed", "10.16.1.11", "warning"),
        ("standard", "10.13.3.9", "error"),
        ("standard", "10.15.1.29", "ok"),
        ("standard", "10.16.1.11", "ok"),
        ("standard", "11.4.0.106", "ok"),
    ],
)
def test_dialect(name: str, version: str, severity: str, tmp_path: Path) -> None:
    machine = with_packages(LAPTOP, tensorrt=version)
    verdict = dialect(context(machine, tmp_path, manifest=manifest(name)))
    assert verdict
    assert verdict.severity == severity
    assert f"TensorRT {version}" in verdict.what
    other = {"decomposed": "standard", "standard": "decomposed"}[name]
    if severity != "ok":
        assert verdict.fix == (
            f"export it again for a target with the {other} dialect (edge-export --list-targets)"
        )


def test_message_names_what_is_expected(tmp_path: Path) -> None:
    machine = with_packages(LAPTOP, tensorrt="10.13.3.9")
    verdict = dialect(context(machine, tmp_path, manifest=manifest("standard")))
    assert verdict
    assert verdict.what == (
        "TensorRT 10.13.3.9, the bundle's standard dialect needs 10.15 or newer"
    )


def test_each_engine_asks_for_its_own_package(tmp_path: Path) -> None:
    machine = with_packages(LAPTOP, tensorrt_rtx="1.7.1.116")
    own = dialect(context(machine, tmp_path, manifest=RTX))
    assert own
    assert (own.severity, own.what) == ("ok", "TensorRT-RTX 1.7.1.116 runs the bundle's engine")
    other = dialect(context(machine, tmp_path, manifest=manifest("standard")))
    assert other
    assert other.severity == "error"
    missing = dialect(context(with_packages(LAPTOP, tensorrt="11.4.0"), tmp_path, manifest=RTX))
    assert missing
    assert (missing.severity, missing.fix) == ("error", "pip install 'edgelm[rtx]'")


def test_nothing_to_install_where_the_bundle_cannot_run(tmp_path: Path) -> None:
    orin = manifest("decomposed", compute_capabilities=(87,))
    assert dialect(context(PLAIN, tmp_path, manifest=orin)) is None
    assert dialect(context(LAPTOP, tmp_path, manifest=orin)) is None


def test_no_tensorrt(tmp_path: Path) -> None:
    laptop = dialect(context(LAPTOP, tmp_path, manifest=manifest("standard")))
    assert laptop
    assert laptop.what == "TensorRT is not installed; the bundle's standard dialect needs it"
    assert laptop.fix == "pip install 'tensorrt-cu13>=10.15'"
    older = dialect(context(LAPTOP, tmp_path, manifest=manifest("decomposed")))
    assert older
    assert older.fix == "pip install 'tensorrt-cu13>=10.3,<10.15'"
    jetson = dialect(context(ORIN_NANO, tmp_path, manifest=manifest("decomposed")))
    assert jetson
    assert jetson.fix == (
        "sudo apt install tensorrt python3-libnvinfer, and create the environment with the "
        "system's Python: /usr/bin/python3 -m venv --system-site-packages ENV"
    )


@pytest.mark.parametrize(
    ("jetpack", "fix"),
    [
        ("5.1.2", "install JetPack 6.1 or newer if the board can have it"),
        ("6.0", "install JetPack 6.1 or newer if the board can have it"),
        ("6.2", "create the environment again with the system's Python"),
        ("7.2", "create the environment again with the system's Python"),
    ],
)
def test_tensorrt_that_the_environment_hides(jetpack: str, fix: str, tmp_path: Path) -> None:
    machine = with_packages(with_jetson(ORIN_NANO, jetpack=jetpack), python3_libnvinfer="10.3.0.30")
    verdict = dialect(context(machine, tmp_path, manifest=manifest("decomposed")))
    assert verdict
    assert verdict.severity == "error"
    assert verdict.what == (
        "TensorRT 10.3.0.30 is installed for the system's Python, but not visible in this "
        "environment"
    )
    assert verdict.fix.startswith(fix)


@pytest.mark.parametrize(
    ("jetpack", "library", "fix"),
    [
        ("6.2", "libnvinfer10", "sudo apt install python3-libnvinfer, and create the environment"),
        ("7.2", "libnvinfer10", "sudo apt install python3-libnvinfer, and create the environment"),
        ("5.1.1", "libnvinfer8", "install JetPack 6.1 or newer if the board can have it"),
    ],
)
def test_library_without_its_bindings(jetpack: str, library: str, fix: str, tmp_path: Path) -> None:
    jetson = with_jetson(ORIN_NANO, jetpack=jetpack)
    machine = with_packages(jetson, **{library: "10.3.0.30"})
    verdict = dialect(context(machine, tmp_path, manifest=manifest("decomposed")))
    assert verdict
    assert verdict.what == "TensorRT 10.3.0.30 is installed without its Python bindings"
    assert verdict.fix.startswith(fix)


def test_bundles_that_need_no_tensorrt(tmp_path: Path) -> None:
    assert dialect(context(LAPTOP, tmp_path)) is None
    assert dialect(context(LAPTOP, tmp_path, manifest=manifest("ort"))) is None


@pytest.mark.parametrize(
    ("jetpack", "version", "severity"),
    [
        ("6.2", "10.3.0", "ok"),
        ("6.2", "11", "error"),
        ("6.2", "11.4.0.106", "error"),
        ("6.2", "11.4.1", "error"),
        ("7.1", "11.4.1", "error"),
        ("7.2", "11.0.0", "error"),
        ("7.2", "11.4.1", "unknown"),
        (None, "11.4.1", "unknown"),
        (None, "11.4.0", "error"),
        ("7.2.2", "11.4.1", "ok"),
    ],
)
def test_jetpack_support(jetpack: str | None, version: str, severity: str, tmp_path: Path) -> None:
    machine = with_packages(with_jetson(ORIN_NANO, jetpack=jetpack), tensorrt=version)
    verdict = jetpack_support(context(machine, tmp_path))
    assert verdict
    assert verdict.severity == severity
    assert version in verdict.what


def test_jetpack_support_is_about_jetsons(tmp_path: Path) -> None:
    assert jetpack_support(context(with_packages(LAPTOP, tensorrt="11.4.0"), tmp_path)) is None
    assert jetpack_support(context(ORIN_NANO, tmp_path)) is None


@pytest.mark.parametrize(
    ("version", "library", "severity"),
    [
        ("10.16.1.11", b"...libnvinfer.so.10\0...", "ok"),
        ("11.4.0.106", b"...libnvinfer.so.10\0...", "warning"),
        ("11.4.0.106", b"nothing", "unknown"),
    ],
)
def test_onnxruntime_link(version: str, library: bytes, severity: str, tmp_path: Path) -> None:
    verdict = onnxruntime_link(
        context(
            with_packages(LAPTOP, tensorrt=version, onnxruntime_gpu="1.31.1"),
            tmp_path,
            files={PROVIDER: library},
            answers={WHERE_IS_IT: FOLDER},
        )
    )
    assert verdict
    assert verdict.severity == severity
    if severity == "warning":
        assert verdict.what == (
            "onnxruntime-gpu 1.31.1 needs TensorRT 10, but 11.4.0.106 is installed"
        )
        assert verdict.fix.startswith("pip install 'tensorrt-cu13>=10,<11'")


def test_onnxruntime_link_of_nothing(tmp_path: Path) -> None:
    assert onnxruntime_link(context(with_packages(LAPTOP, tensorrt="11.4.0"), tmp_path)) is None
    assert (
        onnxruntime_link(context(with_packages(LAPTOP, onnxruntime_gpu="1.31"), tmp_path)) is None
    )


def test_onnxruntime_link_that_cannot_be_read(tmp_path: Path) -> None:
    machine = with_packages(LAPTOP, tensorrt="11.4.0", onnxruntime_gpu="1.31.1")
    with pytest.raises(FileNotFoundError):
        onnxruntime_link(context(machine, tmp_path, answers={WHERE_IS_IT: FOLDER}))
