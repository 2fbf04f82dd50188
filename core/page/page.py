"""The frame of a page, and the parts that are neither table nor plot."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from edgelm.page.style import PAGE_STYLE
from edgelm.page.svg import Plot, figure

# Headings become buttons only where this runs. Numbers start with the highest, names with the
# first; cells without a number go last both ways.
_SORT = """\
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const cell = row => row.cells[column];
    const numeric = [...body.rows].some(row => "value" in cell(row).dataset);
    const order = (a, b) => numeric ? cell(a).dataset.value - cell(b).dataset.value
      : cell(a).textContent.localeCompare(cell(b).textContent);
    const first = numeric ? "descending" : "ascending";
    const second = numeric ? "ascending" : "descending";
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === first ? second : first;
      heads.forEach(other => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1, rows = [...body.rows];
      const known = rows.filter(row => !numeric || "value" in cell(row).dataset);
      known.sort((a, b) => sign * order(a, b));
      body.append(...known, ...rows.filter(row => !known.includes(row)));
    });
  });
}
"""
_SORT_HASH = base64.b64encode(hashlib.sha256(_SORT.encode()).digest()).decode()
# Nothing is fetched, and no script runs but the one above, whatever a name may contain.
_POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_SORT_HASH}'"


@dataclass(frozen=True, slots=True)
class Statement:
    """One line of a verdict: the question, the answer in a word, and the reason.

    `holds` is None where the answer is neither good nor bad.
    """

    question: str
    answer: str
    reason: str
    holds: bool | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure in large type."""

    name: str
    value: str
    unit: str
    detail: str


def page(title: str, body: str, footer: str) -> str:
    """A whole HTML document; `body` is markup, the other two are text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{PAGE_STYLE}</style></head><body>"
        f"<main><h1>{escape(title)}</h1>{body}</main><footer><p>{escape(footer)}</p></footer>"
        f"<script>{_SORT}</script></body></html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """A heading and what belongs to it; nothing where there is nothing."""
    content = "".join(parts)
    return f"<section><h2>{escape(heading)}</h2>{content}</section>" if content else ""


def paragraph(text: str, style: str = "") -> str:
    """One paragraph; nothing of an empty text."""
    chosen = f' class="{style}"' if style else ""
    return f"<p{chosen}>{escape(text)}</p>" if text else ""


def statements(lines: Sequence[Statement]) -> str:
    """The lines of a verdict; a sign says what color says. Nothing of none."""
    items = ""
    for one in lines:
        style, sign = {True: ("yes", "✓ "), False: ("no", "✗ "), None: ("open", "")}[one.holds]
        items += (
            f'<li class="{style}"><strong><span aria-hidden="true">{sign}</span>'
            f"{escape(one.question)} {escape(one.answer)}</strong> {escape(one.reason)}</li>"
        )
    return f'<ul class="statements">{items}</ul>' if items else ""


def tiles(figures: Sequence[Tile]) -> str:
    """Figures in large type, three in a row."""
    items = "".join(
        f'<li><span class="name">{escape(one.name)}</span> '
        f'<span class="value">{escape(one.value)} <span class="unit">{escape(one.unit)}</span>'
        f"</span> "
        f'<span class="detail">{escape(one.detail)}</span></li>'
        for one in figures
    )
    return f'<ul class="tiles">{items}</ul>'


def bullets(lines: Sequence[str]) -> str:
    """A list of texts; nothing of none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def glossary(terms: Mapping[str, str]) -> str:
    """Terms and what they mean."""
    items = "".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(meaning)}</dd></div>"
        for term, meaning in terms.items()
    )
    return f"<dl>{items}</dl>"


def figures(plots: Sequence[Plot]) -> str:
    """Plots next to each other where the page is wide enough."""
    return f'<div class="plots">{"".join(figure(plot) for plot in plots)}</div>' if plots else ""
