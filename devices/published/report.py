"""The tables of errors as Markdown, and predicted against measured as a plot."""

from collections.abc import Sequence
from pathlib import Path

from edgelm.devices.published.judge import Prediction, Ranges, Score, scores
from edgelm.devices.published.rows import Table
from edgelm.errors import MissingPackage

_HEAD = "| rows | n | median error | inside the range |\n|---|---:|---:|---:|"


def score_table(found: Sequence[Score]) -> str:
    """Median absolute errors, and how many of the truths the promised range held."""
    lines = [f"| {one.title} | {one.rows} | {one.median:.1%} | {one.inside:.0%} |" for one in found]
    return "\n".join([_HEAD, *lines])


def write_report(
    folder: Path,
    table: Table,
    unseen: Sequence[Prediction],
    familiar: Sequence[Prediction],
    unseen_ranges: Ranges,
    familiar_ranges: Ranges,
) -> None:
    """Write `errors.md` and `predicted.svg` to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["Every device predicted from the others:", score_table(scores(unseen, unseen_ranges))]
    if familiar:
        parts += [
            "Models left out in five parts, on devices that were seen with others:",
            score_table(scores(familiar, familiar_ranges)),
        ]
    parts += ["Decode by engine and device, each predicted from the other devices:"]
    parts += [_device_table(unseen)]
    left_out = [f"| {reason} | {count} |" for reason, count in table.left_out.items()]
    parts += ["Rows left out:", "\n".join(["| reason | rows |\n|---|---:|", *left_out])]
    (folder / "errors.md").write_text("\n\n".join(parts) + "\n")
    _plot(folder / "predicted.svg", unseen)


def _device_table(predictions: Sequence[Prediction]) -> str:
    groups: dict[tuple[str, str], list[Prediction]] = {}
    for one in predictions:
        if one.observation.kind == "decode":
            row = one.observation.row
            groups.setdefault((row.engine, row.hardware.family), []).append(one)
    lines = [
        "| engine | device | n | measured over predicted time, median |",
        "|---|---|---:|---:|",
    ]
    for (engine, device), ones in sorted(groups.items()):
        ratios = sorted(one.observation.measured_ms / one.predicted_ms for one in ones)
        lines.append(f"| {engine} | {device} | {len(ones)} | {ratios[len(ratios) // 2]:.2f} |")
    return "\n".join(lines)


def _plot(path: Path, predictions: Sequence[Prediction]) -> None:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackage("the plot needs matplotlib; pip install 'edgelm[bench]'") from None
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("decode", "prefill"), strict=True):
        chosen = [one for one in predictions if one.observation.kind == kind]
        engines = sorted({one.observation.row.engine for one in chosen})
        for engine in engines:
            ones = [one for one in chosen if one.observation.row.engine == engine]
            axes.loglog(
                [one.observation.measured_ms for one in ones],
                [one.predicted_ms for one in ones],
                "o",
                markersize=4,
                alpha=0.6,
                label=engine,
            )
        edges = [min(one.observation.measured_ms for one in chosen) / 1.5] if chosen else [1.0]
        edges += [max((one.observation.measured_ms for one in chosen), default=10.0) * 1.5]
        axes.plot(edges, edges, "k-", linewidth=1)
        for factor in (0.9, 1.1):
            axes.plot(edges, [edge * factor for edge in edges], "k:", linewidth=0.8)
        axes.set(
            xlabel=f"measured {kind}, ms",
            ylabel="predicted without the device, ms",
            title=kind,
        )
        if engines:
            axes.legend(fontsize=7)
    # The same rows give the same file; text stays text, which is also smaller.
    with mpl.rc_context({"svg.hashsalt": "edgelm", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
