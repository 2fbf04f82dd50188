"""Lines and points over two axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgelm.page.axes import Axis, Range, short_number
from edgelm.page.marks import cross, line, mark, whisker
from edgelm.page.svg import TOP, Frame, Key, Plot, text

Point = tuple[float, float]
_MAX_MARKED = 24  # points of a line; more of them hide it
_MAX_LISTED = 6  # points of a series that its description lists


@dataclass(frozen=True, slots=True)
class Series:
    """Points with a name.

    titles: shown when the pointer rests on a point; one for each point, or none.
    spread: the lowest and highest y at each point, or none.
    outliers: points in addition to the series, drawn as crosses.
    """

    name: str
    points: tuple[Point, ...]
    titles: tuple[str, ...] = ()
    spread: tuple[Point, ...] = ()
    outliers: tuple[Point, ...] = ()
    style: Literal["line", "points"] = "line"
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Guide:
    """A line for comparison: through all of the plot at one x or y, or between two points.

    Only the former have room for their name.
    """

    name: str
    x: float | None = None
    y: float | None = None
    points: tuple[Point, ...] = ()


def xy_plot(
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    guides: Sequence[Guide] = (),
    note: str = "",
) -> Plot:
    """Draw series; they leave out points that are not finite or, on a log axis, not above zero.

    Series differ by color, shape and dash, in their order.
    """
    shown = [_visible(one, x, y) for one in series]
    ends = [point for guide in guides for point in guide.points]
    across = [g.x for g in guides if g.x is not None] + [point[0] for point in ends]
    up = [g.y for g in guides if g.y is not None] + [point[1] for point in ends]
    frame = Frame(
        Range.around([*_values(shown, 0), *across], x), Range.around([*_values(shown, 1), *up], y)
    )
    parts = frame.axes(x, y)
    for guide in guides:
        parts += _guide(guide, frame)
    for index, one in enumerate(shown):
        parts += _series(index, one, frame)
    listed = "; ".join(f"{one.name or title}: {_in_words(one)}" for one in shown if one.points)
    described = f"{y.label} by {x.label}. {listed or 'No data'}."
    keys = tuple(_key(index, one) for index, one in enumerate(shown) if one.points)
    legend = keys if len(series) > 1 else ()
    return Plot(title, described, tuple(parts), legend=legend, note=note)


def _visible(one: Series, x: Axis, y: Axis) -> Series:
    def fits(point: Point) -> bool:
        return x.shows(point[0]) and y.shows(point[1])

    chosen = [index for index, point in enumerate(one.points) if fits(point)]
    return Series(
        one.name,
        tuple(one.points[index] for index in chosen),
        tuple(one.titles[index] for index in chosen) if one.titles else (),
        tuple(one.spread[index] for index in chosen) if one.spread else (),
        tuple(point for point in one.outliers if fits(point)),
        one.style,
        one.bold,
    )


def _values(series: Sequence[Series], axis: int) -> list[float]:
    values = [point[axis] for one in series for point in (*one.points, *one.outliers)]
    ends = [end for one in series for pair in one.spread for end in pair]
    return values + (ends if axis else [])


def _series(index: int, one: Series, frame: Frame) -> list[str]:
    placed = [frame.place(*point) for point in one.points]
    parts = []
    if one.style == "line" and len(placed) > 1:
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in placed)
        parts.append(line(index, path, bold=one.bold))
    for (across, _), (low, high) in zip(placed, one.spread, strict=False):
        ends = (frame.down(frame.y.share(end)) for end in (high, low))
        parts.append(whisker(index, across, *ends))
    if one.style == "points" or len(placed) <= _MAX_MARKED:
        titles = one.titles or tuple(
            f"{one.name}: {short_number(b)} at {short_number(a)}" for a, b in one.points
        )
        parts += [mark(index, *place, title) for place, title in zip(placed, titles, strict=True)]
    for point in one.outliers:
        parts.append(cross(index, *frame.place(*point), f"outlier: {short_number(point[1])}"))
    return parts


def _guide(guide: Guide, frame: Frame) -> list[str]:
    if guide.x is not None:
        across = frame.across(frame.x.share(guide.x))
        path = f"M{across:.1f} {frame.down(0):.1f}V{frame.down(1):.1f}"
        near_end = frame.x.share(guide.x) > 0.5
        at = (across - 5 if near_end else across + 5, TOP - 7, "end" if near_end else "start")
    elif guide.y is not None:
        down = frame.down(frame.y.share(guide.y))
        path = f"M{frame.across(0):.1f} {down:.1f}H{frame.across(1):.1f}"
        at = (frame.across(1) - 4, down - 4, "end")
    else:
        (ax, ay), (bx, by) = (frame.place(*point) for point in guide.points)
        return [f'<path class="guide" d="M{ax:.1f} {ay:.1f}L{bx:.1f} {by:.1f}"/>']
    return [
        f'<path class="guide" d="{path}"/>',
        text(at[0], at[1], guide.name, at[2], "guide-name"),
    ]


def _key(index: int, one: Series) -> Key:
    parts = [line(index, "-15,0 15,0", bold=one.bold)] if one.style == "line" else []
    if one.style == "points" or len(one.points) <= _MAX_MARKED:
        parts.append(mark(index, 0, 0))
    return Key(one.name, "".join(parts))


def _in_words(one: Series) -> str:
    """The points in words; of many the ends and the lowest."""
    points = one.points
    if len(points) > _MAX_LISTED:
        lowest = min(points, key=lambda point: point[1])
        points = (points[0], lowest, points[-1])
    return ", ".join(f"{short_number(b)} at {short_number(a)}" for a, b in points)
