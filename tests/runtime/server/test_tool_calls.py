"""Tools and reasoning through the official client: whole, streamed, and the next turn."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import edgelm
from edgelm.runtime.server.endpoints.fields import reasoning_options
from edgelm.runtime.server.settings import ServerSettings
from tests.runtime.server.running import running
from tests.runtime.test_tools import PARAMETERS, TOOLS, tool_bundle
from tests.schemas.json_check import is_valid

__all__ = ["tool_bundle"]  # a fixture
ASK: Any = [{"role": "user", "content": "Rain?"}]
REQUIRED: Any = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}


@pytest.fixture(scope="module")
def client(tool_bundle: Path) -> Iterator[openai.OpenAI]:
    with (
        edgelm.load(tool_bundle, threads=1) as lm,
        running(lm, ServerSettings(model="tiny")) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client


def test_a_call_and_its_result(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=ASK, **REQUIRED)
    choice = done.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert is_valid(json.loads(call.function.arguments), PARAMETERS)
    turns: Any = [
        *ASK,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Yes."},
    ]
    tools: Any = TOOLS
    after = client.chat.completions.create(model="tiny", messages=turns, tools=tools, max_tokens=4)
    assert after.usage is not None
    assert after.usage.completion_tokens == 4


def test_a_streamed_call(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="tiny", messages=ASK, stream=True, **REQUIRED)
    chunks = list(stream)
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    (call,) = calls
    assert call.index == 0
    assert call.function is not None
    assert call.function.name == "get_weather"
    assert is_valid(json.loads(call.function.arguments or ""), PARAMETERS)
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_reasoning_is_apart(client: openai.OpenAI) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_budget": 5}
    done = client.chat.completions.create(
        model="tiny",
        messages=ASK,
        max_tokens=40,
        logit_bias={"2": -100, "3": -100},
        extra_body=extra,
    )
    message: Any = done.choices[0].message
    assert message.reasoning_content
    assert "think" not in (message.content or "")


THINKING: Any = {"chat_template_kwargs": {"enable_thinking": True}, "logit_bias": {"2": -100}}


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_of_a_response(client: openai.OpenAI, stream: bool) -> None:
    given: Any = {"model": "tiny", "input": "Rain?", "max_output_tokens": 40}
    given["extra_body"] = {**THINKING, "reasoning_budget": 5}
    done: Any
    if stream:
        events: Any = list(client.responses.create(**given, stream=True))
        done = events[-1].response
        thoughts = "".join(e.delta for e in events if e.type == "response.reasoning_text.delta")
        assert thoughts == done.output[0].content[0].text
        places = [e.output_index for e in events if e.type == "response.output_text.delta"]
        assert set(places) <= {1}
    else:
        done = client.responses.create(**given)
    reasoning, message = done.output
    assert reasoning.type == "reasoning"
    assert "think" not in message.content[0].text
    assert 5 <= done.usage.output_tokens_details.reasoning_tokens < done.usage.output_tokens
    turns: Any = [
        {"role": "user", "content": "Rain?"},
        reasoning.model_dump(exclude_none=True),
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Why?"},
    ]
    again = client.responses.create(model="tiny", input=turns, max_output_tokens=1)
    without = client.responses.create(
        model="tiny", input=[turns[0], *turns[2:]], max_output_tokens=1
    )
    assert again.usage is not None
    assert without.usage is not None
    assert again.usage.input_tokens > without.usage.input_tokens  # the template has the reasoning


@pytest.mark.parametrize(
    "fields", [{"reasoning_budget": 0}, {"reasoning_effort": "none"}], ids=["budget", "effort"]
)
def test_no_reasoning(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    begun = {"enable_thinking": True} if "reasoning_budget" in fields else {}
    done: Any = client.chat.completions.create(
        model="tiny",
        messages=ASK,
        max_tokens=20,
        logit_bias={"2": -100, "3": -100},
        extra_body={"chat_template_kwargs": begun, **fields},
    )
    assert not getattr(done.choices[0].message, "reasoning_content", None)
    assert done.usage.completion_tokens_details.reasoning_tokens == 0


def test_effort_is_an_argument_of_the_template() -> None:
    assert reasoning_options("low", None, None)["chat_template_kwargs"] == {
        "reasoning_effort": "low"
    }
    own = reasoning_options("none", 9, {"enable_thinking": True})
    assert own == {"reasoning_budget": 9, "chat_template_kwargs": {"enable_thinking": True}}


@pytest.mark.parametrize("stream", [False, True])
def test_responses(client: openai.OpenAI, stream: bool) -> None:
    tools: Any = [{"type": "function", **TOOLS[0]["function"]}]
    given: Any = {"model": "tiny", "input": "Rain?", "tools": tools, "tool_choice": "required"}
    given["parallel_tool_calls"] = False
    done: Any
    if stream:
        events = list(client.responses.create(**given, stream=True))
        done = events[-1].response
        assert [e.sequence_number for e in events] == list(range(len(events)))
        assert "response.function_call_arguments.done" in [e.type for e in events]
    else:
        done = client.responses.create(**given)
    (call,) = done.output
    assert call.type == "function_call"
    assert is_valid(json.loads(call.arguments), PARAMETERS)
    turns: Any = [
        {"role": "user", "content": "Rain?"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "Yes."},
    ]
    after = client.responses.create(model="tiny", input=turns, tools=tools, max_output_tokens=4)
    assert after.usage is not None
    assert after.usage.output_tokens == 4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "choice": ({"tool_choice": "required"}, "tool"),
    "name": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "x",
    ),
    "kind": ({"tools": [{"type": "search"}]}, ""),
    "control": (
        {"extra_body": {"chat_template_kwargs": {"allow_special": True}}},
        "may not have allow_special",
    ),
    "messages": (
        {"extra_body": {"chat_template_kwargs": {"messages": []}}},
        "may not have messages",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(client: openai.OpenAI, options: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=ASK, max_tokens=2, **options)
    assert message in str(error.value)
