"""A bundle whose layers have different numbers of key heads: sequences, saved chats, files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import edgelm
from edgelm.bundle.manifest_file import read_manifest
from edgelm.compress.model import save_model
from edgelm.devices.planner.memory.memory_need import loaded_bytes
from edgelm.runtime.conversation import Chat
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.model import LanguageModel
from tests.checkpoints.own_sizes import FEWER_HEADS, cut
from tests.checkpoints.tiny_chat import CONTEXT, VOCAB, save_tiny_chat

WORDS = np.random.default_rng(3).integers(4, VOCAB, CONTEXT).tolist()


@pytest.fixture(scope="module", params=["int8", "fp32"])
def uneven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgelm.export.pipeline import export_model

    source = save_tiny_chat(tmp_path_factory.mktemp("student"), "qwen3")
    model = cut(AutoModelForCausalLM.from_pretrained(source).eval(), FEWER_HEADS)
    save_model(model, AutoTokenizer.from_pretrained(source), source, torch.float32)
    folder = tmp_path_factory.mktemp("uneven") / "bundle"
    export_model(source, folder, precision="int8", kv=request.param)
    return folder


@pytest.fixture
def lm(uneven: Path) -> Iterator[LanguageModel]:
    with edgelm.load(uneven, threads=1, sequences=2) as model:
        yield model


def test_the_manifest_says_so(uneven: Path) -> None:
    manifest = read_manifest(uneven)
    cache = manifest.graph.cache
    assert manifest.gate is not None
    assert manifest.gate.passed
    assert [cache.heads(layer) for layer in cache.layers] == [(1, 16), (1, 16), (2, 16)]
    one, two = (loaded_bytes(manifest, CONTEXT, sequences=count) for count in (1, 2))
    assert two - one == 2 * 4 * 16 * {"int8": 1, "fp32": 4}[cache.dtype] * CONTEXT


def test_sequences_run_together_and_share_a_beginning(lm: LanguageModel) -> None:
    sessions = [slot.session for slot in lm._sequences.slots]
    assert all(isinstance(session, EngineSession) for session in sessions)
    prompts = [np.array([*WORDS[:30], 7, 8]), np.array([*WORDS[:20], 9])]
    alone = []
    for prompt in prompts:
        sessions[0].rewind(0)
        sessions[0].advance(prompt)
        alone.append([sessions[0].advance(np.array([one]))[0].copy() for one in (5, 6, 7)])
    for session, prompt in zip(sessions, prompts, strict=True):
        session.rewind(0)
        session.advance(prompt)
    for step, token in enumerate((5, 6, 7)):
        both = EngineSession.advance_each(sessions, [token, token])  # type: ignore[arg-type]
        for expected, ours in zip(alone, both, strict=True):
            np.testing.assert_allclose(ours.ravel(), expected[step], atol=1e-4)


def test_a_saved_chat_a_fork_and_a_turn_taken_back(lm: LanguageModel, tmp_path: Path) -> None:
    texts = ["Why is it blue?", "And the sea?", "The wheel?"]

    def answer(chat: Chat, text: str) -> str:
        return chat.send(text, max_tokens=12).read().text

    chat = lm.chat()
    first = [answer(chat, text) for text in texts[:2]]
    chat.save(tmp_path / "chat.session")
    third = answer(chat.fork(), texts[2])
    assert answer(chat, texts[2]) == third
    chat.rewind(turns=2)
    assert answer(chat, texts[1]) == first[1]
    restored = lm.chat(session=tmp_path / "chat.session")
    assert answer(restored, texts[2]) == third
