"""What training through the quantizer gains, on a tiny model."""

import re
import sys
from pathlib import Path

import pytest

from bench.studies.compress.qad_gain import main
from edgelm.export.source.text import CALIBRATION, GATE
from tests.checkpoints.tiny_chat import save_tiny_chat

pytestmark = pytest.mark.slow


def test_each_method_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows of 512 tokens, as the data is packed.
    source = save_tiny_chat(tmp_path / "source", context=512)
    words = [str(source), "--data", str(CALIBRATION), "--held-out", str(GATE)]
    words += ["--tokens", str(4 * 8 * 512), "--rows", "2", "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["qad_gain", *words])
    assert main() == 0
    printed = capsys.readouterr().out
    assert "layers Int4(group_size=64, symmetric=False), head Int8(group_size=64" in printed
    found = re.findall(r"^(.+?) +KL (\S+) ± \S+, top-1", printed, re.MULTILINE)
    kl = {name: float(value) for name, value in found}
    assert list(kl) == ["not quantized", "quantized by auto", "quantized by rtn", "QAD"]
    assert kl["not quantized"] < kl["quantized by auto"] < kl["quantized by rtn"]
    assert kl["QAD"] < kl["quantized by rtn"]
    assert (tmp_path / "out" / "student" / "model.safetensors").is_file()
