"""What the commands do with an embedding model."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import edgelm
from edgelm.bench.cli import main as edge_bench
from edgelm.bench.evaluation.cli import main as edge_eval
from edgelm.checkpoint.source import read_spec
from edgelm.compress.model import load_model
from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput
from edgelm.planning import PlanRequest
from edgelm.runtime.cli import main as edge_run


def test_edge_run_prints_a_vector(
    embedding_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edge_run([str(embedding_bundle), "--json", "Why", "blue?"]) == 0
    printed = json.loads(capsys.readouterr().out)
    with edgelm.load(embedding_bundle) as lm:
        assert np.array_equal(np.float32(printed["embedding"]), lm.embed("Why blue?")[0])
        assert printed["tokens"] == len(lm.embedder.encode("Why blue?")[0])
    assert printed["ms"] > 0


def test_edge_run_says_what_it_would_print(
    embedding_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a text"))
    for arguments in (["Hello"], ["--chat"], ["--chat", "--json"], []):
        assert edge_run([str(embedding_bundle), *arguments]) == 2
        assert "--json TEXT prints the vector" in capsys.readouterr().err


def test_edge_bench_refuses(
    embedding_bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert edge_bench([str(embedding_bundle), "--out", str(tmp_path / "report")]) == 2
    assert "is an embedding model, and edge-bench measures" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["perplexity", "rag"])
def test_edge_eval_refuses(
    embedding_bundle: Path,
    sentence_model: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    task: str,
) -> None:
    text = tmp_path / "valid.jsonl"
    text.write_text(json.dumps({"text": "The miller waits. " * 40}) + "\n")
    name = f"perplexity:{text}" if task == "perplexity" else task
    for subject in (embedding_bundle, sentence_model):
        out = tmp_path / "out"
        assert edge_eval([str(subject), "--tasks", name, "--limit", "2", "--out", str(out)]) == 2
        assert "embedding model" in capsys.readouterr().err
        assert not out.exists()


def test_compress_refuses(sentence_model: Path) -> None:
    with pytest.raises(BadInput, match="embedding model cannot be compressed"):
        load_model(sentence_model)


def test_the_plan_decodes_nothing(sentence_model: Path) -> None:
    spec = read_spec(sentence_model)
    found = plan(spec, load_profile("cpu"), PlanRequest(precision="int8"))
    table = found.table()
    assert "decodes nothing" in table
    assert "\nvector " in table
    assert "tokens/s" not in table
    assert found.weight_bytes < 1.3 * spec.parameters  # one table, no head
