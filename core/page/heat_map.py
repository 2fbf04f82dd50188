"""Numbers in rows and columns as cells of one color."""

import math
from collections.abc import Sequence

from edgelm.page.axes import Range, short_number
from edgelm.page.bar_chart import index_ticks
from edgelm.page.svg import BOTTOM, HEIGHT, LEFT, TOP, Frame, Plot, axis_labels, text


def heat_map(title: str, x: str, y: str, rows: Sequence[Sequence[float]]) -> Plot:
    """Cells from transparent (0 or less) to full color (the highest), the first row on top."""
    finite = [value for row in rows for value in row if math.isfinite(value)]
    highest = max([0.0, *finite])
    columns = max((len(row) for row in rows), default=0) or 1
    frame = Frame(Range(0.0, float(columns)), Range(0.0, float(max(1, len(rows)))))
    width = frame.across(frame.x.share(1)) - LEFT
    height = (HEIGHT - TOP - BOTTOM) / max(1, len(rows))
    cells = [
        f'<rect class="bar s0" x="{LEFT + column * width:.2f}" y="{TOP + row * height:.2f}" '
        f'width="{width:.2f}" height="{height:.2f}" fill-opacity="{_share(value, highest):.3f}"/>'
        for row, values in enumerate(rows)
        for column, value in enumerate(values)
    ]
    numbers = frame.numbers((frame.x.share(n + 0.5), str(n)) for n in index_ticks(columns))
    for row in index_ticks(len(rows)):
        numbers.append(text(LEFT - 6, TOP + (row + 0.5) * height + 4, str(row), "end"))
    return Plot(
        title,
        f"{len(rows)} rows ({y}) by {columns} columns ({x}). {_highest(rows, highest)}.",
        (*cells, *numbers, *axis_labels(x, y)),
        note=f"From 0 (no color) to {short_number(highest)} (full color).",
    )


def _share(value: float, highest: float) -> float:
    return max(0.0, value) / highest if highest and math.isfinite(value) else 0.0


def _highest(rows: Sequence[Sequence[float]], highest: float) -> str:
    for row, values in enumerate(rows):
        if highest in values:
            place = f"row {row}, column {list(values).index(highest)}"
            return f"Highest {short_number(highest)} at {place}"
    return "Nothing above 0"
