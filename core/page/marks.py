"""Marks that tell series apart by shape and dash as well as by color."""

from html import escape

COLORS = 6
# Around the origin, about nine units wide.
_SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "M-3.6 -3.6h7.2v7.2h-7.2Z",
    "M0 -4.8L4.8 3.6H-4.8Z",
    "M0 -5.2L5.2 0L0 5.2L-5.2 0Z",
    "M0 4.8L4.8 -3.6H-4.8Z",
    "M-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z",
    "M-4.6 -4L4.6 4V-4L-4.6 4Z",
)
_CROSS = "M-4 -4L4 4M-4 4L4 -4"
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 4")


def color(index: int) -> str:
    """The CSS class of a series."""
    return f"s{index % COLORS}"


def mark(index: int, x: float, y: float, title: str = "") -> str:
    """A filled shape at a point."""
    return _path(f"mark {color(index)}", _SHAPES[index % len(_SHAPES)], x, y, title)


def cross(index: int, x: float, y: float, title: str) -> str:
    """An outlier."""
    return _path(f"cross {color(index)}", _CROSS, x, y, title)


def line(index: int, points: str, *, bold: bool = False) -> str:
    """A line through `x,y x,y ..`."""
    dash = _DASHES[index % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    weight = " bold" if bold else ""
    return f'<polyline class="line {color(index)}{weight}"{dashes} points="{points}"/>'


def whisker(index: int, x: float, top: float, bottom: float) -> str:
    """From the lowest to the highest of what was measured at one place."""
    return (
        f'<path class="whisker {color(index)}" '
        f'd="M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 3:.1f} {top:.1f}h6M{x - 3:.1f} {bottom:.1f}h6"/>'
    )


def _path(style: str, shape: str, x: float, y: float, title: str) -> str:
    inside = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<path class="{style}" transform="translate({x:.1f} {y:.1f})" d="{shape}">{inside}</path>'
    )
