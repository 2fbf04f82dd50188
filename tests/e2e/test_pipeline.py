"""The commands a user types, one after another, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import edgelm
from tests.checkpoints.tiny_chat import CONTEXT, save_tiny_chat, tiny_tokenizer
from tests.forks import run_forked_command

COMMANDS = Path(sys.executable).parent
SHORT = ("-p", "16", "-n", "4", "-d", "0,8", "-r", "2", "--threads", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline-e2e")
    save_tiny_chat(folder / "tiny", "llama-untied")
    return folder


def command(folder: Path, name: str, *arguments: str) -> str:
    """Run a command in a folder; return what it prints."""
    done = subprocess.run(
        [COMMANDS / name, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_export_run_bench(folder: Path) -> None:
    assert "works" in command(folder, "edge-export", "tiny", "--plan")
    told = command(folder, "edge-export", "tiny", "--precision", "int8", "-o", "bundle")
    assert told.startswith("bundle: ")
    assert 'run it: edge-run bundle "Why is the sky blue?"' in told
    assert "all hashes match" in command(folder, "edge-export", "--verify", "bundle")

    said = command(folder, "edge-run", "bundle", "Why is the sky blue?", "-n", "12")
    with edgelm.load(folder / "bundle") as lm:
        done = lm.chat().send("Why is the sky blue?", max_tokens=12).read()
    assert said == done.text + "\n"

    table = command(folder, "edge-bench", "bundle", *SHORT, "--source", "tiny", "--out", "report")
    report: dict[str, Any] = json.loads((folder / "report" / "report.json").read_text())
    assert [result["test"] for result in report["results"]] == ["pp16", "tg4", "tg4@d8"]
    for result in report["results"]:
        assert result["engine"] == "edgelm int8 bundle"
        assert result["tokens_per_second"]["median"] > 0
        assert result["kl"] < 0.01
        assert result["engine"] in table


@pytest.fixture(scope="module")
def exact(folder: Path) -> Path:
    """An fp32 bundle, moved away from where it was made."""
    arguments = ("tiny", "--precision", "fp32", "-o", "made")
    done = run_forked_command("edgelm.export.cli", *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    (folder / "elsewhere").mkdir()
    return (folder / "made").rename(folder / "elsewhere" / "moved")


@pytest.mark.slow
def test_fp32_says_what_the_source_says(folder: Path, exact: Path) -> None:
    said = command(exact.parent, "edge-run", exact.name, "The miller", "--raw", "-n", "20")
    tokenizer = tiny_tokenizer()
    prompt = tokenizer.encode("The miller").ids
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny").eval()
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=[2, 3]
    )
    answer = out[0, len(prompt) :].tolist()
    assert len(answer) > 5
    assert said == tokenizer.decode(answer) + "\n"


@pytest.mark.slow
def test_a_bundle_needs_neither_its_place_nor_its_source(exact: Path) -> None:
    assert "all hashes match" in command(exact.parent, "edge-export", "--verify", exact.name)
    with edgelm.load(exact) as lm:
        assert lm.context == CONTEXT
    told = command(
        exact.parent, "edge-bench", exact.name, "--no-quality", *SHORT, "--out", "report"
    )
    assert "| edgelm fp32 moved |" in told


def test_a_missed_gate_exits_1_and_leaves_nothing(folder: Path) -> None:
    arguments = ("tiny", "--precision", "int4", "-o", "never")
    done = run_forked_command("edgelm.export.cli", *arguments, folder=folder)
    assert done.returncode == 1
    assert "error: the 4-bit quality gate failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "never").exists()
