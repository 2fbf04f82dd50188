"""The report as one HTML page that needs no other file: the verdict first, then the figures."""

from html import escape

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
from edgelm.bench.report.page.plots import plots
from edgelm.bench.report.page.table import columns, rows
from edgelm.bench.report.records import Report
from edgelm.bench.report.selection import (
    engines,
    is_own,
    own_results,
    test_of,
    typical_decode,
    typical_prompt,
)
from edgelm.bench.report.verdict import at_depth, seconds, verdict
from edgelm.page.page import (
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
from edgelm.page.table import Column, table
from edgelm.planning import short


def html(report: Report) -> str:
    """Return the text of `report.html`."""
    outcome = verdict(report)
    body = [
        _invalid(report),
        paragraph(outcome.headline, "lead"),
        tiles(_tiles(report)),
        statements(outcome.statements),
        paragraph(outcome.noise),
        section("All figures", _table(report)),
        section("Not measured", bullets(not_measured(report))),
        section("Plots", figures(plots(report))),
        _sensors(report),
        section(
            "How it was measured",
            "".join(paragraph(line) for line in [*method(report), setting(report)]),
            f"<p><code>{escape(report.command)}</code></p>",
            bullets(options(report)),
        ),
        section("Glossary", glossary(terms(report, [one.heading for one in columns(report)]))),
    ]
    footer = f"edgelm {report.edgelm_version}, {report.created}"
    return page(f"{report.source}: edgelm report", "".join(body), footer)


def _invalid(report: Report) -> str:
    if not report.throttled:
        return ""
    reason = escape(why_invalid(report))
    return f'<p class="alert" role="alert"><strong>INVALID</strong>: {reason}</p>'


def _tiles(report: Report) -> list[Tile]:
    own = own_results(report)
    found = []
    if prompt := typical_prompt(own):
        length = f"after a prompt of {test_of(prompt).tokens:,} tokens"
        value, _, unit = seconds(prompt.ttft_ms).partition(" ")
        found.append(Tile("First token", value, unit, length))
    if decode := typical_decode(own):
        rate = short(decode.tokens_per_second.median)
        found.append(Tile("Decoding", rate, "tokens/s", at_depth(test_of(decode).depth)))
    if own:
        peak = f"{own[0].peak_rss_bytes / 1e6:,.0f}"
        details = f"at the peak; the weights are {own[0].weight_bytes / 1e6:,.0f} MB"
        if own[0].memory.gpu is not None:
            details += f"; {own[0].memory.gpu / 1e6:,.0f} MB more on the GPU"
        found.append(Tile("Memory", peak, "MB", details))
    return found


def _table(report: Report) -> str:
    own = [index for index, name in enumerate(engines(report)) if is_own(name)]
    caption = "Engines and tests; rows of edgelm are shaded"
    return table(caption, columns(report), rows(report), own=own, sortable=True)


def _sensors(report: Report) -> str:
    cells = sensor_cells(report)
    shown = ""
    if cells:
        head = [Column(name, text=name in ("sensor", "unit")) for name in cells[0]]
        shown = table("What the sensors read while it was measured", head, cells[1:])
    notes = "".join(paragraph(note) for note in sensor_notes(report))
    return section("Sensors", shown, notes)
