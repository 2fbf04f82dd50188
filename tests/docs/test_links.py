"""Every relative link, anchor, file and module that a page names exists."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, name, prose

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"^(\.?[\w-]+(?:/[\w.-]+)+\.(?:py|md|toml|ya?ml|jsonl?|txt|svg|sh))$")
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"build", "dist"}
MODULE = re.compile(r"python -m ((?:tests|bench)[\w.]*)")
COMMENT = re.compile(r"(?<!\w )(?<!: )\bdocs/[\w/.-]+\.md\b")
# Files of other projects that comments name.
OTHERS = {"docs/gguf.md", "docs/Privacy.md"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):  # https:, mailto:
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = [match[1] for code in CODE.findall(prose(page)) if (match := FILE.match(code))]
    ours = [path for path in named if path.split("/")[0] in FOLDERS]
    assert [path for path in ours if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_that_a_page_runs_exist(page: Path) -> None:
    modules = {module.rstrip(".") for module in MODULE.findall(page.read_text())}
    paths = [ROOT.joinpath(*module.split(".")) for module in modules]
    assert [p for p in paths if not (p.with_suffix(".py").exists() or p.is_dir())] == []


def test_pages_that_the_code_names_exist() -> None:
    folders = [ROOT / one for one in FOLDERS - {"docs"} if not one.startswith(".")]  # no .venv
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    named = {page for path in sources for page in COMMENT.findall(path.read_text())} - OTHERS
    assert len(named) > 5
    assert sorted(page for page in named if not (ROOT / page).exists()) == []
