"""The report as Markdown: the verdict, one row per engine, and what the figures mean."""

from edgelm.bench.report.page.glossary import terms
from edgelm.bench.report.page.notes import (
    method,
    not_measured,
    options,
    sensor_cells,
    sensor_notes,
    setting,
    why_invalid,
)
from edgelm.bench.report.page.table import columns, rows
from edgelm.bench.report.records import Report
from edgelm.bench.report.verdict import verdict


def markdown(report: Report) -> str:
    """Return the text of `report.md`."""
    outcome = verdict(report)
    lines = [
        f"# {report.source}: edgelm report",
        "",
        *([f"> **INVALID**: {why_invalid(report)}", ""] if report.throttled else []),
        outcome.headline,
        "",
        *(f"- **{one.question} {one.answer}** {one.reason}" for one in outcome.statements),
        "",
        outcome.noise,
        "",
        *table(report),
        "",
        *_list("Not measured:", not_measured(report)),
        *_sensors(report),
        "## How it was measured",
        "",
        *_paragraphs([*method(report), setting(report), f"`{report.command}`"]),
        *_list("Options:", options(report)),
        "## Glossary",
        "",
        *(f"- **{term}**: {meaning}" for term, meaning in _terms(report).items()),
    ]
    return "\n".join(lines) + "\n"


def table(report: Report) -> list[str]:
    """The lines of the table of engines."""
    head = [column.heading for column in columns(report)]
    return _table(head, [[cell.text for cell in row] for row in rows(report)])


def _terms(report: Report) -> dict[str, str]:
    return terms(report, [column.heading for column in columns(report)])


def _sensors(report: Report) -> list[str]:
    cells = sensor_cells(report)
    lines = ["Sensors:", "", *_table(cells[0], cells[1:]), ""] if cells else []
    return lines + _paragraphs(sensor_notes(report))


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    rule = ["---", *(["---:"] * (len(head) - 1))]
    return ["| " + " | ".join(_escaped(cells)) + " |" for cells in (head, rule, *body)]


def _escaped(cells: list[str]) -> list[str]:
    """A bar in a name would end its cell."""
    return [cell.replace("|", "\\|") for cell in cells]


def _list(heading: str, lines: list[str]) -> list[str]:
    return [heading, "", *(f"- {line}" for line in lines), ""] if lines else []


def _paragraphs(lines: list[str]) -> list[str]:
    return [line for one in lines for line in (one, "")]
