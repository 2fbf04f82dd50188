"""The report as one self-contained HTML page: plots are SVG inside it, nothing is fetched."""

import io
from collections.abc import Callable
from html import escape
from typing import Any

from edgelm.bench.report.markdown import (
    absent,
    columns,
    engines,
    notes,
    row,
    sensor_cells,
    sensor_notes,
    why_invalid,
)
from edgelm.bench.report.report import Report, Result

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
  color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #d7dce2; text-align: right; }
th:first-child, td:first-child { text-align: left; }
tr.ours td { background: #eef6ee; font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(30rem, 1fr)); gap: 1rem; }
.plots svg { width: 100%; height: auto; } .wide { overflow-x: auto; }
.invalid { border-left: 6px solid #a40e26; background: #ffebe9; padding: .6rem 1rem; }
code { background: #f2f4f6; padding: .1rem .3rem; overflow-wrap: anywhere; }
"""
_OURS = "#1a7f37"
_OTHERS = ("#8250df", "#bf5b04", "#0969da", "#a40e26", "#57606a", "#1b7c83")


def html(report: Report) -> str:
    """Return the text of `report.html`."""
    machine = report.machine
    where = f"{machine.summary}; {machine.system}; edgelm {report.edgelm_version}; {report.created}"
    plots = "".join(f"<figure>{_svg(plot, report)}</figure>" for plot in _PLOTS)
    lost = "".join(f"<p>{escape(line)}</p>" for line in absent(report) if line)
    said = "".join(f"<p>{escape(line)}</p>" for line in notes(report) if line)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{escape(report.source)}: edgelm report</title><style>{_STYLE}</style>"
        f"<h1>{escape(report.source)}: edgelm beside its peers</h1>{_invalid(report)}"
        f"<p>{escape(where)}</p>"
        f"<p><code>{escape(report.command)}</code></p>"
        f"<div class=wide>{_table(report)}</div>{lost}"
        f"{_sensors(report)}<h2>Plots</h2>"
        f"<div class=plots>{plots}</div><h2>How to read this</h2>{said}</html>\n"
    )


def _invalid(report: Report) -> str:
    if not report.throttled:
        return ""
    return f"<p class=invalid><strong>INVALID</strong>: {escape(why_invalid(report))}</p>"


def _table(report: Report) -> str:
    body = ""
    for name, tests in engines(report).items():
        cells = _cells("td", row(report, tests))
        body += f"<tr class={'ours' if name.startswith('edgelm') else 'peer'}>{cells}</tr>"
    head = _cells("th", columns(report))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _sensors(report: Report) -> str:
    cells = sensor_cells(report)
    table = ""
    if cells:
        body = "".join(f"<tr>{_cells('td', line)}</tr>" for line in cells[1:])
        head = _cells("th", cells[0])
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    said = "".join(f"<p>{escape(note)}</p>" for note in sensor_notes(report))
    return f"<h2>Sensors</h2><div class=wide>{table}</div>{said}" if table or said else ""


def _cells(tag: str, cells: list[str]) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)


def _svg(plot: Callable[[Any, Report], None], report: Report) -> str:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    # A fixed salt: the same report gives the same bytes.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "edgelm", "font.size": 9}
    with mpl.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
        plot(axes, report)
        axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _colors(report: Report) -> dict[str, str]:
    others = iter(_OTHERS * 4)
    return {name: _OURS if name.startswith("edgelm") else next(others) for name in engines(report)}


def _depth(result: Result) -> int:
    return int(result.test.partition("@d")[2] or 0)


def _speed_by_depth(axes: Any, report: Report) -> None:
    for number, (name, tests) in enumerate(engines(report).items()):
        decode = [result for result in tests.values() if result.test.startswith("tg")]
        depths = [_depth(result) for result in decode]
        rates = [result.tokens_per_second for result in decode]
        medians = [rate.median for rate in rates]
        low = [rate.median - rate.p10 for rate in rates]
        high = [rate.p90 - rate.median for rate in rates]
        ours = name.startswith("edgelm")
        axes.errorbar(
            depths,
            medians,
            yerr=[low, high],
            label=name,
            color=_colors(report)[name],
            marker="os^Dv*"[number % 6],
            linewidth=2.4 if ours else 1.2,
            capsize=2,
        )
    axes.set(title="Decoding by context depth", xlabel="tokens in the cache", ylabel="tokens/s")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)


def _prefill(axes: Any, report: Report) -> None:
    prompts = [result for result in report.results if result.test.startswith("pp")]
    labels = [f"{result.engine} {result.test}" for result in prompts]
    colors = [_colors(report)[result.engine] for result in prompts]
    axes.barh(labels, [result.tokens_per_second.median for result in prompts], color=colors)
    axes.invert_yaxis()
    axes.set(title="Prompt processing", xlabel="tokens/s")


def _memory(axes: Any, report: Report) -> None:
    names = list(engines(report))
    parts = [next(iter(tests.values())).memory for tests in engines(report).values()]
    base = [part.base / 1e6 for part in parts]
    loaded = [max(0, part.loaded - part.base) / 1e6 for part in parts]
    rest = [max(0, part.peak - max(part.loaded, part.base)) / 1e6 for part in parts]
    axes.barh(names, base, color="#afb8c1", label="process before loading")
    axes.barh(names, loaded, left=base, color="#0969da", label="weights and set-up")
    left = [a + b for a, b in zip(base, loaded, strict=True)]
    axes.barh(names, rest, left=left, color="#bf5b04", label="cache touched and workspace")
    axes.invert_yaxis()
    axes.set(title="Peak resident memory", xlabel="MB")
    axes.legend(fontsize=7)


def _speed_against_kl(axes: Any, report: Report) -> None:
    for name, tests in engines(report).items():
        decode = [result for result in tests.values() if result.test.startswith("tg")]
        if not decode or decode[-1].kl is None:
            continue
        best = decode[min(1, len(decode) - 1)]
        kl = max(best.kl or 0.0, 1e-5)  # a logarithmic axis has no zero
        size = best.weight_bytes / 1e6
        axes.scatter(kl, best.tokens_per_second.median, s=size, color=_colors(report)[name])
        axes.annotate(f" {name}", (kl, best.tokens_per_second.median), fontsize=7)
        axes.set(ylabel=f"{best.test} tokens/s")
    axes.set_xscale("log")
    axes.set(title="Speed against KL (area: megabytes; better is up and left)", xlabel="KL, nats")


_PLOTS = (_speed_by_depth, _prefill, _memory, _speed_against_kl)
