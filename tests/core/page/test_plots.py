"""Plots as markup: what is drawn where, what is read out, and that strange values stay inside."""

import math
import re
from xml.etree import ElementTree as ET

import pytest

from edgelm.page.axes import Axis
from edgelm.page.bar_chart import Bar, bar_chart, horizontal_bars
from edgelm.page.drawing import drawing
from edgelm.page.heat_map import heat_map
from edgelm.page.svg import HEIGHT, WIDTH, Plot, figure
from edgelm.page.xy_plot import Guide, Series, xy_plot
from tests.pages.page_checks import figures

X, Y = Axis("x"), Axis("y")


def drawn(plot: Plot) -> ET.Element:
    return figures(figure(plot))[plot.title]


def of_class(root: ET.Element, name: str) -> list[ET.Element]:
    return [one for one in root.iter() if name in (one.get("class") or "").split()]


def test_a_line_by_hand() -> None:
    series = Series("s", ((0.0, 0.0), (25.0, 5.0), (50.0, 10.0)))
    plot = drawn(xy_plot("t", X, Axis("y", from_zero=True), [series]))
    [line] = of_class(plot, "line")
    # From 46 to 388 across with a margin of 4% of the range; from 220 up to 36, margin above only.
    places = [tuple(map(float, place.split(","))) for place in str(line.get("points")).split()]
    assert places == [(58.7, 220.0), (217.0, 131.5), (375.3, 43.1)]
    assert len(of_class(plot, "mark")) == 3
    texts = [str(one.text) for one in plot.iter("text")]
    assert texts == ["0", "2", "4", "6", "8", "10", "0", "10", "20", "30", "40", "50", "x", "y"]


def test_series_differ_in_color_shape_and_dash() -> None:
    series = [Series(f"s{n}", ((0.0, n), (1.0, n))) for n in range(12)]
    plot = drawn(xy_plot("t", X, Y, series))
    lines = of_class(plot, "line")[:12]
    marks = of_class(plot, "mark")[:24:2]
    looks = {(one.get("class"), one.get("d")) for one in marks}
    assert len(looks) == 12
    assert len({line.get("stroke-dasharray") for line in lines}) == 6


def test_a_legend_names_what_has_points() -> None:
    series = [Series("first", ((0.0, 1.0),)), Series("none", ()), Series("<third>", ((1.0, 1.0),))]
    plot = drawn(xy_plot("t", X, Y, series))
    keys = ["".join(one.itertext()).strip() for one in plot.iter("li")]
    assert keys == ["first", "<third>"]
    # The third keeps its color though the second has none.
    assert [one.get("class") for one in of_class(plot, "mark")][:2] == ["mark s0", "mark s2"]


def test_the_description_reads_the_points_out() -> None:
    few = xy_plot("t", X, Axis("tokens/s"), [Series("a", ((0.0, 5.0), (512.0, 4.0)))])
    assert few.description == "tokens/s by x. a: 5 at 0, 4 at 512."
    many = Series("b", tuple((float(n), float((n - 5) ** 2)) for n in range(20)))
    assert "b: 25 at 0, 0 at 5, 196 at 19" in xy_plot("t", X, Y, [many]).description
    assert "No data" in xy_plot("t", X, Y, []).description
    assert f'aria-label="t. {few.description}"' in figure(few)


def test_spread_outliers_and_guides() -> None:
    series = Series("a", ((1.0, 5.0),), spread=((4.0, 6.0),), outliers=((1.0, 0.5),))
    guides = [Guide("limit", x=2.0), Guide("floor", y=0.1), Guide("", points=((0, 0), (2, 8)))]
    plot = drawn(xy_plot("t", X, Y, [series], guides=guides, note="a note"))
    assert len(of_class(plot, "whisker")) == 1
    [cross] = of_class(plot, "cross")
    assert cross.findtext("title") == "outlier: 0.5"
    assert len(of_class(plot, "guide")) == 3
    assert [one.text for one in of_class(plot, "guide-name")] == ["limit", "floor"]
    assert plot.findtext("p") == "a note"


def test_names_are_text_and_not_markup() -> None:
    evil = "</svg><script>\"'&"
    plots = [
        xy_plot(evil, Axis(evil), Axis(evil), [Series(evil, ((0.0, 1.0),), (evil,))] * 2),
        xy_plot("t", X, Y, [], guides=[Guide(evil, x=1.0)], note=evil),
        bar_chart(evil, evil, evil, [1.0]),
        horizontal_bars(evil, evil, [evil, evil], [Bar(evil, (1.0, 2.0))], note=evil),
        heat_map(evil, evil, evil, [[1.0]]),
    ]
    for plot in plots:
        assert "<script" not in figure(plot)
        assert drawn(plot).findtext("figcaption") == plot.title
    ET.fromstring(drawing(evil, plots))


