"""Tables with a caption, explained headings, and rows that sort."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Column:
    """A heading; the explanation is shown when the pointer rests on it. Text is aligned left."""

    heading: str
    explanation: str = ""
    text: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows, the number that it is sorted by, and a note for the pointer."""

    text: str
    value: float | None = None
    note: str = ""


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell | str]],
    *,
    own: Collection[int] = (),
    sortable: bool = False,
) -> str:
    """A table in a box of its own that scrolls sideways; the first cell of a row is its heading.

    `own` are the rows that stand out. A sortable table gets its buttons from the page's script;
    without it the rows stay in the order given.
    """
    head = "".join(_heading(column) for column in columns)
    body = ""
    for index, row in enumerate(rows):
        style = ' class="own"' if index in own else ""
        body += f"<tr{style}>{_row(columns, row)}</tr>"
    sort = ' class="sortable"' if sortable else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table{sort}><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _heading(column: Column) -> str:
    name, style = escape(column.heading), ' class="text"' if column.text else ""
    if column.explanation:
        name = f'<abbr title="{escape(column.explanation)}">{name}</abbr>'
    return f'<th scope="col"{style}>{name}</th>'


def _row(columns: Sequence[Column], row: Sequence[Cell | str]) -> str:
    cells = ""
    for index, (column, one) in enumerate(zip(columns, row, strict=True)):
        cell = one if isinstance(one, Cell) else Cell(one)
        tag, scope = ("td", "") if index else ("th", ' scope="row"')
        style = ' class="text"' if column.text else ""
        value = "" if cell.value is None else f' data-value="{cell.value:.10g}"'
        shown = escape(cell.text)
        if cell.note:
            shown = f'<abbr title="{escape(cell.note)}">{shown}</abbr>'
        cells += f"<{tag}{scope}{style}{value}>{shown}</{tag}>"
    return cells
