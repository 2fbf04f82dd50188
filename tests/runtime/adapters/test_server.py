"""Adapters as models of the server, by their names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import edgelm
from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel, Message
from edgelm.runtime.server.app import make_app
from edgelm.runtime.server.settings import ServerSettings
from tests.runtime.server.running import running


@pytest.fixture(scope="module")
def served(adapted: Path) -> Iterator[LanguageModel]:
    with edgelm.load(adapted, threads=1, sequences=2) as lm:
        yield lm


@pytest.fixture(scope="module")
def client(served: LanguageModel) -> Iterator[openai.OpenAI]:
    with (
        running(served, ServerSettings(model="tiny")) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def expected(adapted: Path) -> dict[str, str]:
    asked: list[Message] = [{"role": "user", "content": "Why?"}]
    with edgelm.load(adapted, threads=1) as lm:
        return {
            name or "tiny": lm.generate(
                asked,
                adapter=name,
                max_tokens=8,
                temperature=0,
            ).text
            for name in (None, *lm.adapters)
        }


def test_models(client: openai.OpenAI) -> None:
    listed = {one.id: one.model_extra or {} for one in client.models.list()}
    assert list(listed) == ["tiny", "pirate", "poet"]
    assert "parent" not in listed["tiny"]
    assert listed["poet"]["parent"] == "tiny"
    assert client.models.retrieve("poet").id == "poet"


def test_chat_completions(client: openai.OpenAI, expected: dict[str, str]) -> None:
    assert len(set(expected.values())) == 3
    for name, text in expected.items():
        asked: Any = {
            "model": name,
            "messages": [{"role": "user", "content": "Why?"}],
            "max_tokens": 8,
            "temperature": 0,
        }
        whole = client.chat.completions.create(**asked)
        assert whole.model == name
        assert whole.choices[0].message.content == text
        chunks = client.chat.completions.create(**asked, stream=True)
        parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(parts) == text


def test_responses_and_completions(
    client: openai.OpenAI, served: LanguageModel, expected: dict[str, str]
) -> None:
    for name, text in expected.items():
        response = client.responses.create(
            model=name, input="Why?", max_output_tokens=8, temperature=0
        )
        assert response.output_text == text
    texts = {
        name: client.completions.create(
            model=name, prompt="The miller waits", max_tokens=8, temperature=0
        )
        .choices[0]
        .text
        for name in expected
    }
    for name, text in texts.items():
        adapter = None if name == "tiny" else name
        own = served.generate("The miller waits", adapter=adapter, max_tokens=8, temperature=0)
        assert own.text == text


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny', 'pirate', 'poet'"):
        client.completions.create(model="tiny:poet", prompt="Hi")


def test_two_models_of_one_name(served: LanguageModel) -> None:
    with pytest.raises(BadInput, match="also the name of one of its adapters"):
        make_app(served, ServerSettings(model="poet"))


def test_metrics_count_them(client: openai.OpenAI) -> None:
    base = str(client.base_url).removesuffix("/v1/")

    def generated() -> float:
        text = httpx.get(f"{base}/metrics").text
        lines = [
            line for line in text.splitlines() if line.startswith("edgelm_generated_tokens_total")
        ]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    before = generated()
    client.completions.create(model="poet", prompt="The miller", max_tokens=3, temperature=0)
    assert generated() > before