def test_bars_of_negative_values_go_down() -> None:
    plot = drawn(bar_chart("t", "layer", "score", [2.0, -1.0, 0.0]))
    up, down, flat = of_class(plot, "bar")
    assert float(up.get("height", "")) == pytest.approx(2 * float(down.get("height", "")), rel=0.01)
    assert float(up.get("y", "")) + float(up.get("height", "")) == pytest.approx(
        float(down.get("y", "")), abs=0.2
    )
    assert float(flat.get("height", "")) == 0
    assert up.findtext("title") == "0: 2"


def test_horizontal_bars_are_stacked_and_end_in_their_sum() -> None:
    name = "x" * 80
    bars = [Bar("ours", (1.0, 3.0), bold=True), Bar(name, (8.0, 0.0))]
    made = horizontal_bars("t", "MB", ["base", "rest"], bars)
    plot = drawn(made)
    first, second = of_class(plot, "bar")[:2]
    assert float(second.get("x", "")) == float(first.get("width", ""))
    assert first.get("height") != second.get("height"), "parts differ in more than color"
    texts = [str(one.text) for one in plot.iter("text")]
    assert texts == ["ours", "4", "x" * 55 + "…", "8"]
    assert "ours: base 1, rest 3" in made.description
    assert [key.name for key in made.legend] == ["base", "rest"]


def test_a_heat_map_says_where_it_is_highest() -> None:
    made = heat_map("t", "head", "layer", [[1.0, 2.0], [0.0, 4.0]])
    cells = of_class(drawn(made), "bar")
    assert [one.get("fill-opacity") for one in cells] == ["0.250", "0.500", "0.000", "1.000"]
    assert made.description.endswith("Highest 4 at row 1, column 1.")
    assert made.note == "From 0 (no color) to 4 (full color)."


@pytest.mark.parametrize(
    "plot",
    [
        xy_plot("t", X, Y, [Series("s", ((3.0, 3.0),))]),
        xy_plot("t", X, Y, [Series("s", ())]),
        xy_plot("t", X, Y, [Series("s", ((0.0, 1e-9), (1e9, 1e9)))]),
        xy_plot("t", X, Y, [Series("s", ((0.0, math.nan), (1.0, math.inf), (2.0, 1.0)))]),
        xy_plot("t", Axis("x", log=True), Y, [Series("s", ((0.0, 1.0), (0.1, 1.0)))]),
        xy_plot("t", X, Y, [Series("s", ((0.0, 0.0), (0.0, 0.0)), style="points")]),
        heat_map("t", "x", "y", [[0.0, 0.0]]),
        heat_map("t", "x", "y", [[math.nan, -1.0]]),
        heat_map("t", "x", "y", []),
        bar_chart("t", "x", "y", [0.0]),
        bar_chart("t", "x", "y", [-1.0, math.nan]),
        bar_chart("t", "x", "y", []),
        horizontal_bars("t", "MB", ["a"], []),
        horizontal_bars("t", "MB", ["a"], [Bar("b", (0.0,))]),
    ],
)
def test_degenerate_plots_stay_inside(plot: Plot) -> None:
    root = drawn(plot)
    for element in root.iter():
        for name in ("x", "y", "width", "height"):
            value = element.get(name)
            assert value is None or 0 <= float(value) <= WIDTH, (element.tag, name, value)
        for place in str(element.get("points") or "").split():
            across, down = map(float, place.split(","))
            assert 0 <= across <= WIDTH or element.get("class", "").startswith("line s")
            assert -1 <= down <= HEIGHT
    assert "nan" not in figure(plot).replace("nanos", "")


def test_a_drawing_is_one_file() -> None:
    series = [Series("a", ((1.0, 1.0),)), Series("b & c", ((2.0, 2.0),))]
    plots = [xy_plot(title, X, Y, series) for title in ("left", "right")]
    text = drawing("both", plots)
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{space}title") == "both"
    assert "left: y by x. a: 1 at 1" in str(root.findtext(f"{space}desc"))
    texts = [str(one.text) for one in root.iter(f"{space}text")]
    assert (texts.count("left"), texts.count("a"), texts.count("b & c")) == (1, 1, 1)
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|url\(", text)
    assert drawing("both", plots) == text
