"""The real thing: SmolLM2-135M-Instruct from its file to text, against transformers."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import edgelm
from edgelm.bundle import read_manifest
from edgelm.bundle.records.gates import GATES
from edgelm.runtime import LanguageModel, Message
from tests.processor_time import run_timed

QUESTION: list[Message] = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture(scope="module")
def lm(fp32_bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(fp32_bundle) as model:
        yield model


def prompt_of(folder: Path) -> list[int]:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


@pytest.mark.slow
def test_greedy_answer_equals_transformers(
    lm: LanguageModel, hf: Any, smollm2_tokenizer: Path
) -> None:
    prompt = prompt_of(smollm2_tokenizer)
    assert lm.chat_tokens(QUESTION).tolist() == prompt
    said = lm.generate(QUESTION, max_tokens=120).tokens
    assert len(said) > 100
    with torch.inference_mode():
        logits = hf(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
    # Token by token what transformers' greedy generate would choose, in one pass instead of 120.
    assert logits.argmax(-1).tolist() == said


@pytest.mark.slow
def test_fp32_logits_equal_transformers(
    fp32_bundle: Path, hf: Any, texts: tuple[Path, Path]
) -> None:
    with edgelm.load(fp32_bundle) as lm:
        tokens = lm.tokenizer.encode(texts[1].read_text())[:300]
        ours = torch.from_numpy(lm.session.advance(tokens, logits=len(tokens)))
    with torch.inference_mode():
        expected = hf(torch.from_numpy(tokens)[None]).logits[0]
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.slow
def test_streaming_equals_generate(lm: LanguageModel) -> None:
    done = lm.generate(QUESTION, max_tokens=60)
    pieces = [chunk.text for chunk in lm.stream(QUESTION, max_tokens=60)]
    assert "".join(pieces) == done.text
    assert len(pieces) > 40


def test_the_gate_holds(int8_bundle: Path) -> None:
    gate = read_manifest(int8_bundle).gate
    assert gate is not None
    assert gate.passed
    assert gate.enforced
    assert gate.figures.kl <= GATES[gate.gate_class].max_kl
    assert gate.figures.tokens > 250


def test_int8_is_a_quarter_of_fp32_and_answers(int8_bundle: Path) -> None:
    manifest = read_manifest(int8_bundle)
    assert 0.25 < manifest.weight_bytes / (4 * manifest.spec.parameters) < 0.28
    with edgelm.load(int8_bundle) as lm:
        done = lm.generate(QUESTION, max_tokens=80)
    assert {"sky", "atmosphere", "light"} & set(re.findall("[a-z]+", done.text.lower()))
    assert len(done.text.split()) > 20


@pytest.mark.slow
def test_a_second_turn_equals_the_whole_conversation_afresh(
    lm: LanguageModel, fp32_bundle: Path
) -> None:
    first = lm.generate(QUESTION, max_tokens=30)
    more: list[Message] = [
        *QUESTION,
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And red in the evening?"},
    ]
    continued = lm.generate(more, max_tokens=20)
    with edgelm.load(fp32_bundle) as fresh:
        assert fresh.generate(more, max_tokens=20).tokens == continued.tokens


def test_plan_takes_under_a_second(smollm2: Path) -> None:
    command = [sys.executable, "-m", "edgelm.export.cli", str(smollm2), "--target", "cpu", "--plan"]
    runs = [run_timed(command) for _ in range(3)]
    assert all("works" in output for output, _ in runs)
    assert min(seconds for _, seconds in runs) < 1.0
