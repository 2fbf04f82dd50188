"""/v1/embeddings, as the official client and plain HTTP use it."""

import base64
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

import edgelm
from edgelm.runtime import LanguageModel
from edgelm.runtime.engines.onnxruntime.host.host_texts import HostTexts
from edgelm.runtime.engines.session import Logits, Tokens
from edgelm.runtime.server.settings import ServerSettings
from tests.runtime.server.running import running

TEXTS = ["The miller waits.", "Why is the sky blue? " * 5, "x"]


@pytest.fixture(scope="module")
def lm(embedding_bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(embedding_bundle, threads=1, sequences=2) as model:
        yield model


@pytest.fixture(scope="module")
def url(lm: LanguageModel) -> Iterator[str]:
    with running(lm, ServerSettings(model="tiny", max_queue=16)) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def vectors(answer: Any) -> Any:
    assert [one.index for one in answer.data] == [*range(len(answer.data))]
    return np.array([one.embedding for one in answer.data], dtype=np.float32)


def test_texts_have_the_vectors_of_the_library(client: openai.OpenAI, lm: LanguageModel) -> None:
    answer = client.embeddings.create(model="tiny", input=TEXTS)  # it requests base64
    assert np.array_equal(vectors(answer), lm.embed(TEXTS))
    tokens = sum(map(len, lm.embedder.encode(TEXTS)))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    assert answer.model == "tiny"
    assert answer.object == "list"
    one = client.embeddings.create(model="tiny", input=TEXTS[0], encoding_format="float")
    np.testing.assert_allclose(vectors(one), lm.embed(TEXTS[0]), atol=1e-7)


def test_short_texts_of_a_request_run_together(
    client: openai.OpenAI, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = HostTexts.run

    def run(self: HostTexts, texts: Sequence[Tokens], positions: Sequence[int]) -> Logits:
        sizes.append(len(texts))
        return real(self, texts, positions)

    monkeypatch.setattr(HostTexts, "run", run)
    texts = [f"text {number}" for number in range(9)]
    answer = client.embeddings.create(model="tiny", input=texts)
    assert sizes == [9]
    alone = np.concatenate([lm.embed(text) for text in texts])
    np.testing.assert_allclose(vectors(answer), alone, atol=1e-6)


def test_tokens_are_taken_as_they_are(client: openai.OpenAI, lm: LanguageModel) -> None:
    tokens = [one.tolist() for one in lm.embedder.encode(TEXTS)]
    assert np.array_equal(
        vectors(client.embeddings.create(model="tiny", input=tokens)), lm.embed(TEXTS)
    )
    single = client.embeddings.create(model="tiny", input=tokens[1])
    assert np.array_equal(vectors(single), lm.embed([TEXTS[1]]))


def test_base64_is_little_endian_float32(http: httpx.Client, lm: LanguageModel) -> None:
    body = {"model": "tiny", "input": "x", "encoding_format": "base64"}
    answer = http.post("/v1/embeddings", json=body).json()
    found = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    assert np.array_equal(found, lm.embed("x")[0])


def test_dimensions_prompt_and_truncation(client: openai.OpenAI, lm: LanguageModel) -> None:
    short = client.embeddings.create(model="tiny", input=TEXTS, dimensions=8)
    assert np.array_equal(vectors(short), lm.embed(TEXTS, dimensions=8))
    query = client.embeddings.create(model="tiny", input="x", extra_body={"prompt": "query"})
    assert np.array_equal(vectors(query), lm.embed("x", prompt="query"))
    long = "Why is the sky blue? " * 30
    cut = client.embeddings.create(model="tiny", input=long, extra_body={"truncate": True})
    assert np.array_equal(vectors(cut), lm.embed(long, truncate=True))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"input": []}, "list of 0"),
        ({"input": ""}, "a text is empty"),
        ({"input": ["a", ""]}, r"texts[1]: a text is empty"),
        ({"input": ["a", 3]}, "expected 1 to 2048 texts"),
        ({"input": [[1], "a", [999]]}, "another tokenizer"),
        ({"input": [[]]}, "at least one token id"),
        ({"input": ["a"] * 2049}, "list of 2049"),
        ({"input": None}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": "a", "dimensions": 65}, "1 to 64"),
        ({"input": "a", "dimensions": 0}, "1 to 64"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "prompt": "passage"}, "no prompt 'passage'"),
    ],
)
def test_bad_requests_are_explained(http: httpx.Client, fields: dict[str, Any], error: str) -> None:
    answer = http.post("/v1/embeddings", json={"model": "tiny"} | fields)
    assert answer.status_code == 400
    assert error in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_long_texts_and_unknown_models_have_openai_s_codes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        client.embeddings.create(model="tiny", input="Why is the sky blue? " * 30)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="a")


