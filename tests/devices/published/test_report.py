"""The report: a table of errors and a plot."""

import xml.etree.ElementTree as ET
from pathlib import Path

from edgelm.devices.published.report import score_table, write_report
from edgelm.devices.published.rows import Table
from edgelm.devices.published.terms import Observation
from edgelm.devices.published.validation import Prediction, Ranges, Score
from tests.devices.published.synthetic import box, row

_RANGES = Ranges({("decode", ""): 0.2, ("prefill", ""): 0.2})
_LEFT_OUT = Table((), {"several sequences at once": 7, "speculative decoding": 2})


def prediction(ratio: float, kind: str, engine: str, device: str = "orin") -> Prediction:
    """A time that took `ratio` times what was predicted."""
    return Prediction(
        Observation(row(engine=engine, hardware=box(device)), kind, 20 * ratio, ()), 20
    )


_UNSEEN = [
    prediction(1.1, "decode", "vllm"),
    prediction(1.3, "decode", "vllm"),
    prediction(1.5, "decode", "vllm"),
    prediction(0.5, "decode", "mlc", "thor-super"),
    prediction(0.9, "prefill", "vllm"),
]
_FAMILIAR = [prediction(1.05, "decode", "vllm")]


def write(folder: Path, unseen: list[Prediction], familiar: list[Prediction]) -> str:
    """The report's text."""
    write_report(folder, _LEFT_OUT, unseen, familiar, _RANGES, _RANGES)
    return (folder / "errors.md").read_text()


def test_score_table() -> None:
    scores = [Score("decode", False, 205, 0.1099, 0.8443), Score("prefill", True, 27, 0.258, 1.0)]
    assert score_table(scores) == (
        "| rows | n | median error | inside the range |\n"
        "|---|---:|---:|---:|\n"
        "| decode, vendor-published and independent | 205 | 11.0% | 84% |\n"
        "| prefill, crowd-sourced | 27 | 25.8% | 100% |"
    )


def test_report(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    text = write(folder, _UNSEEN, _FAMILIAR)
    assert sorted(path.name for path in folder.iterdir()) == ["errors.md", "predicted.svg"]
    assert text == (
        "Every device, predicted by a fit on the others:\n"
        "\n"
        "| rows | n | median error | inside the range |\n"
        "|---|---:|---:|---:|\n"
        "| decode, vendor-published and independent | 4 | 30.0% | 25% |\n"
        "| prefill, vendor-published and independent | 1 | 10.0% | 100% |\n"
        "\n"
        "Models left out in five folds, on devices that the fit knows with other models:\n"
        "\n"
        "| rows | n | median error | inside the range |\n"
        "|---|---:|---:|---:|\n"
        "| decode, vendor-published and independent | 1 | 5.0% | 100% |\n"
        "\n"
        "Decode by engine and device, each predicted from the other devices:\n"
        "\n"
        "| engine | device | n | measured over predicted time, median | median error |\n"
        "|---|---|---:|---:|---:|\n"
        "| mlc | thor | 1 | 0.50 | 50.0% |\n"
        "| vllm | orin | 3 | 1.30 | 30.0% |\n"
        "\n"
        "Rows left out:\n"
        "\n"
        "| reason | rows |\n"
        "|---|---:|\n"
        "| several sequences at once | 7 |\n"
        "| speculative decoding | 2 |\n"
    )


def test_without_familiar_devices_their_table_is_left_out(tmp_path: Path) -> None:
    assert "Models left out" not in write(tmp_path, _UNSEEN, [])


def test_plot_is_a_drawing_of_both_kinds(tmp_path: Path) -> None:
    write(tmp_path, _UNSEEN, _FAMILIAR)
    drawing = ET.parse(tmp_path / "predicted.svg")
    texts = [str(one.text) for one in drawing.iter("{http://www.w3.org/2000/svg}text")]
    for text in ("measured decode, ms", "measured prefill, ms", "vllm", "mlc"):
        assert texts.count(text) == 1
    marks = [one.get("class") for one in drawing.iter() if "mark" in str(one.get("class"))]
    # Engines by name: mlc, then vllm; a point for each prediction, and the two keys.
    assert sorted(map(str, marks)) == ["mark s0"] * 2 + ["mark s1"] * 5


def test_same_rows_same_plot(tmp_path: Path) -> None:
    write(tmp_path / "first", _UNSEEN, [])
    write(tmp_path / "second", _UNSEEN, [])
    first, second = (
        (tmp_path / name / "predicted.svg").read_bytes() for name in ("first", "second")
    )
    assert first == second


def test_plot_of_one_kind_alone(tmp_path: Path) -> None:
    write(tmp_path, _UNSEEN[:2], [])
    assert (tmp_path / "predicted.svg").is_file()
