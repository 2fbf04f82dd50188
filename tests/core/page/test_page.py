"""The frame of a page, its tables and its colors."""

import base64
import hashlib
import re

import pytest

from edgelm.page.page import (
    Statement,
    Tile,
    bullets,
    figures,
    glossary,
    page,
    paragraph,
    section,
    statements,
    tiles,
)
from edgelm.page.style import DARK, LIGHT, PAGE_STYLE
from edgelm.page.table import Cell, Column, table
from tests.pages.page_checks import Page, check_page

EVIL = "</p><script>alert(1)</script>\"' & <b>"


def test_every_part_escapes_what_it_is_given() -> None:
    body = "".join(
        [
            paragraph(EVIL, "lead"),
            tiles([Tile(EVIL, EVIL, EVIL, EVIL)]),
            statements([Statement(EVIL, EVIL, EVIL, holds) for holds in (True, False, None)]),
            section(EVIL, bullets([EVIL]), glossary({EVIL: EVIL})),
            table(EVIL, [Column(EVIL, EVIL)], [[Cell(EVIL, 1.0, EVIL)]], sortable=True),
        ]
    )
    checked = check_page(page(EVIL, body, EVIL))
    assert len(checked.all("script")) == 1
    assert checked.all("b") == []
    assert checked.text.count(EVIL) == 24


def test_only_the_script_of_the_page_may_run() -> None:
    text = page("t", "", "f")
    [script] = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_a_verdict_does_not_depend_on_color() -> None:
    lines = [Statement("Fast?", "Yes.", "", True), Statement("Good?", "No.", "", False)]
    shown = Page(statements(lines)).text
    assert "✓ Fast? Yes." in shown
    assert "✗ Good? No." in shown


def test_nothing_is_written_of_nothing() -> None:
    assert [paragraph(""), bullets([]), figures([]), section("Plots", "", "")] == [""] * 4


def test_cells_carry_the_number_that_they_are_sorted_by() -> None:
    columns = [Column("name", text=True), Column("t/s", "Tokens per second.")]
    rows: list[list[Cell | str]] = [
        ["a", Cell("66.1 (60–70) †", 66.123456, "one is far off")],
        ["b", Cell("–")],
    ]
    text = table("c", columns, rows, own=[0], sortable=True)
    checked = Page(text)
    assert checked.all("table") == [{"class": "sortable"}]
    assert [one.get("data-value") for one in checked.all("td")] == ["66.123456", None]
    assert [one["scope"] for one in checked.all("th")] == ["col", "col", "row", "row"]
    assert [one.get("class") for one in checked.all("tr")] == [None, "own", None]
    titles = [one["title"] for one in checked.all("abbr")]
    assert titles == ["Tokens per second.", "one is far off"]


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    shares = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_colors_stand_out(colors: dict[str, str]) -> None:
    assert colors.keys() == LIGHT.keys()
    for ground in ("page", "card"):
        for name in ("ink", "dim", "good", "bad"):
            assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)
    for name in (f"s{n}" for n in range(6)):
        assert contrast(colors[name], colors["page"]) >= 3, name


def test_every_color_of_the_style_is_defined() -> None:
    assert set(re.findall(r"var\(--(\w+)\)", PAGE_STYLE)) <= LIGHT.keys()


def test_wide_parts_shrink_or_scroll() -> None:
    assert "overflow-x: auto" in PAGE_STYLE
    assert "minmax(min(100%, 24rem), 1fr)" in PAGE_STYLE
    assert ".plot > svg { display: block; width: 100%" in PAGE_STYLE
