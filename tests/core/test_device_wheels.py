"""A Jetson compiles nothing to install edgelm: all packages have wheels for its Python.

JetPack 6 has Python 3.10, JetPack 7 has 3.12; both are 64-bit Arm with glibc 2.35 or newer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edgelm.python310 import tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLATFORMS = ["manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"]
# For TensorRT's sessions, as docs/jetson.md has them: JetPack 6 (CUDA 12.6) takes 12.8.0, the last
# that contains no CUDA runtime of its own, which would need a newer driver; JetPack 7.2 has 13.2.
JETPACKS = {"3.10": "cuda-bindings==12.8.0", "3.12": "cuda-bindings==13.2.*"}


def requirements(python: str) -> list[str]:
    """What the extra `cpu` installs: pip reads markers for the Python that runs it."""
    listed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"]]
    found = []
    for requirement in map(Requirement, listed):
        marker = requirement.marker
        if marker is None or marker.evaluate({"python_version": python}):
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


def test_versions_are_those_of_the_guide() -> None:
    guide = (ROOT / "docs" / "jetson.md").read_text()
    assert all(f'"{pinned}"' in guide for pinned in JETPACKS.values())


@pytest.mark.parametrize("python", JETPACKS)
def test_each_requirement_is_there_once(python: str) -> None:
    names = [Requirement(text).name for text in requirements(python)]
    backports = ["tomli", "typing_extensions"] if python == "3.10" else []
    expected = [
        "jinja2",
        "msgspec",
        "numpy",
        "platformdirs",
        "tokenizers",
        *backports,
        "onnxruntime",
    ]
    assert names == expected


@pytest.mark.skipif(
    os.environ.get("EDGELM_NETWORK_TESTS") != "1", reason="asks PyPI: EDGELM_NETWORK_TESTS=1"
)
@pytest.mark.parametrize("python", JETPACKS)
def test_every_package_has_a_wheel_for_a_jetson(python: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--dry-run", "--ignore-installed", "--target", str(tmp_path / "none")]
    options += ["--only-binary=:all:", "--python-version", python, "--report", str(report)]
    options += [f"--platform={platform}" for platform in PLATFORMS]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options]
    packages = [*requirements(python), JETPACKS[python]]
    done = subprocess.run([*command, *packages], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    installed = json.loads(report.read_text())["install"]
    wheels = {one["metadata"]["name"].lower(): one["download_info"]["url"] for one in installed}
    assert all(url.endswith(".whl") for url in wheels.values())
    for name in ("onnxruntime", "numpy", "msgspec", "cuda-bindings"):
        assert f"cp{python.replace('.', '')}" in wheels[name], wheels[name]
        assert "aarch64" in wheels[name], wheels[name]
