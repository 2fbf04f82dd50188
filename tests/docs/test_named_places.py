"""Pages name files, folders and names of the code that exist."""

import re
from pathlib import Path

import msgspec
import pytest

from edgelm.bundle import Manifest
from edgelm.devices.profile import load_profiles
from tests.docs.pages import PAGES, ROOT, name

PACKAGES = "core|devices|runtime|export|compress|bench|tests|docs|examples|deploy|docker"
_PATH = re.compile(rf"`((?:{PACKAGES})/[\w./-]+)`")
_NAME_IN_FILE = re.compile(r"`(\w+)(?:\(\))?` (?:in|of) `([\w./-]+\.py)`")
# Dated results name what was there on their day.
READ = [page for page in PAGES if page.parent != ROOT / "docs" / "results"]


def missing_paths(text: str) -> list[str]:
    """Paths in backticks that are not in the repository."""
    return [path for path in _PATH.findall(text) if not (ROOT / path).exists()]


def missing_names(text: str) -> list[str]:
    """`NAME` in `FILE` where the file does not have the name."""
    return [
        f"{found} in {path}"
        for found, path in _NAME_IN_FILE.findall(text)
        if not re.search(rf"\b{found}\b", (ROOT / path).read_text())
    ]


@pytest.mark.parametrize("page", READ, ids=name)
def test_paths_exist(page: Path) -> None:
    assert not missing_paths(page.read_text())


def test_names_of_recipes_are_in_their_files() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(_NAME_IN_FILE.findall(text)) > 10
    assert not missing_names(text)


def test_the_bundle_page_has_every_field_of_the_manifest() -> None:
    page = ROOT / "docs" / "reference" / "bundle.md"
    rows = re.findall(r"^\| (`.+?) \|", page.read_text(), re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    fields = {field.encode_name for field in msgspec.structs.fields(Manifest)}
    assert fields <= named, fields - named


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_number_of_devices_is_right(page: str) -> None:
    [least] = re.findall(r"\bmore than (\d+) devices\b", (ROOT / page).read_text())
    assert 0 < len(load_profiles()) - int(least) <= 20


def test_a_wrong_place_is_found() -> None:
    assert missing_paths("see `core/nothing.py` and `core/errors.py`") == ["core/nothing.py"]
    assert missing_names("`Nothing` in `core/errors.py`") == ["Nothing in core/errors.py"]
