"""Clients that programs reach servers through; each test runs where its client is installed:

pip install langchain-openai litellm
"""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.runtime.server.settings import ServerSettings
from tests.runtime.server.running import running
from tests.runtime.test_tools import PARAMETERS, TOOLS, tool_bundle
from tests.schemas.json_check import is_valid

__all__ = ["tool_bundle"]  # a fixture
ASK: Any = [{"role": "user", "content": "Rain?"}]
COLOR: Any = {
    "title": "Color",
    "type": "object",
    "properties": {"name": {"enum": ["red", "green"]}, "value": {"type": "boolean"}},
    "required": ["name", "value"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def url(tool_bundle: Path) -> Iterator[str]:
    with (
        edgelm.load(tool_bundle, threads=1) as lm,
        running(lm, ServerSettings(model="tiny")) as (address, _),
    ):
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def chain(url: str) -> Any:
    """LangChain's chat model, with the server as its base."""
    langchain_openai = pytest.importorskip("langchain_openai")
    return langchain_openai.ChatOpenAI(
        model="tiny", base_url=url, api_key="none", max_retries=0, max_tokens=6, temperature=0
    )


def test_langchain_whole_streamed_and_async(chain: Any) -> None:
    whole = chain.invoke("Rain?")
    assert whole.content
    assert whole.usage_metadata["output_tokens"] == 6
    assert whole.response_metadata["finish_reason"] == "length"
    assert "".join(chunk.content for chunk in chain.stream("Rain?")) == whole.content
    assert asyncio.run(chain.ainvoke("Rain?")).content == whole.content


def test_langchain_tools(chain: Any) -> None:
    bound = chain.bind_tools(TOOLS, tool_choice="required", parallel_tool_calls=False)
    answer = bound.invoke("Rain?", max_tokens=None)
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather"
    assert is_valid(call["args"], PARAMETERS)
    after = chain.bind_tools(TOOLS).invoke(
        [("user", "Rain?"), answer, {"role": "tool", "tool_call_id": call["id"], "content": "No."}]
    )
    assert after.usage_metadata["output_tokens"] == 6


def test_langchain_structured_output(chain: Any) -> None:
    structured = chain.with_structured_output(COLOR, method="json_schema")
    assert is_valid(structured.invoke("Rain?", max_tokens=200), COLOR)


@pytest.fixture(scope="module")
def completion(url: str) -> Any:
    """litellm's `completion`, with the server as its base."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks GitHub for prices
    litellm = pytest.importorskip("litellm")

    def call(**options: Any) -> Any:
        given = {"model": "openai/tiny", "api_base": url, "api_key": "none", "messages": ASK}
        return litellm.completion(**(given | {"max_tokens": 6, "num_retries": 0} | options))

    return call


def test_litellm_whole_and_streamed(completion: Any) -> None:
    whole = completion()
    text = whole.choices[0].message.content
    assert text
    assert whole.usage.completion_tokens == 6
    chunks = list(completion(stream=True, stream_options={"include_usage": True}))
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    )


def test_litellm_tools_and_schema(completion: Any) -> None:
    called = completion(
        tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=None
    )
    (call,) = called.choices[0].message.tool_calls
    assert is_valid(json.loads(call.function.arguments), PARAMETERS)
    form = {"type": "json_schema", "json_schema": {"name": "color", "schema": COLOR}}
    text = completion(response_format=form, max_tokens=200).choices[0].message.content
    assert is_valid(json.loads(text), COLOR)


def test_litellm_maps_errors(completion: Any) -> None:
    litellm = pytest.importorskip("litellm")
    with pytest.raises(litellm.BadRequestError, match="max_tokens"):
        completion(max_tokens=-1)
