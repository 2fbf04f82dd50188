"""Figures of a study are never mixed with those of other options."""

from pathlib import Path

import pytest

from bench.studies.compress.figures import Figures, claim_folder
from edgelm.errors import BadInput


def test_a_figure_is_found_with_the_same_inputs_only(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    Figures(path).put("kd/0", {"tokens": 100, "limit": None}, {"loss": 1.5})
    figures = Figures(path)
    assert figures.get("kd/0", {"limit": None, "tokens": 100}) == {"loss": 1.5}
    assert figures.get("kd/0", {"limit": None, "tokens": 200}) is None
    assert figures.get("kd/1", {"limit": None, "tokens": 100}) is None
    figures.put("kd/0", {"tokens": 200}, {"loss": 1.25})
    assert Figures(path).get("kd/0", {"tokens": 200}) == {"loss": 1.25}
    assert Figures(path).get("kd/0", {"tokens": 100, "limit": None}) is None


def test_a_folder_belongs_to_one_set_of_settings(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    claim_folder(folder, {"tokens": 100, "data": Path("a.jsonl")})
    claim_folder(folder, {"tokens": 100, "data": Path("a.jsonl")})
    with pytest.raises(BadInput, match=r"other settings: tokens was 100 and is 200"):
        claim_folder(folder, {"tokens": 200, "data": Path("a.jsonl")})
