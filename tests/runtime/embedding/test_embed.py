"""`lm.embed`: the vectors of transformers, and what it refuses."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import edgelm
from edgelm.errors import BadInput, ContextFull, UnknownName
from edgelm.export.pipeline import export_model
from tests.checkpoints.sentence_folders import END, QUERY, save_sentence_model

TEXTS = ["The miller waits.", "Why is the sky blue? " * 7, "x", "Granate bis zu einem Zentimeter"]


def of_transformers(folder: Path, texts: list[str], pooling: str) -> Any:
    """Vectors [n, d], normalized, by AutoModel and the formula of sentence-transformers."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vectors = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.inference_mode():
            hidden = model(ids).last_hidden_state[0]
        pooled = {"lasttoken": hidden[-1], "mean": hidden.mean(0), "cls": hidden[0]}[pooling]
        vectors.append(torch.nn.functional.normalize(pooled, dim=0))
    return torch.stack(vectors).numpy()


@pytest.mark.parametrize(
    ("name", "pooling"), [("qwen3", "lasttoken"), ("llama", "mean"), ("qwen3", "cls")]
)
def test_vectors_are_those_of_transformers(tmp_path: Path, name: str, pooling: str) -> None:
    folder = save_sentence_model(tmp_path / "source", name, pooling=pooling, prefix=name == "llama")
    export_model(folder, tmp_path / "bundle", precision="fp32", gate="off")
    with edgelm.load(tmp_path / "bundle") as lm:
        found = lm.embed(TEXTS)
        queries = lm.embed(TEXTS, prompt="query")
    assert found.dtype == np.float32
    assert found.shape == (4, 64)
    np.testing.assert_allclose(found, of_transformers(folder, TEXTS, pooling), atol=1e-5)
    prompted = [QUERY + text for text in TEXTS]
    np.testing.assert_allclose(queries, of_transformers(folder, prompted, pooling), atol=1e-5)


@pytest.mark.slow
def test_a_text_of_several_chunks_has_its_vector(tmp_path: Path) -> None:
    for pooling in ("lasttoken", "mean", "cls"):
        folder = save_sentence_model(tmp_path / pooling, pooling=pooling)
        export_model(folder, tmp_path / f"{pooling}-bundle", precision="fp32", gate="off")
        with edgelm.load(tmp_path / f"{pooling}-bundle") as lm:
            lm.session.engine.chunk = 7  # type: ignore[attr-defined]
            found = lm.embed(TEXTS)
        np.testing.assert_allclose(found, of_transformers(folder, TEXTS, pooling), atol=1e-5)


def test_a_text_has_the_same_vector_whatever_ran_before(embedding_bundle: Path) -> None:
    with edgelm.load(embedding_bundle) as lm:
        alone = lm.embed("The miller waits until.")
        together = lm.embed(["The miller waits", "The miller waits until.", "The"])
    assert np.array_equal(alone[0], together[1])


def test_fewer_dimensions_are_the_first_ones_normalized_again(embedding_bundle: Path) -> None:
    with edgelm.load(embedding_bundle) as lm:
        full, short = lm.embed(TEXTS), lm.embed(TEXTS, dimensions=16)
    wanted = full[:, :16] / np.linalg.norm(full[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(short, wanted, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1.0, atol=1e-6)


def test_a_model_without_normalize_gives_the_states_themselves(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path / "source", normalize=False)
    export_model(folder, tmp_path / "bundle", precision="fp32", gate="off")
    with edgelm.load(tmp_path / "bundle") as lm:
        lengths = np.linalg.norm(lm.embed(TEXTS), axis=1)
    assert (abs(lengths - 1) > 0.1).all()


def test_a_long_text_is_an_error_or_loses_its_end(embedding_bundle: Path) -> None:
    text = "Why is the sky blue? " * 30
    with edgelm.load(embedding_bundle) as lm:
        with pytest.raises(ContextFull, match=r"texts\[1\].*at most 200.*truncate=True"):
            lm.embed(["short", text])
        [tokens] = lm.embedder.encode(text, truncate=True)
        assert len(tokens) == 200
        assert tokens[-1] == END  # what the last token's state is pooled from
        assert np.array_equal(lm.embed(text, truncate=True)[0], lm.embed([tokens])[0])


@pytest.mark.parametrize(
    ("texts", "options", "error"),
    [
        ([], {}, "no texts"),
        (["a", ""], {}, r"texts\[1\]: a text is empty"),
        ([[]], {}, "at least one token id"),
        ([[1, 320]], {}, "another tokenizer"),
        ([[-1]], {}, "another tokenizer"),
        ([1.5], {}, "a text, or a list"),
        ([None], {}, "a text, or a list"),
        (7, {}, "texts is int"),
        (["a\ud800"], {}, r"texts\[0\]"),
        (["a"], {"dimensions": 0}, "1 to 64"),
        (["a"], {"dimensions": 65}, "1 to 64"),
        (["a"], {"dimensions": True}, "1 to 64"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    embedding_bundle: Path, texts: Any, options: dict[str, Any], error: str
) -> None:
    with edgelm.load(embedding_bundle) as lm, pytest.raises(BadInput, match=error):
        lm.embed(texts, **options)


def test_an_unknown_prompt_names_the_known_ones(embedding_bundle: Path) -> None:
    with edgelm.load(embedding_bundle) as lm:
        with pytest.raises(UnknownName, match=r"'passage'; its prompts: query, document"):
            lm.embed("a", prompt="passage")
        assert np.array_equal(lm.embed("a", prompt=""), lm.embed("a", prompt="document"))


def test_an_embedding_model_generates_nothing(embedding_bundle: Path) -> None:
    with edgelm.load(embedding_bundle) as lm:
        assert lm.embeds
        for use in (lm.generate, lm.stream, lm.chat, lm.chat_tokens):
            with pytest.raises(BadInput, match=r"embedding model, which generates no text"):
                use("Hello")


def test_a_language_model_has_no_vectors(tiny_chat: Path, tmp_path: Path) -> None:
    export_model(tiny_chat, tmp_path / "bundle", precision="fp32", gate="off")
    with edgelm.load(tmp_path / "bundle") as lm, pytest.raises(BadInput, match="a language model"):
        lm.embed("Hello")


def test_threads_and_sequences_do_not_mix(embedding_bundle: Path) -> None:
    texts = [f"text {number} " * (1 + number % 9) for number in range(24)]
    with edgelm.load(embedding_bundle, sequences=2) as lm:
        wanted = [lm.embed(text)[0] for text in texts]
        with ThreadPoolExecutor(6) as pool:
            found = [*pool.map(lambda text: lm.embed(text)[0], texts)]
    assert np.array_equal(found, wanted)


def test_asyncio_has_the_same_vectors_and_can_cancel(embedding_bundle: Path) -> None:
    async def run() -> None:
        both = await asyncio.gather(lm.aembed(TEXTS), lm.aembed(TEXTS[::-1]))
        assert np.array_equal(both[0], both[1][::-1])
        task = asyncio.create_task(lm.aembed(TEXTS * 500))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await asyncio.wait_for(lm.aembed("x"), 10)).shape == (1, 64)

    with edgelm.load(embedding_bundle) as lm:
        asyncio.run(run())


def test_closing_ends_a_call_of_another_thread(embedding_bundle: Path) -> None:
    lm = edgelm.load(embedding_bundle)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            lm.embed(TEXTS * 2000)
        except BadInput as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    lm.close()
    thread.join(20)
    assert not thread.is_alive()
    assert "closed" in str(errors[0])
