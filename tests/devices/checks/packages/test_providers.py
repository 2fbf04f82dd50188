"""Whether ONNX Runtime imports, and reaches the GPU."""

import json
from pathlib import Path

import pytest

from edgelm.bundle import EngineRequirement
from edgelm.devices.checks.context import Context
from edgelm.devices.checks.packages.providers import cuda_libraries, gpu_provider, imports
from edgelm.devices.detection.probes import Probes
from tests.devices.checks.recorded import (
    FOLDER,
    LAPTOP,
    ORIN_NANO,
    PLAIN,
    SITE,
    WHERE_IS_IT,
    WHICH_PROVIDERS,
    context,
    manifest,
    with_packages,
)

CPU_ONLY = json.dumps({"providers": ["AzureExecutionProvider", "CPUExecutionProvider"]})
CUDA = json.dumps({"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]})
BROKEN = json.dumps({"failure": "ImportError: cannot import name 'InferenceSession'"})
ORT = with_packages(LAPTOP, onnxruntime="1.32.0")
GPU = with_packages(LAPTOP, onnxruntime_gpu="1.31.1")
LDD = """\
\tlinux-vdso.so.1 (0x00007ffd)
\tlibcublasLt.so.13 => not found
\tlibcudart.so.13 => not found
\tlibcuda.so.1 => /usr/lib/libcuda.so.1 (0x00007fbc)
"""


def test_imports(tmp_path: Path) -> None:
    verdict = imports(context(ORT, tmp_path, answers={WHICH_PROVIDERS: CUDA}))
    assert verdict
    assert verdict.severity == "ok"
    assert "CUDAExecutionProvider" in verdict.what


def test_import_fails(tmp_path: Path) -> None:
    verdict = imports(context(ORT, tmp_path, answers={WHICH_PROVIDERS: BROKEN}))
    assert verdict
    assert verdict.severity == "error"
    assert verdict.what == (
        "onnxruntime cannot be imported: ImportError: cannot import name 'InferenceSession'"
    )
    assert verdict.fix == "pip uninstall -y onnxruntime && pip install onnxruntime"


def test_import_of_a_gpu_package_fails(tmp_path: Path) -> None:
    verdict = imports(context(GPU, tmp_path, answers={WHICH_PROVIDERS: BROKEN}))
    assert verdict
    assert verdict.fix.endswith("&& pip install 'onnxruntime-gpu[cuda,cudnn]'")


def test_nothing_to_import(tmp_path: Path) -> None:
    assert imports(context(LAPTOP, tmp_path)) is None
    assert gpu_provider(context(LAPTOP, tmp_path)) is None


def test_the_question_is_a_program_that_answers() -> None:
    verdict = imports(Context(with_packages(PLAIN, onnxruntime="1.32.0"), Probes()))
    assert verdict
    assert verdict.severity == "ok"
    assert "CPUExecutionProvider" in verdict.what


def test_gpu_without_a_provider(tmp_path: Path) -> None:
    verdict = gpu_provider(context(ORT, tmp_path, answers={WHICH_PROVIDERS: CPU_ONLY}))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == (
        "this machine has a GPU, but onnxruntime only has "
        "AzureExecutionProvider, CPUExecutionProvider"
    )
    assert "without an error" in verdict.why
    assert verdict.fix.endswith(
        "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


def test_gpu_with_a_provider(tmp_path: Path) -> None:
    verdict = gpu_provider(context(GPU, tmp_path, answers={WHICH_PROVIDERS: CUDA}))
    assert verdict
    assert verdict.severity == "ok"


def test_providers_of_a_broken_package(tmp_path: Path) -> None:
    verdict = gpu_provider(context(ORT, tmp_path, answers={WHICH_PROVIDERS: BROKEN}))
    assert verdict
    assert verdict.severity == "unknown"
    assert verdict.why.startswith("ImportError")


def test_a_bundle_for_the_cpu_needs_no_gpu(tmp_path: Path) -> None:
    verdict = gpu_provider(context(ORT, tmp_path, manifest=manifest(target="cpu")))
    assert verdict
    assert verdict.severity == "ok"


def test_a_bundle_needs_its_package(tmp_path: Path) -> None:
    verdict = imports(context(PLAIN, tmp_path, manifest=manifest()))
    assert verdict
    assert (verdict.severity, verdict.fix) == ("error", "pip install 'edgelm[cpu]'")
    cuda = manifest(engine=EngineRequirement("onnxruntime-cuda"))
    verdict = imports(context(LAPTOP, tmp_path, manifest=cuda))
    assert verdict
    assert verdict.fix == "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    assert imports(context(PLAIN, tmp_path, manifest=cuda)) is None  # it cannot run here at all
    assert imports(context(PLAIN, tmp_path, manifest=manifest("standard"))) is None


def test_no_gpu_needs_no_provider(tmp_path: Path) -> None:
    assert gpu_provider(context(with_packages(PLAIN, onnxruntime="1.32.0"), tmp_path)) is None


def test_missing_libraries(tmp_path: Path) -> None:
    verdict = cuda_libraries(context(GPU, tmp_path, answers={WHERE_IS_IT: FOLDER, "ldd": LDD}))
    assert verdict
    assert verdict.severity == "error"
    assert verdict.what == (
        "the CUDA provider needs libcublasLt.so.13, libcudart.so.13, which cannot be found"
    )
    assert verdict.fix == "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def test_missing_libraries_on_a_jetson(tmp_path: Path) -> None:
    verdict = cuda_libraries(
        context(
            with_packages(ORIN_NANO, onnxruntime_gpu="1.31.1"),
            tmp_path,
            answers={WHERE_IS_IT: FOLDER, "ldd": LDD},
        )
    )
    assert verdict
    assert verdict.fix.startswith("sudo apt install nvidia-jetpack; or another wheel: pip ")


@pytest.mark.parametrize(
    ("names", "fix"),
    [
        (["libcuda.so.1"], "install NVIDIA's driver (a container needs --gpus all)"),
        (
            ["libcublas.so.13", "libcuda.so.1"],
            "install NVIDIA's driver (a container needs --gpus all), then: pip install "
            "'onnxruntime-gpu[cuda,cudnn]'",
        ),
    ],
)
def test_missing_driver(names: list[str], fix: str, tmp_path: Path) -> None:
    listing = "".join(f"\t{name} => not found\n" for name in names)
    answers = {WHERE_IS_IT: FOLDER, "ldd": listing}
    verdict = cuda_libraries(context(GPU, tmp_path, answers=answers))
    assert verdict
    assert verdict.what == f"the CUDA provider needs {', '.join(names)}, which cannot be found"
    assert verdict.fix == fix


def test_libraries_in_packages_of_pip(tmp_path: Path) -> None:
    names = ("libcublasLt.so.13", "libcudart.so.13")
    verdict = cuda_libraries(
        context(
            GPU,
            tmp_path,
            files={f"{SITE}/nvidia/cu13/lib/{name}": "" for name in names},
            answers={WHERE_IS_IT: FOLDER, "ldd": LDD},
        )
    )
    assert verdict
    assert verdict.severity == "ok"
    assert "preload_dlls" in verdict.what


def test_all_libraries_found(tmp_path: Path) -> None:
    answers = {WHERE_IS_IT: FOLDER, "ldd": "\tlibcuda.so.1 => /usr/lib/libcuda.so.1 (0x0)\n"}
    verdict = cuda_libraries(context(GPU, tmp_path, answers=answers))
    assert verdict
    assert verdict.severity == "ok"


def test_libraries_without_ldd(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="ldd: not there"):
        cuda_libraries(context(GPU, tmp_path, answers={WHERE_IS_IT: FOLDER}))


def test_no_cuda_provider_no_libraries(tmp_path: Path) -> None:
    assert cuda_libraries(context(ORT, tmp_path)) is None
