"""Bars: vertical ones for a row of numbers, horizontal ones for names."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgelm.page.axes import Axis, Range, short_number
from edgelm.page.marks import color
from edgelm.page.svg import RIGHT, WIDTH, Frame, Key, Plot, axis_labels, text

_ROW, _BAR, _HEAD = 36.0, 14.0, 4.0
_NUMBER = 56.0  # for the number at the end of a bar
_MAX_NAME = 56


@dataclass(frozen=True, slots=True)
class Bar:
    """A name and the parts that its bar is stacked of."""

    name: str
    parts: tuple[float, ...]
    bold: bool = False


def bar_chart(title: str, x: str, y: str, values: Sequence[float]) -> Plot:
    """One vertical bar for each value, counted from 0; bars of negative values go down."""
    axis = Axis(y, from_zero=True)
    drawn = [value if axis.shows(value) else 0.0 for value in values]
    frame = Frame(Range(0.0, float(max(1, len(drawn)))), Range.around(drawn, axis))
    step = frame.across(frame.x.share(1.0)) - frame.across(0.0)
    zero = frame.down(frame.y.share(0.0))
    bars = []
    for index, value in enumerate(drawn):
        left, end = frame.place(float(index), value)
        bars.append(
            f'<rect class="bar s0" x="{left + 0.1 * step:.1f}" y="{min(end, zero):.1f}" '
            f'width="{0.8 * step:.1f}" height="{abs(zero - end):.1f}">'
            f"<title>{index}: {value:.4g}</title></rect>"
        )
    ticks = [(frame.x.share(n + 0.5), str(n)) for n in index_ticks(len(drawn))]
    parts = [*frame.rows(), *frame.numbers(ticks), *axis_labels(x, y), *bars]
    return Plot(title, f"{y} by {x}. {_extremes(drawn)}.", tuple(parts))


def horizontal_bars(
    title: str, unit: str, parts: Sequence[str], bars: Sequence[Bar], *, note: str = ""
) -> Plot:
    """A horizontal bar for each name, stacked of the named parts, with its sum at the end.

    Parts differ by color and by height.
    """
    longest = max((sum(bar.parts) for bar in bars), default=0.0) or 1.0
    scale = (WIDTH - RIGHT - _NUMBER) / longest
    drawn = []
    for row, bar in enumerate(bars):
        drawn += _horizontal_bar(bar, parts, _HEAD + row * _ROW, scale, unit)
    listed = "; ".join(f"{bar.name}: {_in_words(bar, parts)}" for bar in bars)
    keys = [Key(name, _rect(index, -15, 0, 30)) for index, name in enumerate(parts)]
    return Plot(
        title,
        f"{unit}. {listed or 'No data'}.",
        tuple(drawn),
        height=_HEAD + _ROW * max(1, len(bars)),
        legend=tuple(keys) if len(keys) > 1 else (),
        note=note,
    )


def index_ticks(count: int) -> list[int]:
    """Whole numbers from 0 to below a count, at most nine of them."""
    return list(range(0, count, max(1, -(-count // 8))))


def _horizontal_bar(
    bar: Bar, parts: Sequence[str], top: float, scale: float, unit: str
) -> list[str]:
    short = bar.name if len(bar.name) <= _MAX_NAME else bar.name[: _MAX_NAME - 1] + "…"
    style = "name bold" if bar.bold else "name"
    drawn, left, middle = [text(0, top + 11, short, "start", style)], 0.0, top + 16 + _BAR / 2
    for index, (part, value) in enumerate(zip(parts, bar.parts, strict=True)):
        width = max(0.0, value) * scale
        drawn.append(_rect(index, left, middle, width, f"{bar.name}, {part}: {value:.4g} {unit}"))
        left += width
    total = f"{sum(bar.parts):,.0f}" if sum(bar.parts) >= 100 else f"{sum(bar.parts):.3g}"
    return [*drawn, text(left + 6, middle + 4, total, "start")]


def _rect(index: int, left: float, middle: float, width: float, title: str = "") -> str:
    height = _BAR - 4.0 * (index % 3)
    inside = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect class="bar {color(index)}" x="{left:.1f}" y="{middle - height / 2:.1f}" '
        f'width="{width:.1f}" height="{height:g}">{inside}</rect>'
    )


def _in_words(bar: Bar, parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return short_number(bar.parts[0])
    values = zip(parts, bar.parts, strict=True)
    return ", ".join(f"{part} {short_number(value)}" for part, value in values)


def _extremes(values: Sequence[float]) -> str:
    if not values:
        return "No data"
    high, low = max(values), min(values)
    return (
        f"Highest {short_number(high)} at {values.index(high)}, "
        f"lowest {short_number(low)} at {values.index(low)}"
    )
