"""`edge-bench` on a device that only runs bundles: numpy and the engine are enough."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.conftest import ROOT

# Run by Python at its start; the workers' processes inherit it.
BLOCK = """\
from importlib.machinery import PathFinder

BLOCKED = {"torch", "transformers", "onnx", "onnx_ir", "safetensors", "gguf", "matplotlib"}
found = PathFinder.find_spec


def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in BLOCKED else found(name, path, target)


PathFinder.find_spec = classmethod(find_spec)
"""
SMALL = ["-p", "8", "-n", "4", "-d", "0", "-r", "1", "--threads", "1"]


@pytest.fixture
def device(tmp_path: Path) -> dict[str, str]:
    """Environment variables of a Python without the heavy packages."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK)
    inherited = os.environ.get("PYTHONPATH", "")
    paths = [str(tmp_path / "site"), str(ROOT), *([inherited] if inherited else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def bench(device: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgelm.bench.cli", *map(str, arguments)]
    return subprocess.run(command, env=device, capture_output=True, text=True, timeout=300)


def test_the_packages_are_blocked(device: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", "import torch"], env=device, capture_output=True)
    assert b"No module named 'torch'" in done.stderr


def test_a_bundle_alone_is_measured(device: dict[str, str], bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = bench(device, bundle, *SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "quality is not measured: comparing logits" in done.stderr
    assert "tg4 t/s" in done.stdout
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "report.html"}


@pytest.mark.parametrize("option", [("--source", "model/"), ("--peers", "llama.cpp")])
def test_requested_quality_needs_torch(
    device: dict[str, str], bundle: Path, tmp_path: Path, option: tuple[str, str]
) -> None:
    done = bench(device, bundle, *SMALL, "--out", tmp_path / "report", *option)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: comparing logits with the source model needs torch and transformers: "
        "pip install 'edgelm[bench]', or add --no-quality"
    )


def test_the_planner_s_check_names_the_missing_package(device: dict[str, str]) -> None:
    done = bench(device, "--check-plan")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: this needs torch: pip install 'edgelm[bench]'"
