"""Small plots as inline SVG: lines, points, heat maps, bars. Colours come from the page's CSS."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 40


@dataclass(frozen=True, slots=True)
class Series:
    """Points with a name; `titles` are shown on hovering over a point."""

    name: str
    points: tuple[tuple[float, float], ...]
    titles: tuple[str, ...] = ()


def line_plot(title: str, x: str, y: str, series: Sequence[Series]) -> str:
    """One line for each series."""
    frame = _Frame.around([point for one in series for point in one.points])
    lines = [
        f'<polyline class="s{index % 6}" fill="none" points="'
        + " ".join(f"{px:.1f},{py:.1f}" for px, py in map(frame.place, one.points))
        + '"/>'
        for index, one in enumerate(series)
        if one.points
    ]
    return _figure(title, [*frame.axes(x, y), *lines, *_legend(series)])


def scatter_plot(title: str, x: str, y: str, series: Sequence[Series]) -> str:
    """One circle for each point."""
    frame = _Frame.around([point for one in series for point in one.points])
    circles = []
    for index, one in enumerate(series):
        titles = one.titles or ("",) * len(one.points)
        for point, text in zip(one.points, titles, strict=True):
            px, py = frame.place(point)
            circles.append(
                f'<circle class="s{index % 6}" cx="{px:.1f}" cy="{py:.1f}" r="4">'
                f"<title>{escape(text)}</title></circle>"
            )
    return _figure(title, [*frame.axes(x, y), *circles, *_legend(series)])


def heat_map(title: str, x: str, y: str, rows: Sequence[Sequence[float]]) -> str:
    """Cells from light (least) to full colour (most), the first row on top."""
    highest = max((value for row in rows for value in row), default=0.0) or 1.0
    width = (_WIDTH - _LEFT - _RIGHT) / max(1, len(rows[0]))
    height = (_HEIGHT - _TOP - _BOTTOM) / len(rows)
    cells = [
        f'<rect class="cell" x="{_LEFT + column * width:.2f}" y="{_TOP + row * height:.2f}" '
        f'width="{width:.2f}" height="{height:.2f}" '
        f'fill-opacity="{max(0.0, value) / highest:.3f}"/>'
        for row, values in enumerate(rows)
        for column, value in enumerate(values)
    ]
    return _figure(title, [*cells, *_labels(x, y)])


def bar_chart(title: str, x: str, y: str, values: Sequence[float]) -> str:
    """One bar for each value, from zero."""
    frame = _Frame(0.0, float(len(values)), 0.0, max([*values, 1e-12]))
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(values))
    bottom = _HEIGHT - _BOTTOM
    bars = []
    for index, value in enumerate(values):
        px, py = frame.place((float(index), max(0.0, value)))
        bars.append(
            f'<rect class="bar" x="{px:.1f}" y="{py:.1f}" width="{0.8 * step:.1f}" '
            f'height="{bottom - py:.1f}"><title>{index}: {value:.4g}</title></rect>'
        )
    return _figure(title, [*frame.axes(x, y), *bars])


@dataclass(frozen=True, slots=True)
class _Frame:
    """The range of the axes."""

    x0: float
    x1: float
    y0: float
    y1: float

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]]) -> "_Frame":
        xs, ys = [x for x, _ in points] or [0.0], [y for _, y in points] or [0.0]
        return cls(*_widened(min(xs), max(xs)), *_widened(min(ys), max(ys)))

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        """Pixels of a point."""
        across = (point[0] - self.x0) / (self.x1 - self.x0)
        up = (point[1] - self.y0) / (self.y1 - self.y0)
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + across * width, _HEIGHT - _BOTTOM - up * height

    def axes(self, x: str, y: str) -> list[str]:
        """Grid lines, their numbers, and what they count."""
        parts = []
        for value in _ticks(self.y0, self.y1):
            _, py = self.place((self.x0, value))
            parts.append(f'<path class="grid" d="M{_LEFT} {py:.1f}H{_WIDTH - _RIGHT}"/>')
            parts.append(_text(_LEFT - 6, py + 4, _short(value), "end"))
        for value in _ticks(self.x0, self.x1):
            px, _ = self.place((value, self.y0))
            parts.append(_text(px, _HEIGHT - _BOTTOM + 16, _short(value), "middle"))
        return [*parts, *_labels(x, y)]


def _widened(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    return low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)]


def _short(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.4g}"


def _labels(x: str, y: str) -> list[str]:
    return [
        _text(_WIDTH / 2, _HEIGHT - 6, x, "middle"),
        f'<text transform="translate(12 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y)}</text>",
    ]


def _legend(series: Sequence[Series]) -> list[str]:
    if len(series) < 2:
        return []
    return [
        f'<text class="s{index % 6}" x="{_WIDTH - _RIGHT - 4}" y="{_TOP + 14 + 16 * index}" '
        f'text-anchor="end">{escape(one.name)}</text>'
        for index, one in enumerate(series)
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(title: str, parts: Sequence[str]) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg></figure>"
    )
