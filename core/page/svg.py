"""A plot before it is put on a page: SVG elements in a box, its words and its legend."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from edgelm.page.axes import Axis, Range, short_number

WIDTH = 400.0  # units; on a telephone about a pixel each, so that text stays readable
HEIGHT = 260.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 36.0, 40.0
KEY_WIDTH, KEY_HEIGHT = 30, 12


@dataclass(frozen=True, slots=True)
class Key:
    """One line of a legend: a name, and SVG elements around the middle of its key."""

    name: str
    marks: str


@dataclass(frozen=True, slots=True)
class Plot:
    """What is drawn, and in words for those who do not see it."""

    title: str
    description: str
    parts: tuple[str, ...]
    height: float = HEIGHT
    legend: tuple[Key, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """The area between the axes."""

    x: Range
    y: Range

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Units from the left and from the top."""
        return self.across(self.x.share(x)), self.down(self.y.share(y))

    def across(self, share: float) -> float:
        """Units from the left of a share of the width."""
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def down(self, share: float) -> float:
        """Units from the top of a share of the height."""
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def axes(self, x: Axis, y: Axis) -> list[str]:
        """Grid lines, the numbers of both axes, and what they count."""
        ticks = [(self.x.share(value), short_number(value)) for value in self.x.ticks()]
        return [*self.rows(), *self.numbers(ticks), *axis_labels(x.label, y.label)]

    def rows(self) -> list[str]:
        """Grid lines with their numbers."""
        parts = []
        for value in self.y.ticks():
            down = self.down(self.y.share(value))
            parts.append(f'<path class="grid" d="M{LEFT:g} {down:.1f}H{WIDTH - RIGHT:g}"/>')
            parts.append(text(LEFT - 6, down + 4, short_number(value), "end"))
        return parts

    def numbers(self, ticks: Iterable[tuple[float, str]]) -> list[str]:
        """Numbers below the plot, each at a share of the width."""
        down = HEIGHT - BOTTOM + 16
        return [text(self.across(share), down, number, "middle") for share, number in ticks]


def axis_labels(x: str, y: str) -> list[str]:
    """The label of x below the numbers, that of y above them: nothing is read sideways."""
    return [
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x, "middle", "label"),
        text(4, 12, y, "start", "label"),
    ]


def text(x: float, y: float, content: str, anchor: str, style: str = "") -> str:
    """One line of text; `anchor` is start, middle or end."""
    chosen = f' class="{style}"' if style else ""
    return f'<text{chosen} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def figure(plot: Plot) -> str:
    """A plot for an HTML page; the legend is text of the page, so that long names wrap."""
    keys = "".join(
        f'<li><svg class="key" viewBox="{-KEY_WIDTH / 2:g} {-KEY_HEIGHT / 2:g} {KEY_WIDTH} '
        f'{KEY_HEIGHT}" aria-hidden="true">{key.marks}</svg> {escape(key.name)}</li>'
        for key in plot.legend
    )
    legend = f'<ul class="legend">{keys}</ul>' if keys else ""
    note = f'<p class="note">{escape(plot.note)}</p>' if plot.note else ""
    label = escape(f"{plot.title}. {plot.description}")
    return (
        f'<figure class="plot"><figcaption>{escape(plot.title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH:g} {plot.height:g}" role="img" aria-label="{label}">'
        f"{''.join(plot.parts)}</svg>{legend}{note}</figure>"
    )


def unique_keys(plots: Sequence[Plot]) -> list[Key]:
    """The keys of several plots, each name once."""
    return list({key.name: key for plot in plots for key in plot.legend}.values())
