"""What pyproject.toml says of packages is what lies on disk."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.python310 import tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["bench", "compress", "devices", "export", "runtime"]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_built(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    built = {path.relative_to(tmp_path / "edgelm") for path in tmp_path.rglob("*.py")}
    folders = [*((ROOT / name, ROOT) for name in PACKAGES), (ROOT / "core", ROOT / "core")]
    on_disk = {path.relative_to(top) for folder, top in folders for path in folder.rglob("*.py")}
    assert built == {path for path in on_disk if path.parts[:2] != ("bench", "studies")}


def test_core_hides_no_room() -> None:
    # `edgelm.x` of a folder or file core/x would hide the package x.
    assert not {path.stem for path in (ROOT / "core").iterdir()} & set(PACKAGES)


def test_every_room_is_mapped(project: dict[str, Any]) -> None:
    expected = {"edgelm": "core"} | {f"edgelm.{name}": name for name in PACKAGES}
    assert project["tool"]["setuptools"]["package-dir"] == expected


def test_data_files_are_listed(project: dict[str, Any]) -> None:
    listed = set()
    for package, patterns in project["tool"]["setuptools"]["package-data"].items():
        name, *below = package.split(".")[1:] or ["core"]
        folder = ROOT.joinpath(name, *below)
        for pattern in patterns:
            files = set(folder.glob(pattern))
            assert files, (package, pattern)
            listed |= files
    kinds = {".toml", ".jsonl", ".json", ".txt", ".html", ".typed", ".pyi"}
    files = {path for name in ["core", *PACKAGES] for path in (ROOT / name).rglob("*")}
    assert listed == {path for path in files if path.suffix in kinds}


def test_the_version_is_written_once(project: dict[str, Any]) -> None:
    assert "version" not in project["project"]
    assert version("edgelm") == edgelm.__version__


def test_commands_exist_or_are_to_come(project: dict[str, Any]) -> None:
    for name, entry in project["project"]["scripts"].items():
        module, function = entry.split(":")
        assert (name, function) == (f"edge-{_VERBS[module.removesuffix('.cli')]}", "main")


_VERBS = {
    "edgelm.bench": "bench",
    "edgelm.bench.evaluation": "eval",
    "edgelm.compress": "compress",
    "edgelm.devices": "devices",
    "edgelm.export": "export",
    "edgelm.runtime": "run",
    "edgelm.runtime.server": "serve",
}
