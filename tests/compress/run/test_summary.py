"""The page of a run: alone in its file, with the curves that the run has."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
import torch

from edgelm.checkpoint.student import Figure, StageRecord, StudentRecord
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.run.summary import write_summary
from edgelm.compress.search.candidates import Candidate
from tests.pages.browser import CHROMIUM, run_in_page
from tests.pages.page_checks import Page, check_page, figures

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


@pytest.fixture
def page(tmp_path: Path) -> str:
    fill(tmp_path)
    path = write_summary(tmp_path, RECORD, CANDIDATES)
    assert path == tmp_path / "summary.html"
    return path.read_text()


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [one for one in root.iter() if name in (one.get("class") or "").split()]


def test_it_stands_alone_and_everybody_can_read_it(page: str) -> None:
    check_page(page)


def test_names_are_text_and_not_markup(page: str) -> None:
    assert "<b>" not in page
    text = Page(page).text
    assert "A student of a <b>teacher</b> & co" in text
    assert "perplexity:<v>.jsonl" in text
    assert "shape 3 < 4" in text


def test_size_and_quality_come_first(page: str) -> None:
    text = Page(page).text
    headline = (
        "0.5 M parameters, 25% of the teacher's 2.0 M. perplexity:<v>.jsonl: 25 (teacher 20, lower "
        "is better)."
    )
    assert headline in text
    assert text.index(headline) < text.index("Stages")
    assert "✗ Did training" not in text
    assert (
        "✓ Did training recover quality? 1 of 1 measures improved. perplexity:<v>.jsonl: 90 after "
        "pruning, 25 after training."
    ) in text
    for tile in ("Size 25% of the teacher", "Predicted speed 20 tokens/s"):
        assert tile in text


def test_shares_are_in_percent(tmp_path: Path) -> None:
    by_model = {"teacher": Figure(0.4, 0.02, 50, "higher", is_share=True)}
    by_model["student"] = Figure(0.0, 0.0, 50, "higher", is_share=True)
    record = msgspec.structs.replace(RECORD, evaluation={"choice:arc": by_model})
    text = Page(write_summary(tmp_path, record, []).read_text()).text
    assert "choice:arc: 0.0% (teacher 40.0%, higher is better)" in text
    assert "40.0 ± 2%" in text


def test_figures_have_tables(page: str) -> None:
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    cells = [[Page(cell).text for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]
    assert ["hidden size", "64", "48"] in cells
    # corrected is missing, and the ratio is to the teacher
    quality = ["20 ± 0.5", "–", "90", "25 ± 0.75", "1.250", "lower"]
    assert ["perplexity:<v>.jsonl", *quality] in cells
    assert ["distill", "1,024", "61", "loss 0.125; shape 3 < 4"] in cells
    assert [str(CANDIDATES[1].shape), "10.0", "99", "0.750", "–"] in cells


def test_curves_maps_and_candidates(page: str) -> None:
    plots = figures(page)
    assert list(plots) == [
        "Loss of distill",
        "Candidates",
        "Layers: block influence",
        "Query heads",
        "Neurons, sorted within their layer",
        "Residual channels, sorted",
    ]
    curves = of_class(plots["Loss of distill"], "line")
    assert [len(str(one.get("points")).split()) for one in curves[:2]] == [3, 3]
    # cross-entropy was zero all the time
    keys = ["".join(one.itertext()).strip() for one in plots["Loss of distill"].iter("li")]
    assert keys == ["divergence", "hidden"]
    titles = [one.findtext("title") for one in of_class(plots["Candidates"], "mark")]
    shapes = [str(CANDIDATES[index].shape) for index in (0, 1, 0)]  # the chosen one twice
    expected = [f"{shapes[0]}: KL 0.125", f"{shapes[1]}: KL 0.750", f"{shapes[2]}: KL 0.125"]
    assert titles[:3] == expected
    cells = of_class(plots["Query heads"], "bar")
    assert [one.get("fill-opacity") for one in cells] == ["0.250", "0.500", "0.000", "1.000"]
    assert len(of_class(plots["Neurons, sorted within their layer"], "bar")) == 2 * 64
    assert len(of_class(plots["Layers: block influence"], "bar")) == 2


def test_what_a_run_does_not_have_is_left_out(tmp_path: Path) -> None:
    bare = StudentRecord("t", "0", 2, 1, SIZES, SIZES)
    page = write_summary(tmp_path, bare, CANDIDATES[2:]).read_text()
    check_page(page)
    assert not figures(page)
    for heading in ("Quality", "Training", "Search", "Importance"):
        assert f"<h2>{heading}</h2>" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_it_fits_a_telephone(page: str, tmp_path: Path) -> None:
    script = "page => page.documentElement.scrollWidth"
    assert run_in_page(page, script, tmp_path, width=390) <= 390
