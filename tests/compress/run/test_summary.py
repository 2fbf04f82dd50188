"""The page of a run: alone in its file, with the curves that the run has."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from edgelm.checkpoint.student import Figure, StageRecord, StudentRecord
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.run.plots import Series, bar_chart, heat_map, line_plot, scatter_plot
from edgelm.compress.run.summary import write_summary
from edgelm.compress.search.candidates import Candidate

SIZES = {"num_hidden_layers": 4, "hidden_size": 64}
RECORD = StudentRecord(
    teacher="a <b>teacher</b> & co",
    teacher_sha256="0" * 64,
    teacher_parameters=2_000_000,
    parameters=500_000,
    teacher_shape=SIZES,
    shape={**SIZES, "hidden_size": 48},
    stages=(StageRecord("distill", {}, 1_024, 61.2, {"loss": 0.125, "shape": "3 < 4"}),),
    evaluation={
        "perplexity:<v>.jsonl": {
            "teacher": Figure(20.0, 0.5, 4),
            "pruned": Figure(90.0, None, 4),
            "student": Figure(25.0, 0.75, 4),
        }
    },
    edgelm_version="1.2.3",
)
CANDIDATES = [
    Candidate(Shape(3, 64, 96, 4, 2), "depth", 9, 20.0, 1.0, 98_000_000, (), 0.5, (0.25, 0.125)),
    Candidate(Shape(4, 48, 96, 4, 2), "width", 9, 10.0, 1.0, 99_000_000, (), 0.75),
    Candidate(Shape(4, 40, 96, 4, 2), "width", 9, 12.0, 1.0, 97_000_000),
]


def fill(folder: Path) -> None:
    """What stages leave in a run's folder."""
    (folder / "distill").mkdir()
    rows = [
        {
            "step": step,
            "tokens": step * 128,
            "divergence": 1 / step,
            "cross_entropy": 0.0,
            "hidden": 0.5,
        }
        for step in (1, 2, 4)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "distill" / "metrics.jsonl").write_text(
        lines + '{"step": 3}\n{"step": 4, "tokens": "x"}\n{"step": 5, "tokens": 5'
    )
    (folder / "importance").mkdir()
    scores = Importance(
        heads=torch.tensor([[1.0, 2.0], [0.0, 4.0]]),
        neurons=torch.rand(2, 100),
        channels=torch.rand(16),
        layers=torch.tensor([0.5, -0.1]),
    )
    scores.save(folder / "importance" / "importance.safetensors")


def figures(page: str) -> dict[str, ElementTree.Element]:
    """Plots by their captions; XML, or they would not parse."""
    found = [ElementTree.fromstring(one) for one in re.findall("<figure>.*?</figure>", page)]
    return {str(one.findtext("figcaption")): one for one in found}


@pytest.fixture
def page(tmp_path: Path) -> str:
    fill(tmp_path)
    path = write_summary(tmp_path, RECORD, CANDIDATES)
    assert path == tmp_path / "summary.html"
    return path.read_text()


def test_it_loads_nothing(page: str) -> None:
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|<img|src=|href=", page)
    assert page.startswith("<!doctype html>")


def test_names_are_text_and_not_markup(page: str) -> None:
    assert "<b>" not in page
    assert "a &lt;b&gt;teacher&lt;/b&gt; &amp; co" in page
    assert "perplexity:&lt;v&gt;.jsonl" in page
    assert "shape 3 &lt; 4" in page


def test_figures_are_told(page: str) -> None:
    assert "0.5 M parameters, 25% of the teacher's 2.0 M" in page
    assert "<td>hidden size</td><td>64</td><td>48</td>" in page
    row = "<td>20 ± 0.5</td><td></td><td>90</td><td>25 ± 0.75</td><td>1.250</td>"
    assert row in page, "corrected is left empty, and the ratio is to the teacher"
    assert "<td>distill</td><td>1,024</td><td>61</td><td>loss 0.125; " in page


def test_curves_maps_and_candidates(page: str) -> None:
    plots = figures(page)
    assert list(plots) == [
        "distill: loss in nats a token",
        "Candidates: divergence from the teacher against predicted speed",
        "Layers: block influence",
        "Query heads",
        "Neurons, sorted within their layer",
        "Channels of the residual stream, sorted",
    ]
    curves = plots["distill: loss in nats a token"].findall(".//polyline")
    assert [len(str(one.get("points")).split()) for one in curves] == [3, 3]
    text = "".join(plots["distill: loss in nats a token"].itertext())
    assert "divergence" in text
    assert "hidden" in text
    assert "cross-entropy" not in text, "it was zero all the time"
    circles = plots["Candidates: divergence from the teacher against predicted speed"].findall(
        ".//circle"
    )
    titles = [str(one.findtext("title")) for one in circles]
    assert titles == [str(CANDIDATES[index].shape) for index in (0, 1, 0)], "the chosen one twice"
    assert "<td>20.0</td><td>98</td><td>0.500</td><td>0.250, 0.125</td>" in page
    cells = plots["Query heads"].findall(".//rect")
    assert [one.get("fill-opacity") for one in cells] == ["0.250", "0.500", "0.000", "1.000"]
    assert len(plots["Neurons, sorted within their layer"].findall(".//rect")) == 2 * 64
    bars = plots["Layers: block influence"].findall(".//rect")
    assert [float(str(one.get("height"))) > 0 for one in bars] == [True, False]


def test_what_a_run_does_not_have_is_left_out(tmp_path: Path) -> None:
    bare = StudentRecord("t", "0", 2, 1, SIZES, SIZES)
    page = write_summary(tmp_path, bare, CANDIDATES[2:]).read_text()
    assert not figures(page)
    for heading in ("Quality", "Training", "Search", "Importance"):
        assert f"<h2>{heading}</h2>" not in page


def test_a_line_by_hand() -> None:
    plot = figures(line_plot("t", "x", "y", [Series("s", ((0.0, 1.0), (5.0, 2.0), (10.0, 3.0)))]))
    line = plot["t"].find(".//polyline")
    assert line is not None
    # The axes reach from 56 to 628 and, upside down, from 260 to 12.
    assert line.get("points") == "56.0,260.0 342.0,136.0 628.0,12.0"
    ticks = [str(one.text) for one in plot["t"].iter("text")]
    assert ticks == ["1", "1.5", "2", "2.5", "3", "0", "2", "4", "6", "8", "10", "x", "y"]


@pytest.mark.parametrize(
    "plot",
    [
        line_plot("t", "x", "y", [Series("s", ((3.0, 3.0),))]),
        line_plot("t", "x", "y", [Series("s", ())]),
        line_plot("t", "x", "y", [Series("s", ((0.0, 1e-9), (1e9, 1e9)))]),
        scatter_plot("t", "x", "y", [Series("s", ((0.0, 0.0), (0.0, 0.0)))]),
        heat_map("t", "x", "y", [[0.0, 0.0]]),
        bar_chart("t", "x", "y", [0.0]),
        bar_chart("t", "x", "y", [-1.0, -2.0]),
    ],
)
def test_degenerate_plots_stay_inside(plot: str) -> None:
    figure = figures(plot)["t"]
    for element in figure.iter():
        for name in ("x", "y", "cx", "cy", "width", "height"):
            value = element.get(name)
            assert value is None or 0 <= float(value) <= 640, (element.tag, name, value)
    assert "nan" not in plot
