"""What training through the quantizer gains, on a tiny model."""

import re
import sys
from pathlib import Path

import pytest

from bench.studies.qad_gain import main
from edgelm.export.source.text import CALIBRATION, GATE
from tests.tiny_chat import save_tiny_chat


def test_each_way_to_round_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows of 512 tokens, as the data is packed.
    source = save_tiny_chat(tmp_path / "source", context=512)
    words = [str(source), "--data", str(CALIBRATION), "--held-out", str(GATE)]
    words += ["--tokens", str(4 * 8 * 512), "--rows", "2", "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["qad_gain", *words])
    assert main() == 0
    said = capsys.readouterr().out
    assert "layers Int4(group_size=64, symmetric=False), head Int8(group_size=64" in said
    found = re.findall(r"^(.+?) +KL (\S+) ± \S+, top-1", said, re.MULTILINE)
    kl = {name: float(value) for name, value in found}
    assert list(kl) == ["not rounded", "rounded by auto", "rounded by rtn", "QAD"]
    assert kl["not rounded"] < kl["rounded by auto"] < kl["rounded by rtn"]
    assert kl["QAD"] < kl["rounded by rtn"]
    assert (tmp_path / "out" / "student" / "model.safetensors").is_file()