def test_nothing_is_generated(client: openai.OpenAI) -> None:
    ask: Any = [{"role": "user", "content": "Hello"}]
    for use in (
        lambda: client.chat.completions.create(model="tiny", messages=ask),
        lambda: client.chat.completions.create(model="tiny", messages=ask, stream=True),
        lambda: client.completions.create(model="tiny", prompt="Hello"),
        lambda: client.responses.create(model="tiny", input="Hello"),
    ):
        with pytest.raises(openai.BadRequestError, match="is an embedding model"):
            use()


def test_the_model_the_page_and_the_metrics(http: httpx.Client) -> None:
    [model] = http.get("/v1/models").json()["data"]
    assert (model["dimensions"], model["max_tokens"]) == (64, 200)
    assert model["prompts"] == ["query", "document"]
    assert "An embedding model" in http.get("/").text
    before = _metric(http, "edgelm_embedded_texts_total")
    http.post("/v1/embeddings", json={"model": "tiny", "input": TEXTS})
    assert _metric(http, "edgelm_embedded_texts_total") == before + 3
    assert _metric(http, "edgelm_embedding_seconds_count") > 0


def test_many_clients_at_once(client: openai.OpenAI, lm: LanguageModel) -> None:
    texts = [f"text {number} " * (1 + number % 7) for number in range(24)]
    wanted = lm.embed(texts)

    def ask(text: str) -> Any:
        return vectors(client.embeddings.create(model="tiny", input=text))[0]

    with ThreadPoolExecutor(8) as pool:
        assert np.array_equal([*pool.map(ask, texts)], wanted)


def test_a_full_queue_is_refused(embedding_bundle: Path) -> None:
    with (
        edgelm.load(embedding_bundle, threads=1) as model,
        running(model, ServerSettings(model="tiny", max_queue=1)) as (address, app),
        httpx.Client(base_url=address, timeout=60) as http,
        closing(app.state.generations.place()),
        closing(app.state.generations.place()),
    ):
        answer = http.post("/v1/embeddings", json={"model": "tiny", "input": "a"})
        assert answer.status_code == 429
        assert "retry-after" in answer.headers


def test_a_client_that_leaves_frees_its_sequence(lm: LanguageModel, url: str) -> None:
    body = {"model": "tiny", "input": ["Why is the sky blue? " * 7] * 2000}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/embeddings", json=body, timeout=httpx.Timeout(30, read=0.3))
    answer = httpx.post(f"{url}/v1/embeddings", json={"model": "tiny", "input": "a"}, timeout=10)
    assert answer.status_code == 200


@pytest.mark.slow
def test_langchain_and_litellm(url: str, lm: LanguageModel) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.OpenAIEmbeddings(
        model="tiny", base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(model.embed_documents(TEXTS), lm.embed(TEXTS), atol=1e-7)
    litellm = pytest.importorskip("litellm")
    answer = litellm.embedding(
        model="openai/tiny", input=TEXTS, api_base=f"{url}/v1", api_key="none"
    )
    found = np.array([one["embedding"] for one in answer.data])
    np.testing.assert_allclose(found, lm.embed(TEXTS), atol=1e-7)


def _metric(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[-1])
