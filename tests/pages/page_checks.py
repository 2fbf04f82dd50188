"""What holds for every page that edgelm writes: it stands alone, and everybody can read it."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise

_VOID = {"meta", "br", "hr", "img", "input", "link"}
_FETCHING = {"src", "href", "srcset", "data", "action", "poster"}


class Page(HTMLParser):
    """Elements in order, texts outside of plots, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"svg", "style", "script"} & set(self.open):
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        """All that is read, plots left out."""
        return "".join(self.texts)


def figures(text: str) -> dict[str, ET.Element]:
    """Plots by their captions; XML, or they would not parse."""
    found = re.findall(r'<figure class="plot">.*?</figure>', text, flags=re.DOTALL)
    return {str(one.findtext("figcaption")): one for one in map(ET.fromstring, found)}


def check_page(text: str) -> Page:
    """Parse a page; fail where it fetches something or leaves somebody out."""
    page = Page(text)
    _check_structure(page)
    _check_that_nothing_is_fetched(page)
    _check_plots(page)
    _check_tables(page)
    return page


def _check_structure(page: Page) -> None:
    assert page.source.startswith("<!doctype html>")
    assert page.unbalanced == []
    assert page.open == []
    assert page.all("html")[0]["lang"] == "en"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    assert page.source.index("<title>") < page.source.index("<body>")
    assert [len(page.all(tag)) for tag in ("main", "h1", "footer")] == [1, 1, 1]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def _check_that_nothing_is_fetched(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "img", "object", "base", "embed"}
        assert not _FETCHING & {name.split(":")[-1] for name in attributes}
        assert not any(name.startswith("on") for name in attributes), "no handlers in markup"
    assert "@import" not in page.source
    assert "url(" not in page.source
    [policy] = [one["content"] for one in page.all("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'; ")


def _check_plots(page: Page) -> None:
    for plot in page.all("svg"):
        assert "viewbox" in plot, "it scales with the page"
        labelled = plot.get("role") == "img" and plot.get("aria-label")
        assert labelled or plot.get("aria-hidden") == "true"


def _check_tables(page: Page) -> None:
    tables = page.all("table")
    assert len(page.all("caption")) == len(tables)
    boxes = [one for one in page.all("div") if one.get("class") == "wide"]
    assert len(boxes) == len(tables)
    for box in boxes:  # wide tables scroll in a box of their own, by keyboard too
        assert (box["role"], box["tabindex"]) == ("region", "0")
        assert box["aria-label"]
    assert all(one["scope"] in ("col", "row") for one in page.all("th"))
    assert "title" not in {name for one in page.all("td") for name in one}, "abbr has them"
