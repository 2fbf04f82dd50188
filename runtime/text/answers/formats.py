"""How each family of models writes reasoning and calls of tools, chosen from the chat template.

A template shows the model the tags that it was trained to write, so it is recognized by them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.runtime.text.answers.gemma_calls import read_gemma_calls
from edgelm.runtime.text.answers.harmony_calls import read_harmony_call
from edgelm.runtime.text.answers.json_calls import read_json_calls, read_named_calls
from edgelm.runtime.text.answers.python_calls import read_python_calls
from edgelm.runtime.text.answers.tagged_calls import read_function_tags, read_key_value_tags
from edgelm.runtime.text.answers.tool_call import ToolCall

Tool = Mapping[str, Any]
Reader = Callable[[str, Sequence[Tool]], list[ToolCall]]


@dataclass(frozen=True, slots=True)
class Tags:
    """What begins and ends a part of an answer; without an end it reaches to the answer's end."""

    begin: str
    end: str


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How calls are written: between which tags, and what stands there.

    `bare`: an answer that begins with `{` is a call, too (Llama 3).
    """

    tags: tuple[Tags, ...]
    read: Reader
    bare: bool = False


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """The parts of a family's answers. `hidden` are tags that only separate."""

    name: str
    calls: CallSyntax | None = None
    reasoning: Tags | None = None
    hidden: tuple[str, ...] = ()

    def tags(self) -> list[str]:
        """Every tag that may occur."""
        pairs = [
            *(self.calls.tags if self.calls else ()),
            *([self.reasoning] if self.reasoning else ()),
        ]
        return [*self.hidden, *(tag for pair in pairs for tag in (pair.begin, pair.end) if tag)]


def _plain(read: Callable[[str], list[ToolCall]]) -> Reader:
    return lambda body, _: read(body)


_HERMES_TAGS = (Tags("<tool_call>", "</tool_call>"),)
_JSON = _plain(read_json_calls)

# What a template must hold -> how calls are written; the first match counts.
_CALLS: list[tuple[str, tuple[str, ...], CallSyntax]] = [
    (
        "gemma4",
        ("<|tool_call>",),
        CallSyntax((Tags("<|tool_call>", "<tool_call|>"),), _plain(read_gemma_calls)),
    ),
    (
        "functiongemma",
        ("<start_function_call>",),
        CallSyntax(
            (Tags("<start_function_call>", "<end_function_call>"),), _plain(read_gemma_calls)
        ),
    ),
    (
        "mistral",
        ("[TOOL_CALLS]",),
        CallSyntax((Tags("[TOOL_CALLS]", ""),), _plain(read_named_calls)),
    ),
    (
        "lfm2",
        ("<|tool_call_start|>",),
        CallSyntax((Tags("<|tool_call_start|>", "<|tool_call_end|>"),), _plain(read_python_calls)),
    ),
    (
        "lfm2",
        ("<|tool_list_start|>",),
        CallSyntax((Tags("<|tool_call_start|>", "<|tool_call_end|>"),), _plain(read_python_calls)),
    ),
    (
        "phi4",
        ("<|tool_call|>", "<|/tool_call|>"),
        CallSyntax((Tags("<|tool_call|>", "<|/tool_call|>"),), _JSON),
    ),
    ("granite", ("<|tool_call|>",), CallSyntax((Tags("<|tool_call|>", ""),), _JSON)),
    ("nemotron", ("<TOOLCALL>",), CallSyntax((Tags("<TOOLCALL>", "</TOOLCALL>"),), _JSON)),
    (
        "olmo3",
        ("<function_calls>",),
        CallSyntax((Tags("<function_calls>", "</function_calls>"),), _plain(read_python_calls)),
    ),
    ("qwen3-coder", ("<tool_call>", "<function="), CallSyntax(_HERMES_TAGS, read_function_tags)),
    ("glm", ("<tool_call>", "<arg_key>"), CallSyntax(_HERMES_TAGS, read_key_value_tags)),
    ("hermes", ("<tool_call>",), CallSyntax(_HERMES_TAGS, _JSON)),
    ("llama3", ("<|python_tag|>",), CallSyntax((Tags("<|python_tag|>", ""),), _JSON, bare=True)),
    (
        "llama3",
        ('"parameters"', "ipython"),
        CallSyntax((Tags("<|python_tag|>", ""),), _JSON, bare=True),
    ),
]
_REASONING: list[tuple[str, Tags]] = [
    ("<|channel>thought", Tags("<|channel>thought\n", "<channel|>")),
    ("[THINK]", Tags("[THINK]", "[/THINK]")),
    ("<think>", Tags("<think>", "</think>")),
    ("</think>", Tags("<think>", "</think>")),
]
_HARMONY = AnswerFormat(
    "harmony",
    CallSyntax(
        (
            Tags("<|channel|>commentary to=functions.", "<|call|>"),
            Tags("<|start|>assistant to=functions.", "<|call|>"),
        ),
        _plain(read_harmony_call),
    ),
    Tags("<|channel|>analysis<|message|>", "<|end|>"),
    (
        "<|start|>assistant",
        "<|channel|>final<|message|>",
        "<|channel|>commentary<|message|>",
        "<|end|>",
        "<|return|>",
    ),
)


def answer_format(template: str) -> AnswerFormat:
    """The format of the family that a chat template belongs to.

    A template that shows no calls gives a format without them.
    """
    if "<|channel|>" in template and "<|message|>" in template:
        return _HARMONY
    name, calls = next(
        ((name, calls) for name, marks, calls in _CALLS if all(mark in template for mark in marks)),
        ("plain", None),
    )
    reasoning = next((tags for mark, tags in _REASONING if mark in template), None)
    hidden = ("<response>", "</response>") if reasoning and "<response>" in template else ()
    return AnswerFormat(name, calls, reasoning, hidden)
