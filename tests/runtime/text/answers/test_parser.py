"""Answers of every family, taken apart at every place where a chunk may end."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from edgelm.runtime.text.answers.formats import answer_format
from edgelm.runtime.text.answers.parser import AnswerParser, AnswerPart

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
PARIS = ("get_weather", {"city": "Paris", "days": 3})
NOW: tuple[str, dict[str, Any]] = ("now", {})

# The tags that a family's published template writes.
HERMES = "<tools>{{ tools }}</tools> <tool_call></tool_call> <think></think>"
CODER = "<tool_call>\n<function=example>\n<parameter=x>\n</parameter> <think>\n"
GLM = "<tool_call>{function}<arg_key>k</arg_key><arg_value>v</arg_value></tool_call> <think>"
LLAMA3 = '{"name": function name, "parameters": dict} Environment: ipython <|python_tag|>'
MISTRAL = "[AVAILABLE_TOOLS] [TOOL_CALLS] [THINK][/THINK]"
GEMMA4 = "<|tool_call>call: <|channel>thought\n<channel|>"
FUNCTION_GEMMA = "<start_function_call>call: <end_function_call>"
LFM2 = "<|tool_call_start|>[ ]<|tool_call_end|> <think></think>"
GRANITE = "<|tool_call|> <think></think><response></response>"
PHI4 = "<|tool_call|><|/tool_call|>"
NEMOTRON = "<TOOLCALL>[]</TOOLCALL> <think></think>"
OLMO3 = "<function_calls></function_calls>"
GPT_OSS = "<|start|>assistant<|channel|>analysis<|message|>"

CALL = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
NO_ARGUMENTS = '{"name": "now", "arguments": {}}'
CASES: dict[str, tuple[str, str, str, str, list[Any]]] = {
    # template, answer, reasoning, content, calls
    "hermes": (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", "", "", [PARIS]),
    "hermes, all parts": (
        HERMES,
        f"<think>\nHm, < think.\n</think>\n\nLet me see.\n<tool_call>\n{CALL}\n</tool_call>\n"
        f"<tool_call>\n{NO_ARGUMENTS}\n</tool_call>",
        "Hm, < think.",
        "Let me see.",
        [PARIS, NOW],
    ),
    "hermes, no end": (HERMES, f"<tool_call>\n{CALL}", "", "", [PARIS]),
    "hermes, an end tag in a text": (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": {"city": "</tool_call>"}}</tool_call>',
        "",
        "",
        [("get_weather", {"city": "</tool_call>"})],
    ),
    "hermes, Python's quotes": (
        HERMES,
        "<tool_call>{'name': 'get_weather', 'arguments': {'city': 'Paris', 'days': 3}}</tool_call>",
        "",
        "",
        [PARIS],
    ),
    "hermes, arguments as a text": (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", '
        '\\"days\\": 3}"}</tool_call>',
        "",
        "",
        [PARIS],
    ),
    "hermes, unreadable": (
        HERMES,
        "Well: <tool_call>get_weather Paris</tool_call>",
        "",
        "Well: <tool_call>get_weather Paris</tool_call>",
        [],
    ),
    "hermes, a call within the reasoning": (
        HERMES,
        f"<think>I call it.<tool_call>{CALL}</tool_call>",
        "I call it.",
        "",
        [PARIS],
    ),
    "no call": (HERMES, "2 < 3 and <b>bold</b> <tool", "", "2 < 3 and <b>bold</b> <tool", []),
    "white space stays": (HERMES, "  a\n\n b \n", "", "  a\n\n b \n", []),
    "empty reasoning": (HERMES, "<think>\n\n</think>\n\nYes.", "", "Yes.", []),
    "reasoning without an end": (HERMES, "<think>\nEndless", "Endless", "", []),
    "coder": (
        CODER,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        "",
        "",
        [PARIS],
    ),
    "coder, a text of digits and lines": (
        CODER,
        "<tool_call><function=get_weather><parameter=city>\n12\n\n34\n</parameter></function>"
        "</tool_call>",
        "",
        "",
        [("get_weather", {"city": "12\n\n34"})],
    ),
    "coder, no arguments": (
        CODER,
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
        "",
        [NOW],
    ),
    "glm": (
        GLM,
        "<think>hm</think><tool_call>get_weather\n<arg_key>city</arg_key>\n"
        "<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
        "</tool_call>",
        "hm",
        "",
        [PARIS],
    ),
    "llama3": (
        LLAMA3,
        '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}',
        "",
        "",
        [PARIS],
    ),
    "llama3, tag": (
        LLAMA3,
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}; '
        '{"name": "now", "parameters": {}}',
        "",
        "",
        [PARIS, NOW],
    ),
    "llama3, JSON that is not a call": (
        LLAMA3,
        '{"name": "Ada", "age": 36}',
        "",
        '{"name": "Ada", "age": 36}',
        [],
    ),
    "mistral": (MISTRAL, f"[TOOL_CALLS][{CALL}, {NO_ARGUMENTS}]", "", "", [PARIS, NOW]),
    "mistral, names": (
        MISTRAL,
        '[THINK]hm[/THINK]So.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}'
        "[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}",
        "hm",
        "So.",
        [PARIS, NOW],
    ),
    "gemma4": (
        GEMMA4,
        '<|channel>thought\nhm\n<channel|><|tool_call>call:get_weather{city:<|"|>Paris<|"|>,'
        "days:3}<tool_call|>",
        "hm",
        "",
        [PARIS],
    ),
    "gemma4, nested": (
        GEMMA4,
        '<|tool_call>call:now{a:{<|"|>b<|"|>:[1,<|"|>}, "c"<|"|>,true]},d:null}<tool_call|>',
        "",
        "",
        [("now", {"a": {"b": [1, '}, "c"', True]}, "d": None})],
    ),
    "functiongemma": (
        FUNCTION_GEMMA,
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}"
        "<end_function_call>",
        "",
        "",
        [PARIS],
    ),
    "lfm2": (
        LFM2,
        '<think>hm</think>Wait.<|tool_call_start|>[get_weather(city="Paris", days=3), now()]'
        "<|tool_call_end|>",
        "hm",
        "Wait.",
        [PARIS, NOW],
    ),
    "lfm2, constants": (
        LFM2,
        "<|tool_call_start|>[now(a=True, b=[None, false], c={'d': -1})]<|tool_call_end|>",
        "",
        "",
        [("now", {"a": True, "b": [None, False], "c": {"d": -1}})],
    ),
    "granite": (
        GRANITE,
        f"<think>hm</think><response>Wait.</response><|tool_call|>[{CALL}]",
        "hm",
        "Wait.",
        [PARIS],
    ),
    "phi4": (PHI4, f"<|tool_call|>[{CALL}]<|/tool_call|>", "", "", [PARIS]),
    "nemotron": (
        NEMOTRON,
        f"<think>\nhm</think>\n<TOOLCALL>[{CALL}]</TOOLCALL>",
        "hm",
        "",
        [PARIS],
    ),
    "olmo3": (
        OLMO3,
        '<function_calls>\nget_weather(city="Paris", days=3)\nnow()\n</function_calls>',
        "",
        "",
        [PARIS, NOW],
    ),
    "gpt-oss": (
        GPT_OSS,
        "<|channel|>analysis<|message|>Need weather.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris", "days": 3}<|call|>',
        "Need weather.",
        "",
        [PARIS],
    ),
    "gpt-oss, recipient first": (
        GPT_OSS,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.now"
        "<|channel|>commentary json<|message|>{}",
        "Hm.",
        "",
        [NOW],
    ),
    "gpt-oss, final": (
        GPT_OSS,
        "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>"
        "Yes <|b|>.<|return|>",
        "Easy.",
        "Yes <|b|>.",
        [],
    ),
    "gpt-oss, preamble": (
        GPT_OSS,
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.now<|message|>{}<|call|>",
        "",
        "I look.",
        [NOW],
    ),
}


def parse(parser: AnswerParser, pieces: Iterable[str]) -> tuple[str, str, list[Any]]:
    parts: list[AnswerPart] = [*(parser.push(piece) for piece in pieces), parser.finish()]
    calls = [call for part in parts for call in part.tool_calls]
    return (
        "".join(part.reasoning for part in parts),
        "".join(part.content for part in parts),
        [(call.name, json.loads(call.arguments)) for call in calls],
    )


@pytest.mark.parametrize("name", CASES)
def test_every_split(name: str) -> None:
    template, text, *expected = CASES[name]
    chosen = answer_format(template)
    whole = parse(AnswerParser(chosen, TOOLS), [text])
    assert list(whole) == expected
    assert parse(AnswerParser(chosen, TOOLS), text) == whole  # character by character
    for cut in range(1, len(text)):
        assert parse(AnswerParser(chosen, TOOLS), [text[:cut], text[cut:]]) == whole, text[:cut]
    for size in (2, 3, 5, 7):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert parse(AnswerParser(chosen, TOOLS), pieces) == whole


def test_no_tag_is_shown_before_it_is_known() -> None:
    text = f"<think>hm</think>So:\n<tool_call>{CALL}</tool_call>"
    parser = AnswerParser(answer_format(HERMES), TOOLS)
    shown = ""
    for character in text:
        part = parser.push(character)
        shown += part.content + part.reasoning
        assert "hmSo:".startswith(shown)


def test_a_call_that_was_cut_is_left_out() -> None:
    for text, expected in (
        ('So: <tool_call>{"name": "get_we', ("So:", [])),
        (f"So: <tool_call>{CALL}", ("So:", ["get_weather"])),
        ("So: <tool_c", ("So:", [])),
        ("So: a <", ("So: a <", [])),
        (f"<tool_call>{CALL}</tool_call>\n<", ("", ["get_weather"])),
    ):
        parser = AnswerParser(answer_format(HERMES), TOOLS)
        parts = [parser.push(text), parser.finish(cut=True)]
        calls = [call.name for part in parts for call in part.tool_calls]
        assert ("".join(part.content for part in parts).rstrip(), calls) == expected


def test_without_tools_a_call_is_content() -> None:
    text = f"<tool_call>{CALL}</tool_call>"
    assert parse(AnswerParser(answer_format(HERMES)), text) == ("", text, [])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("assistant\n<think>\n", ("Hm.", "Yes.", [])),
        ("assistant\n<think>", ("Hm.", "Yes.", [])),
        ("assistant\n<think>\n\n</think>\n\n", ("", "Hm.\n</think>\n\nYes.", [])),
        ("assistant\n", ("", "Hm.\n</think>\n\nYes.", [])),
    ],
)
def test_reasoning_that_the_prompt_began(prompt: str, expected: Any) -> None:
    parser = AnswerParser(answer_format(HERMES), prompt=prompt)
    assert parse(parser, "Hm.\n</think>\n\nYes.") == expected


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "f(" * 50_000,
        '{"name": "now", "arguments": {"x": NaN}}',
        '{"name": 5}',
        '{"name": "now", "arguments": [1]}',
        "null null",
        "",
        "[now(*x)]",
        "[now(x=__import__('os'))]",
        "[(lambda: 0)()]" + "x",
        'call:now{a:<|"|>x',
        "call:now" + "{a:" * 1000,
        "call:now{a:{}",
    ],
    ids=lambda body: body[:12],
)
@pytest.mark.parametrize("template", [HERMES, LFM2, GEMMA4, CODER, GLM, MISTRAL, GPT_OSS])
def test_what_cannot_be_read_is_content(template: str, body: str) -> None:
    chosen = answer_format(template)
    assert chosen.calls is not None
    tags = chosen.calls.tags[0]
    text = f"{tags.begin}{body}{tags.end}"
    assert parse(AnswerParser(chosen, TOOLS), [text]) == ("", text, [])


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (HERMES, '<tool_call>{"name": "now", "arguments": {"a": "%s"}}</tool_call>'),
        (LFM2, '<|tool_call_start|>[now(a="%s")]<|tool_call_end|>'),
    ],
)
@pytest.mark.parametrize(
    ("escape", "expected"), [("\\ud83d\\ude00", "\U0001f600"), ("\\ud83d!", "\ufffd!"), ("é", "é")]
)
def test_halves_of_characters(template: str, text: str, escape: str, expected: str) -> None:
    (call,) = AnswerParser(answer_format(template), TOOLS).push(text % escape).tool_calls
    assert call.parsed() == {"a": expected}
    call.arguments.encode()


def test_calls_have_ids_of_their_own() -> None:
    parser = AnswerParser(answer_format(HERMES), TOOLS)
    calls = parser.push(f"<tool_call>{CALL}</tool_call>" * 2).tool_calls
    assert calls[0].id != calls[1].id
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)


def names(templates: Sequence[str]) -> list[str]:
    return [answer_format(template).name for template in templates]


def test_families_are_recognized() -> None:
    assert names([HERMES, CODER, GLM, LLAMA3, MISTRAL, GEMMA4, FUNCTION_GEMMA]) == [
        "hermes",
        "qwen3-coder",
        "glm",
        "llama3",
        "mistral",
        "gemma4",
        "functiongemma",
    ]
    assert names([LFM2, GRANITE, PHI4, NEMOTRON, OLMO3, GPT_OSS, "{{ messages }}"]) == [
        "lfm2",
        "granite",
        "phi4",
        "nemotron",
        "olmo3",
        "harmony",
        "plain",
    ]
