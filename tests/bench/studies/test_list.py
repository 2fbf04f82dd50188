"""The list of studies is complete, its pages rest on them, and commands on pages are those."""

import re
import shlex
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, name

STUDIES = ROOT / "bench" / "studies"
ROWS = dict(re.findall(r"^\| `([\w.]+)` \|.*\|(.*)\|$", (STUDIES / "README.md").read_text(), re.M))
# Run by another study, in a process of its own.
PARTS = {"agreement.llama_cpp_logits", "builds.compile_parts"}


def programs() -> set[str]:
    """Names below `bench.studies` of what can be run."""
    return {
        f"{path.parent.name}.{path.stem}"
        for path in STUDIES.glob("*/*.py")
        if "__main__" in path.read_text()
    }


def unknown_words(arguments: list[str], source: str) -> list[str]:
    """Options, and the verb of a program that has verbs, which its source does not have."""
    options = [word for word in arguments if re.fullmatch(r"--?[a-z][\w-]*", word)]
    verbs = arguments[:1] if "add_parser(" in source else []
    return [word for word in (*options, *verbs) if f'"{word}"' not in source]


def test_every_program_has_a_row() -> None:
    assert set(ROWS) == programs() - PARTS


@pytest.mark.parametrize("study", sorted(ROWS))
def test_pages_of_a_study_name_it(study: str) -> None:
    pages = re.findall(r"\]\((.+?)\)", ROWS[study])
    assert pages
    for page in pages:
        named = rf"bench[./]studies[./]{study.replace('.', '[./]')}\b"
        assert re.search(named, (STUDIES / page).resolve().read_text()), page


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_on_pages_are_those_of_studies(page: Path) -> None:
    for study in re.findall(r"bench\.studies\.(\w+\.\w+)", page.read_text()):
        assert study in programs()
    for _, text in blocks(page):
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            if found := re.search(r"-m bench\.studies\.(\w+)\.(\w+)(.*)", line):
                folder, file, rest = found.groups()
                arguments = shlex.split(re.sub(r"[\[\]]", " ", rest), comments=True)
                source = (STUDIES / folder / f"{file}.py").read_text()
                assert not unknown_words(arguments, source), line


def test_an_unknown_option_or_verb_is_found() -> None:
    source = 'verbs.add_parser("train"); add("--data")'
    assert unknown_words(["judge", "--data", "x", "--text"], source) == ["--text", "judge"]
    assert unknown_words(["train", "--data", "x"], source) == []
