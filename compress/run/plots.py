"""The plots of a run: losses over tokens, candidates, and what importance was found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgelm.checkpoint.student import StudentRecord
from edgelm.compress.distillation.metrics import FILE, read_metrics
from edgelm.compress.distillation.milestones import FILE as HELD_OUT
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.puzzle.alternatives import Half, Score
from edgelm.compress.search.candidates import Candidate
from edgelm.page.axes import Axis
from edgelm.page.bar_chart import bar_chart
from edgelm.page.heat_map import heat_map
from edgelm.page.svg import Plot
from edgelm.page.xy_plot import Series, xy_plot

_TRAINED = ("correct", "distill", "qad")
_LOSSES = ("divergence", "cross_entropy", "hidden")
_COLUMNS = 64  # of the neurons' heat map


def training_plots(folder: Path) -> list[Plot]:
    """The losses of every stage that trained, from the logs in a run's folder."""
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
        axes = Axis("training tokens"), Axis("loss (divergence, cross-entropy: nats per token)")
        plots.append(xy_plot(f"Loss of {stage}", *axes, series))
    return [*plots, *_held_out_plot(folder / "distill" / HELD_OUT)]


def _held_out_plot(path: Path) -> list[Plot]:
    rows = [row for row in read_metrics(path) if _has(row, "tokens", "divergence")]
    if not rows:
        return []
    curve = Series("KL from the teacher", tuple((one["tokens"], one["divergence"]) for one in rows))
    axes = Axis("training tokens"), Axis("KL on held-out rows, nats per token (lower is better)")
    return [xy_plot("Held-out rows during distillation", *axes, [curve])]


def search_plot(candidates: Sequence[Candidate]) -> Plot:
    """Divergence from the teacher against predicted speed; the first candidate was chosen."""
    kinds = list(dict.fromkeys(one.kind for one in candidates))
    series = [_points(kind, [one for one in candidates if one.kind == kind]) for kind in kinds]
    return xy_plot(
        "Candidates",
        Axis("predicted tokens/s (higher is better)"),
        Axis("KL to the teacher, nats per token (lower is better)"),
        [*series, _points("chosen", candidates[:1])],
        note="Best is bottom right: fast, and close to the teacher.",
    )


def puzzle_plots(folder: Path, record: StudentRecord) -> list[Plot]:
    """The sizes of a student's layers, and what each alternative alone would cost."""
    chosen = next((one for one in record.stages if one.name == "puzzle"), None)
    path = folder / "puzzle-scores" / "scores.json"
    if chosen is None or not path.is_file():
        return []
    full, largest = record.teacher_shape["intermediate_size"], record.shape["intermediate_size"]
    layers = chosen.figures["layers"] or [{}] * record.shape["num_hidden_layers"]
    heads = record.teacher_shape["num_key_value_heads"]
    sizes = [
        [
            one.get("attention", True) * one.get("num_key_value_heads", heads) / heads,
            one.get("intermediate_size", largest) / full,
        ]
        for one in layers
    ]
    plots = [heat_map("Layers of the student", "attention, MLP", "layer", sizes)]
    scores = msgspec.json.decode(path.read_bytes(), type=list[Score])
    kinds = list(dict.fromkeys((one.alternative.half, one.alternative.size) for one in scores))
    series = [
        Series(
            _alternative_name(half, size),
            tuple(
                (float(one.alternative.layer), one.kl)
                for one in scores
                if (one.alternative.half, one.alternative.size) == (half, size)
            ),
            style="points",
        )
        for half, size in kinds
    ]
    axes = Axis("layer"), Axis("KL from the teacher, nats per token (lower is better)")
    return [*plots, xy_plot("What each alternative alone costs", *axes, series)]


def _alternative_name(half: Half, size: int) -> str:
    if half == "mlp":
        return f"MLP of {size}" if size else "no MLP"
    return f"{size} key heads" if size else "no attention"


def importance_plots(path: Path, record: StudentRecord) -> list[Plot]:
    """What `importance.safetensors` says of layers, heads, neurons and channels."""
    if not path.is_file():
        return []
    settings = next((one.settings for one in record.stages if one.name == "importance"), {})
    layers = ("Layers: block influence", "layer", "1 − cosine similarity")
    if settings.get("layers") == "loss":
        layers = ("Layers: loss without each", "layer", "increase of the loss")
    scores = Importance.load(path)
    channels = scores.channels.sort(descending=True).values.tolist()
    ranked = Series("channels", tuple((float(i), value) for i, value in enumerate(channels)))
    maps = [
        ("Query heads", "head", scores.heads),
        ("Neurons, sorted within their layer", "rank", _sorted(scores.neurons)),
        ("Experts, sorted within their layer", "rank", _sorted(scores.experts)),
        ("Mamba-2 heads", "head", scores.mamba_heads),
        ("Channels of convolutions, sorted", "rank", _sorted(scores.conv_channels)),
    ]
    return [
        bar_chart(*layers, scores.layers.tolist()),
        *(
            heat_map(title, part, "layer", values.tolist())
            for title, part, values in maps
            if values is not None
        ),
        xy_plot("Residual channels, sorted", Axis("rank"), Axis("score"), [ranked]),
    ]


def _sorted(scores: torch.Tensor | None) -> torch.Tensor | None:
    """Scores of each layer in descending order, averaged to a few columns; None without any."""
    if scores is None or not scores.shape[1]:
        return None
    ranked = scores.sort(1, descending=True).values
    columns = min(_COLUMNS, ranked.shape[1])
    return torch.nn.functional.adaptive_avg_pool1d(ranked[None], columns)[0]


def _is_whole(row: dict[str, Any]) -> bool:
    """Whether a line of a log has all that is plotted; a damaged one must not end the run."""
    return _has(row, "tokens", *_LOSSES)


def _has(row: dict[str, Any], *names: str) -> bool:
    return all(isinstance(row.get(name), int | float) for name in names)


def _points(name: str, candidates: Sequence[Candidate]) -> Series:
    return Series(
        name,
        tuple((one.tokens_per_second, one.loss) for one in candidates),
        tuple(f"{one.shape}: KL {one.loss:.3f}" for one in candidates),
        style="points",
    )
