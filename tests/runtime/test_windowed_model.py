"""A whole bundle whose windowed layers keep few rows: chats, sequences, files, speculation."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import edgelm
from edgelm.bundle.manifest_file import read_manifest
from edgelm.devices.planner.memory.memory_need import loaded_bytes
from edgelm.runtime.conversation import Chat
from edgelm.runtime.model import LanguageModel
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB, save_tiny_chat

CONTEXT = 256
WORDS = np.random.default_rng(3).integers(4, VOCAB, CONTEXT).tolist()


@pytest.fixture(scope="module", params=["int8", "fp32"])
def windowed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgelm.export.pipeline import export_model

    source = tmp_path_factory.mktemp("gemma3")
    save_tiny_chat(source, context=CONTEXT)
    lively = tiny_model("gemma3", vocab_size=VOCAB, max_position_embeddings=CONTEXT)
    lively.save_pretrained(source)
    (source / "generation_config.json").write_text('{"eos_token_id": 3, "bos_token_id": 1}')
    folder = tmp_path_factory.mktemp("windowed") / "bundle"
    export_model(source, folder, precision="int8", kv=request.param, gate="off")
    return folder


@pytest.fixture
def lm(windowed: Path) -> Iterator[LanguageModel]:
    with edgelm.load(windowed, threads=1) as model:
        yield model


def answer(lm: LanguageModel, ids: Sequence[int], count: int = 40) -> list[int]:
    chunks = lm.stream(np.array(ids, dtype=np.int64), max_tokens=count)
    return [chunk.token for chunk in chunks if chunk.token is not None]


def fresh(bundle: Path, ids: Sequence[int], count: int = 40) -> list[int]:
    with edgelm.load(bundle, threads=1, speculation="off") as model:
        return answer(model, ids, count)


def test_the_manifest_says_so(windowed: Path) -> None:
    manifest = read_manifest(windowed)
    rows = [layer.rows for layer in manifest.graph.cache.layers]
    assert rows == [24, 24, 24, 24, 24, None, 24]
    width = {"int8": 1, "fp32": 4}[manifest.graph.cache.dtype]
    one, two = (loaded_bytes(manifest, CONTEXT, sequences=count) for count in (1, 2))
    row = 2 * 2 * 16 * width
    assert two - one == row * (CONTEXT + 6 * 5 * 24), "rows, and four snapshots of windows"


@pytest.mark.parametrize("shared", [150, 100, 75, 30, 5])
def test_a_request_that_shares_a_beginning(lm: LanguageModel, windowed: Path, shared: int) -> None:
    answer(lm, WORDS[:150])
    other = [*WORDS[:shared], *WORDS[::-1][:20]]
    assert answer(lm, other) == fresh(windowed, other)


def test_sequences_share_a_beginning(windowed: Path) -> None:
    first, second = [*WORDS[:100], 7, 8], [*WORDS[:90], 9]
    with edgelm.load(windowed, threads=1, sequences=2) as model:
        streams = [
            model.stream(np.array(ids, dtype=np.int64), max_tokens=40) for ids in (first, second)
        ]
        found: list[list[int]] = [[], []]
        for pair in zip(*streams, strict=False):
            for tokens, chunk in zip(found, pair, strict=True):
                if chunk.token is not None:
                    tokens.append(chunk.token)
    for tokens, ids in zip(found, (first, second), strict=True):
        assert len(tokens) >= 30
        assert tokens == fresh(windowed, ids)[: len(tokens)]


@pytest.mark.usefixtures("drafts_pay")
def test_speculation_changes_nothing(windowed: Path) -> None:
    ids = (WORDS[:10] * 12)[:110]
    expected = fresh(windowed, ids, 100)
    with edgelm.load(windowed, threads=1, speculation="lookup") as model:
        assert answer(model, ids, 100) == expected


def test_a_saved_chat_a_fork_and_a_turn_taken_back(windowed: Path, tmp_path: Path) -> None:
    texts = ["Why is it blue?", "And the sea?", "The wheel?"]

    def told(chat: Chat, text: str) -> str:
        return chat.send(text, max_tokens=20).read().text

    with edgelm.load(windowed, threads=1) as model:
        chat = model.chat()
        first = [told(chat, text) for text in texts[:2]]
        chat.save(tmp_path / "chat.session")
        fork = chat.fork()
        third = told(chat, texts[2])
        assert told(fork, texts[2]) == third
        chat.rewind(turns=2)
        assert told(chat, texts[1]) == first[1]
        assert told(chat, texts[2]) == third
    with edgelm.load(windowed, threads=1) as model:
        restored = model.chat(session=tmp_path / "chat.session")
        assert told(restored, texts[2]) == third


def test_a_prompt_cache(windowed: Path, tmp_path: Path) -> None:
    def ask(text: str) -> str:
        with edgelm.load(windowed, threads=1, prompt_cache=tmp_path) as model:
            chat = model.chat(system="A long rule of many words, " * 6)
            return chat.send(text, max_tokens=24).read().text

    said = [ask("Why?"), ask("How?")]
    assert list(tmp_path.glob("*.session"))
    assert [ask("Why?"), ask("How?")] == said
