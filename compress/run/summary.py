"""The page of a run: what went in, what came out, and the curves between, in one HTML file."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint.student import StudentRecord
from edgelm.compress.distillation.metrics import FILE, read_metrics
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.run.plots import Series, bar_chart, heat_map, line_plot, scatter_plot
from edgelm.compress.search.candidates import Candidate
from edgelm.files.staging import replace_file

_JUDGED = ("teacher", "corrected", "pruned", "student")
_TRAINED = ("correct", "distill", "qad")
_LOSSES = ("divergence", "cross_entropy", "hidden")
_COLUMNS = 64  # of the neurons' heat map
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --dim: #6b6b70; --line: #dcdce0; --page: #fff;
  --s0: #2563c9; --s1: #c2410c; --s2: #15803d; --s3: #9333a8; --s4: #a16207; --s5: #0e7490; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececee; --dim: #9a9aa0; --line: #3a3a3e;
  --page: #161618; --s0: #7aa7f0; --s1: #f0925c; --s2: #5cc47f; --s3: #cf8be0; --s4: #d9a943;
  --s5: #4bb9d0; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 880px; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--page); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--dim); }
.grid { stroke: var(--line); } .cell, .bar { fill: var(--s0); } polyline { stroke-width: 1.5; }
""" + "".join(
    f"polyline.s{i} {{ stroke: var(--s{i}); }}\n"
    f"circle.s{i}, svg text.s{i} {{ fill: var(--s{i}); }}\n"
    for i in range(6)
)


def write_summary(folder: Path, record: StudentRecord, candidates: Sequence[Candidate]) -> Path:
    """Write `summary.html` into a run's folder; what the run does not have is left out."""
    share = record.parameters / record.teacher_parameters
    name = escape(record.teacher)
    parts = [
        f"<h1>A student of {name}</h1>",
        f"<p>{record.parameters / 1e6:,.1f} M parameters, {share:.0%} of the teacher's "
        f"{record.teacher_parameters / 1e6:,.1f} M.</p>",
        _table(["", "teacher", "student"], _shapes(record)),
    ]
    if record.evaluation:
        head = ["", *_JUDGED, "student / teacher"]
        parts += ["<h2>Quality</h2>", _table(head, _evaluation(record))]
    parts += ["<h2>Stages</h2>", _table(["", "tokens", "seconds", "found"], _stages(record))]
    parts += _losses(folder)
    parts += _candidates(candidates)
    parts += _importance(folder / "importance" / "importance.safetensors", record)
    title = f"A student of {name}"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{''.join(parts)}"
        f"<p>edgelm {escape(record.edgelm_version)}</p></body></html>\n"
    )
    path = folder / "summary.html"
    replace_file(path, page.encode())
    return path


def _shapes(record: StudentRecord) -> list[list[str]]:
    return [
        [size.replace("_", " "), f"{record.teacher_shape[size]:,}", f"{value:,}"]
        for size, value in record.shape.items()
    ]


def _evaluation(record: StudentRecord) -> list[list[str]]:
    rows = []
    for task, figures in record.evaluation.items():
        cells = [task]
        for who in _JUDGED:
            figure = figures.get(who)
            error = f" ± {figure.error:.2g}" if figure and figure.error else ""
            cells.append(f"{figure.value:.4g}{error}" if figure else "")
        both = "teacher" in figures and "student" in figures and figures["teacher"].value
        ratio = figures["student"].value / figures["teacher"].value if both else None
        rows.append([*cells, "" if ratio is None else f"{ratio:.3f}"])
    return rows


def _stages(record: StudentRecord) -> list[list[str]]:
    return [
        [
            one.name,
            f"{one.tokens:,}" if one.tokens else "",
            f"{one.seconds:,.0f}",
            _found(one.figures),
        ]
        for one in record.stages
    ]


def _found(figures: dict[str, Any]) -> str:
    shown = []
    for name, value in figures.items():
        if isinstance(value, float):
            shown.append(f"{name.replace('_', ' ')} {value:.4g}")
        elif isinstance(value, int | str):
            shown.append(f"{name.replace('_', ' ')} {value}")
    return "; ".join(shown)


def _losses(folder: Path) -> list[str]:
    plots = []
    for stage in _TRAINED:
        rows = [row for row in read_metrics(folder / stage / FILE) if _is_whole(row)]
        if not rows:
            continue
        series = [
            Series(name.replace("_", "-"), tuple((row["tokens"], row[name]) for row in rows))
            for name in _LOSSES
            if any(row[name] for row in rows)
        ]
        plots.append(line_plot(f"{stage}: loss in nats a token", "tokens", "nats", series))
    return ["<h2>Training</h2>", *plots] if plots else []


def _is_whole(row: dict[str, Any]) -> bool:
    """Whether a line of a log has all that is plotted; a damaged one must not end the run."""
    return all(isinstance(row.get(name), int | float) for name in ("tokens", *_LOSSES))


def _candidates(candidates: Sequence[Candidate]) -> list[str]:
    judged = [one for one in candidates if one.loss != float("inf")]
    if not judged:
        return []
    kinds = list(dict.fromkeys(one.kind for one in judged))
    series = [
        Series(
            kind,
            tuple((one.tokens_per_second, one.loss) for one in judged if one.kind == kind),
            tuple(str(one.shape) for one in judged if one.kind == kind),
        )
        for kind in kinds
    ]
    chosen = judged[0]
    series.append(
        Series("chosen", ((chosen.tokens_per_second, chosen.loss),), (str(chosen.shape),))
    )
    title = "Candidates: divergence from the teacher against predicted speed"
    rows = [
        [
            str(one.shape),
            f"{one.tokens_per_second:.1f}",
            f"{one.memory_bytes / 1e6:,.0f}",
            "" if one.pruned is None else f"{one.pruned:.3f}",
            ", ".join(f"{loss:.3f}" for loss in one.distilled),
        ]
        for one in judged
    ]
    head = ["shape", "tokens/s", "MB", "pruned", "distilled"]
    plot = scatter_plot(title, "tokens/s", "KL, nats a token", series)
    return ["<h2>Search</h2>", plot, _table(head, rows)]


def _importance(path: Path, record: StudentRecord) -> list[str]:
    if not path.is_file():
        return []
    settings = next((one.settings for one in record.stages if one.name == "importance"), {})
    layers = ("Layers: block influence", "layer", "1 - cosine")
    if settings.get("layers") == "loss":
        layers = ("Layers: the loss without each", "layer", "rise of the loss")
    scores = Importance.load(path)
    neurons = scores.neurons.sort(1, descending=True).values
    binned = torch.nn.functional.adaptive_avg_pool1d(
        neurons[None], min(_COLUMNS, neurons.shape[1])
    )[0]
    channels = scores.channels.sort(descending=True).values.tolist()
    ranked = Series("channels", tuple((float(i), value) for i, value in enumerate(channels)))
    return [
        "<h2>Importance</h2>",
        bar_chart(*layers, scores.layers.tolist()),
        heat_map("Query heads", "head", "layer", scores.heads.tolist()),
        heat_map("Neurons, sorted within their layer", "rank", "layer", binned.tolist()),
        line_plot("Channels of the residual stream, sorted", "rank", "score", [ranked]),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
