"""The table of methods and group sizes, on a tiny model."""

import json
from pathlib import Path

import msgspec
import pytest

from bench.studies.quantization import quality_curve
from bench.studies.quantization.quality_curve import Curve, main
from edgelm.export.source.text import GATE
from tests.checkpoints.tiny_chat import save_tiny_chat

pytestmark = pytest.mark.slow


def test_speed_of_every_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two are as good as six: each is exported and runs in a process of its own.
    monkeypatch.setattr(quality_curve, "_PRECISIONS", quality_curve._PRECISIONS[:2])
    source = save_tiny_chat(tmp_path / "source", context=2048)
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(json.loads(GATE.read_text().partition("\n")[0])["text"][:1200])
    words = [str(source), "-o", str(out), "--methods", "rtn", "--speed", "1"]
    assert main([*words, "--text", str(text), "--calibration", str(text)]) == 0
    curve = msgspec.json.decode((out / "curve.json").read_bytes(), type=Curve)
    assert len(curve.rows) == 2
    for row in curve.rows:
        assert row.speed is not None
        # A prompt's tokens pass together, later ones one by one.
        assert min(row.speed.prompt_tokens_per_second, row.speed.tokens_per_second) > 0
    printed = capsys.readouterr().out
    assert all(f"| {row.precision} |" in printed for row in curve.rows)


def test_better_methods_and_more_bits_are_nearer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A context of 512, as the texts are cut.
    source = save_tiny_chat(tmp_path / "source", context=512)
    assert main([str(source), "-o", str(tmp_path / "out"), "--methods", "rtn,gptq"]) == 0
    curve = msgspec.json.decode((tmp_path / "out" / "curve.json").read_bytes(), type=Curve)
    kl = {(row.method, row.precision): row.figures.kl for row in curve.rows}
    assert len(kl) == 12
    assert kl["rtn", "int8 g32"] < kl["rtn", "int4 g16 zp"] < kl["rtn", "int4 g128 zp"]
    assert kl["gptq", "int4 g32 zp"] < kl["rtn", "int4 g32 zp"]
    table = capsys.readouterr().out
    assert "| gptq | int4 g32 zp |" in table
    assert (tmp_path / "out" / "curve.md").read_text() == table
