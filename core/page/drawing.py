"""Plots as one SVG file, for documents that show it as an image."""

from collections.abc import Sequence
from html import escape

from edgelm.page.style import PLOT_STYLE
from edgelm.page.svg import KEY_HEIGHT, KEY_WIDTH, WIDTH, Plot, text, unique_keys

_TITLE, _GAP, _KEY_ROW = 24.0, 24.0, 18.0


def drawing(title: str, plots: Sequence[Plot]) -> str:
    """Plots side by side with their titles, and one legend below; equal plots give equal bytes."""
    height = max(plot.height for plot in plots)
    keys = unique_keys(plots)
    width = len(plots) * (WIDTH + _GAP) - _GAP
    columns = max(1, int(width // (WIDTH / 2)))
    parts = []
    for index, plot in enumerate(plots):
        left = index * (WIDTH + _GAP)
        parts.append(text(left + WIDTH / 2, 16, plot.title, "middle", "title"))
        parts.append(f'<g transform="translate({left:g} {_TITLE:g})">{"".join(plot.parts)}</g>')
    for index, key in enumerate(keys):
        left = (index % columns) * width / columns + KEY_WIDTH / 2
        top = _TITLE + height + (index // columns) * _KEY_ROW + KEY_HEIGHT
        parts.append(f'<g transform="translate({left:.1f} {top:.1f})">{key.marks}</g>')
        parts.append(text(left + KEY_WIDTH / 2 + 6, top + 4, key.name, "start"))
    total = _TITLE + height + _KEY_ROW * (-(-len(keys) // columns)) + _KEY_ROW
    described = " ".join(f"{plot.title}: {plot.description}" for plot in plots)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {total:g}" '
        f'width="{width:g}" height="{total:g}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(described)}</desc>"
        f'<style>{PLOT_STYLE}</style><rect class="paper" width="100%" height="100%"/>'
        f"{''.join(parts)}</svg>\n"
    )
