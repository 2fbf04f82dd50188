"""The site builds without a warning: links, anchors, navigation and API references."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def test_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference" / "api.html").read_text()
    assert 'id="edgelm.load"' in reference
    assert 'id="edgelm.errors.EdgeLMError"' in reference
    assert "fonts.googleapis.com" not in reference


def test_navigation_has_every_page_of_users() -> None:
    listed = _leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    # Decisions are listed by their README; results may be newer than the list.
    assert {page for page in pages if page.split("/")[0] not in ("decisions", "results")} <= listed


def test_decisions_are_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "README.md").read_text()
    assert [p.name for p in folder.glob("*.md") if f"({p.name})" not in listed] == ["README.md"]


def _leaves(entry: Any) -> set[str]:
    if isinstance(entry, str):
        return {entry}
    parts = entry.values() if isinstance(entry, dict) else entry
    return {leaf for part in parts for leaf in _leaves(part)}
