"""Adapters in a bundle whose windowed layers hold few rows, exported twice with one work folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import edgelm
from edgelm.bundle import read_manifest
from edgelm.checkpoint.source import open_checkpoint
from edgelm.export.pipeline import export_model
from edgelm.runtime.model import LanguageModel
from tests.checkpoints.adapters import modules_of, random_factors, save_adapter
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB, save_tiny_chat

CONTEXT = 256
WORDS = np.random.default_rng(3).integers(4, VOCAB, CONTEXT).tolist()
# Greedy answers of this model repeat one token, whatever runs.
DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 1, "logit_bias": {2: -np.inf, 3: -np.inf}}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The second export takes from the work folder what the first one left there."""
    folder = tmp_path_factory.mktemp("windows")
    source = folder / "source"
    save_tiny_chat(source, context=CONTEXT)
    lively = tiny_model("gemma3", vocab_size=VOCAB, max_position_embeddings=CONTEXT)
    lively.save_pretrained(source)
    checkpoint = open_checkpoint(source)
    adapter = save_adapter(
        folder / "adapter", random_factors(checkpoint, modules_of(checkpoint)), lora_alpha=40
    )
    for name in ("first", "second"):
        export_model(
            source,
            folder / name,
            precision="int8",
            gate="off",
            work=folder / "work",
            switchable_adapters={"pirate": adapter},
        )
    return folder / "first", folder / "second"


def answer(lm: LanguageModel, ids: Sequence[int], adapter: str | None) -> list[int]:
    reply = lm.generate(list(ids), max_tokens=30, adapter=adapter, **DRAWN)
    return reply.tokens


def fresh(bundle: Path, ids: Sequence[int], adapter: str | None) -> list[int]:
    with edgelm.load(bundle, threads=1, speculation="off") as lm:
        return answer(lm, ids, adapter)


def test_both_exports_answer_alike(bundles: tuple[Path, Path]) -> None:
    assert read_manifest(bundles[0]).graph.cache.cuts_windows
    for adapter in (None, "pirate"):
        assert fresh(bundles[0], WORDS[:90], adapter) == fresh(bundles[1], WORDS[:90], adapter)
    assert fresh(bundles[0], WORDS[:90], None) != fresh(bundles[0], WORDS[:90], "pirate")


@pytest.mark.parametrize("speculation", ["off", "auto"])
def test_requests_by_turns(bundles: tuple[Path, Path], speculation: Literal["off", "auto"]) -> None:
    """Going back beyond a window, and to another adapter, gives what a fresh model gives."""
    order = [(120, "pirate"), (70, "pirate"), (120, None), (70, "pirate"), (100, None)]
    with edgelm.load(bundles[0], threads=1, speculation=speculation) as lm:
        found = [answer(lm, WORDS[:length], adapter) for length, adapter in order]
    for (length, adapter), tokens in zip(order, found, strict=True):
        assert fresh(bundles[0], WORDS[:length], adapter) == tokens


def test_a_saved_chat(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    question = "Why is the sky blue, and why is it red in the evening and black at night?"
    with edgelm.load(bundles[0], threads=1) as lm:
        chat = lm.chat(adapter="pirate")
        chat.send(question, max_tokens=40, **DRAWN).read()
        chat.save(tmp_path / "chat")
        expected = chat.send("More?", max_tokens=20, **DRAWN).read().tokens
    with edgelm.load(bundles[1], threads=1) as lm:
        loaded = lm.chat(session=tmp_path / "chat")
        assert loaded.send("More?", max_tokens=20, **DRAWN).read().tokens == expected
