"""The pages that people read, and the parts of them that tests look at."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    """A page's path as test ids and messages have it."""
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every code block."""
    for match in _FENCE.finditer(path.read_text()):
        yield match[2], match[3]


def prose(path: Path) -> str:
    """The text outside code blocks."""
    return _FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """What a link may have behind `#`: slugs of headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+?)\s*$", prose(path), re.MULTILINE)
    return {slug(heading) for heading in headings}


def slug(heading: str) -> str:
    """The anchor of a heading.

    >>> slug("Why `edgelm` and not llama.cpp?")
    'why-edgelm-and-not-llamacpp'
    """
    text = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
    return re.sub(r"[\s]+", "-", text)
