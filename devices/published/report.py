"""The tables of errors as Markdown, and predicted against measured as a plot."""

from collections.abc import Sequence
from pathlib import Path

from edgelm.devices.published.rows import Table
from edgelm.devices.published.validation import Prediction, Ranges, Score, scores
from edgelm.page.axes import Axis
from edgelm.page.drawing import drawing
from edgelm.page.svg import Plot
from edgelm.page.xy_plot import Guide, Series, xy_plot

_HEAD = "| rows | n | median error | inside the range |\n|---|---:|---:|---:|"


def score_table(found: Sequence[Score]) -> str:
    """Median absolute errors, and the share of measurements inside the predicted range."""
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
    parts = [
        "Every device, predicted by a fit on the others:",
        score_table(scores(unseen, unseen_ranges)),
    ]
    if familiar:
        parts += [
            "Models left out in five folds, on devices that the fit knows with other models:",
            score_table(scores(familiar, familiar_ranges)),
        ]
    parts += ["Decode by engine and device, each predicted from the other devices:"]
    parts += [_device_table(unseen)]
    left_out = [f"| {reason} | {count} |" for reason, count in table.left_out.items()]
    parts += ["Rows left out:", "\n".join(["| reason | rows |\n|---|---:|", *left_out])]
    (folder / "errors.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    plots = [_plot(unseen, kind) for kind in ("decode", "prefill")]
    (folder / "predicted.svg").write_text(
        drawing("Predicted against measured", plots), encoding="utf-8"
    )


def _device_table(predictions: Sequence[Prediction]) -> str:
    groups: dict[tuple[str, str], list[Prediction]] = {}
    for one in predictions:
        if one.observation.kind == "decode":
            row = one.observation.row
            groups.setdefault((row.engine, row.hardware.family), []).append(one)
    lines = [
        "| engine | device | n | measured over predicted time, median | median error |",
        "|---|---|---:|---:|---:|",
    ]
    for (engine, device), ones in sorted(groups.items()):
        ratios = sorted(one.observation.measured_ms / one.predicted_ms for one in ones)
        errors = sorted(one.relative for one in ones)
        middle = len(ones) // 2
        lines.append(
            f"| {engine} | {device} | {len(ones)} | {ratios[middle]:.2f} | {errors[middle]:.1%} |"
        )
    return "\n".join(lines)


def _plot(predictions: Sequence[Prediction], kind: str) -> Plot:
    chosen = [one for one in predictions if one.observation.kind == kind]
    # Both kinds list every engine, so that one has the same color in both.
    engines = sorted({one.observation.row.engine for one in predictions})
    series = [
        Series(
            engine,
            tuple(
                (one.observation.measured_ms, one.predicted_ms)
                for one in chosen
                if one.observation.row.engine == engine
            ),
            style="points",
        )
        for engine in engines
    ]
    times = [one.observation.measured_ms for one in chosen] or [1.0]
    ends = (min(times) / 1.5, max(times) * 1.5)
    # Exact, and off by a tenth either way.
    guides = [
        Guide(f"{share:g}", points=((ends[0], share * ends[0]), (ends[1], share * ends[1])))
        for share in (0.9, 1.0, 1.1)
    ]
    return xy_plot(
        kind,
        Axis(f"measured {kind}, ms", log=True),
        Axis("predicted without the device, ms", log=True),
        series,
        guides=guides,
    )
