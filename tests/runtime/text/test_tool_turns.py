"""Conversations with tools, through templates that have them in their own way or not at all."""

from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import BadInput
from edgelm.runtime.text.chat import ChatTemplate, Message

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}
MESSAGES: list[Message] = [
    {"role": "user", "content": [{"type": "text", "text": "Ra"}, {"type": "text", "text": "in?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"mm": 42}'},
]
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def render(folder: Path, source: str, messages: Any = MESSAGES, tools: Any = TOOLS) -> str:
    (folder / "chat_template.jinja").write_text(source)
    template = ChatTemplate(folder / "chat_template.jinja", special_tokens={})
    return template.render(messages, tools=tools)


def test_a_template_without_tools_is_told_in_words(tmp_path: Path) -> None:
    text = render(tmp_path, PLAIN + "{# system #}")
    assert text.startswith("[system]You can call these functions:\n<tools>\n")
    assert '"name": "get_weather"' in text
    assert text.endswith(
        '[user]Rain?[assistant]<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}'
        '\n</tool_call>[user]<tool_response>\n{"mm": 42}\n</tool_response>'
    )


@pytest.mark.parametrize(
    "source", [PLAIN, PLAIN + "{% if false %}system: System role not supported{% endif %}"]
)
def test_without_a_system_role_the_first_message_is_told(tmp_path: Path, source: str) -> None:
    text = render(tmp_path, source)
    assert text.startswith("[user]You can call these functions:")
    assert "\n\nRain?[assistant]" in text


def test_a_system_message_stays(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    text = render(tmp_path, PLAIN + "{# system #}", messages)
    assert text.count("[system]") == 1
    assert "\n\nBe brief.[user]Rain?" in text


def test_without_tools_nothing_is_told(tmp_path: Path) -> None:
    hello = [{"role": "user", "content": "hello"}]
    nothing: list[Any] = [None, []]
    for tools in nothing:
        assert render(tmp_path, PLAIN, hello, tools) == "[user]hello"


def test_a_template_that_leaves_calls_out(tmp_path: Path) -> None:
    text = render(tmp_path, PLAIN + "{% if tools %}<|tool_call|>{% endif %}")
    call = '[{"name": "get_weather", "arguments": {"city": "Paris"}}]'
    assert f"[assistant]<|tool_call|>{call}[tool]" in text


def test_results_within_the_turn_that_called(tmp_path: Path) -> None:
    source = (
        "{{ tools | length }}{% for m in messages %}[{{ m.role }}]"
        "{% for r in m.tool_responses or [] %}{{ r.name }}={{ r.response.mm }}{% endfor %}"
        "{% endfor %}{# tool_calls #}"
    )
    assert render(tmp_path, source) == "1[user][assistant]get_weather=42"


DICT = "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}"
TEXT = "{% for c in m.tool_calls or [] %}{{ '(' + c.function.arguments + ')' }}{% endfor %}"


@pytest.mark.parametrize(("part", "expected"), [(DICT, "Paris"), (TEXT, '({"city": "Paris"})')])
def test_arguments_are_what_the_template_reads(tmp_path: Path, part: str, expected: str) -> None:
    source = "{% if tools %}{% for m in messages %}" + part + "{% endfor %}{% endif %}"
    assert render(tmp_path, source) == expected


def test_a_result_has_the_name_of_its_function(tmp_path: Path) -> None:
    source = "{% if tools %}{% for m in messages %}{{ m.name }}{% endfor %}{% endif %}tool_calls"
    assert render(tmp_path, source) == "get_weathertool_calls"


def test_other_arguments_of_the_template(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ enable_thinking }} {{ messages | length }}")
    template = ChatTemplate(tmp_path / "chat_template.jinja", special_tokens={})
    hello: list[Message] = [{"role": "user", "content": "hello"}]
    assert template.render(hello, enable_thinking=False) == "False 1"


@pytest.mark.parametrize("arguments", [{"n": 1}, '{"n": 1}'])
def test_a_call_without_function_is_read_as_one(tmp_path: Path, arguments: Any) -> None:
    call = {"name": "f", "arguments": arguments}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    for source in ("{{ c.arguments | tojson }}", "{{ c.function.arguments | tojson }}"):
        loop = "{% for c in messages[0].tool_calls %}" + source + "{% endfor %}"
        assert render(tmp_path, loop, [message], None) == '{"n": 1}'


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "assistant", "tool_calls": [{"name": 5, "arguments": {}}]}, "the tool call"),
        ({"role": "user", "content": []}, "bad message"),
        ({"role": "user", "content": ["x"]}, "a part of type 'str'"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "'image_url'"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, "has the tool call"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "arguments of the call of f are not JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]},
            "not a JSON object",
        ),
    ],
)
def test_messages_that_are_refused(tmp_path: Path, message: Any, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        render(tmp_path, PLAIN, [message], None)
