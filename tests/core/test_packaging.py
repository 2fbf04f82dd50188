"""What pyproject.toml says of packages is what lies on disk."""

import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import edgelm

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ["bench", "compress", "devices", "export", "runtime"]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_on_disk() -> set[str]:
    names = {"edgelm"}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            names.add(".".join(["edgelm", *path.parent.relative_to(ROOT).parts]))
    return names


def test_every_package_is_listed(project: dict[str, Any]) -> None:
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages_on_disk())


def test_core_has_no_folders_of_its_own() -> None:
    # `edgelm.x` of a folder core/x would hide the room x.
    folders = {path.parent for path in (ROOT / "core").rglob("*.py")}
    assert folders == {ROOT / "core"}


def test_every_room_is_mapped(project: dict[str, Any]) -> None:
    expected = {"edgelm": "core"} | {f"edgelm.{room}": room for room in ROOMS}
    assert project["tool"]["setuptools"]["package-dir"] == expected


@pytest.mark.parametrize("package", ["edgelm", "edgelm.devices", "edgelm.export"])
def test_data_files_are_listed(project: dict[str, Any], package: str) -> None:
    folder = ROOT / project["tool"]["setuptools"]["package-dir"][package]
    patterns = project["tool"]["setuptools"]["package-data"][package]
    listed = {path for pattern in patterns for path in folder.glob(pattern)}
    kinds = {".toml", ".jsonl", ".json", ".txt", ".html"}
    names = {"py.typed"}
    on_disk = {path for path in folder.rglob("*") if path.suffix in kinds or path.name in names}
    assert listed == on_disk != set()


def test_the_version_is_written_once(project: dict[str, Any]) -> None:
    assert "version" not in project["project"]
    assert version("edgelm") == edgelm.__version__


def test_commands_exist_or_are_to_come(project: dict[str, Any]) -> None:
    for name, entry in project["project"]["scripts"].items():
        module, function = entry.split(":")
        room = module.split(".")[1]
        assert (name, function) == (f"edge-{_VERBS[room]}", "main")


_VERBS = {
    "bench": "bench",
    "compress": "compress",
    "devices": "devices",
    "export": "export",
    "runtime": "run",
}
