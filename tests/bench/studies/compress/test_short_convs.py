"""The study of LFM2's convolutions compares students that differ in these alone."""

from pathlib import Path

import pytest
import torch

from bench.studies.compress.short_convs import CHOICES, compare, text_rows
from edgelm.errors import BadInput
from tests.checkpoints.models import tiny_model


def test_choices_differ_where_something_is_removed() -> None:
    teacher = tiny_model("lfm2")
    rows = torch.randint(0, 128, (8, 24), generator=torch.Generator().manual_seed(1))
    whole = compare(teacher, rows[:6], rows[6:], 64, seed=0)
    assert whole == dict.fromkeys(CHOICES, (0.0, 0.0))
    found = compare(teacher, rows[:6], rows[6:], 48, seed=0)
    figures = [figure for pair in found.values() for figure in pair]
    assert len(set(figures)) == 2 * len(CHOICES)
    assert min(figures) > 0


def test_rows_are_of_all_files_and_held_out_ones_of_none(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.md").write_bytes(b"a" * 128 * 80)
    (tmp_path / "inner" / "b.md").write_bytes(b"b" * 128 * 80)
    rows, held_out = text_rows(tmp_path)
    assert len(rows) + len(held_out) == 160
    assert {*torch.cat([rows, held_out]).unique().tolist()} == {ord("a"), ord("b"), ord("\n")}
    with pytest.raises(BadInput, match="has 0 bytes of Markdown files, expected at least 16,384"):
        text_rows(tmp_path / "none")
