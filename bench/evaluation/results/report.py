"""Write an evaluation as JSON, as a page and as a text table."""

from pathlib import Path

import msgspec

from edgelm.bench.evaluation.results.records import Evaluation, Subject
from edgelm.bench.evaluation.results.text_table import table_lines, text_table
from edgelm.files.replacing import replacing
from edgelm.page.page import page, paragraph, section
from edgelm.page.table import Cell, Column, table

JSON, TEXT, PAGE = "evaluation.json", "evaluation.txt", "evaluation.html"
_ERROR = "with its standard error; n items"
_PAIRED = (
    "model minus source on the same items, with the standard error of that difference; more than "
    "two of them count as a difference"
)


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write `evaluation.json`, `evaluation.txt` and `evaluation.html`."""
    texts = {
        JSON: msgspec.json.format(msgspec.json.encode(evaluation), indent=1) + b"\n",
        TEXT: f"{text_table(evaluation)}\n".encode(),
        PAGE: evaluation_page(evaluation).encode(),
    }
    for name, content in texts.items():
        with replacing(folder / name) as file:
            file.write(content)


def evaluation_page(evaluation: Evaluation) -> str:
    """The page."""
    columns = [
        Column("figure", text=True),
        Column("model", _ERROR),
        Column("source", _ERROR),
        Column("difference", _PAIRED),
        Column("verdict", _PAIRED, text=True),
    ]
    rows = [[Cell(text) for text in line] for line in table_lines(evaluation)]
    if evaluation.against is None:
        columns, rows = columns[:2], [row[:2] for row in rows]
    seconds = sum(result.seconds for result in evaluation.tasks)
    parts = [paragraph(f"model: {_described(evaluation.subject)}")]
    if evaluation.against is not None:
        parts.append(paragraph(f"source: {_described(evaluation.against)}"))
    parts += [
        paragraph(f"{evaluation.machine}; {seconds:.0f} s for the model's tasks"),
        paragraph(evaluation.command, "note"),
    ]
    body = section("Figures", table("figures by task", columns, rows)) + section("What ran", *parts)
    footer = f"edgelm {evaluation.edgelm_version}, {evaluation.created}"
    return page(f"Evaluation of {evaluation.subject.name}", body, footer)


def _described(subject: Subject) -> str:
    precision = f", {subject.precision}" if subject.precision else ""
    return (
        f"{subject.name} ({subject.kind}{precision}) on {subject.engine} {subject.engine_version}, "
        f"SHA-256 {subject.sha256[:16]}"
    )
