"""The model of products is one that ONNX Runtime multiplies with, in every format."""

import sys

import pytest

from bench.studies.sequences import product_rows


def test_a_line_for_each_format(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product_rows, "_ROUNDS", 1)
    words = "study --formats 4:32z,4:128,8:64 --rows 1,3 --shapes 48x96,96x48 --copies 2"
    monkeypatch.setattr(sys, "argv", words.split())
    product_rows.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [row[0].strip() for row in rows] == ["format", "---", "4:32z", "4:128", "8:64"]
    assert [cell.strip() for cell in rows[0][1:]] == ["1", "3"]
    for row in rows[2:]:
        assert row[1].strip().endswith("(1.00)")
        assert float(row[2].split()[0]) >= 0
