"""How each family of models writes reasoning and calls of tools, chosen from the chat template.

A template shows the model the tags that it was trained to write, so it is recognized by them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.runtime.text.answers.calls.gemma_calls import read_gemma_calls
from edgelm.runtime.text.answers.calls.harmony_calls import read_harmony_call
from edgelm.runtime.text.answers.calls.json_calls import read_json_calls, read_named_calls
from edgelm.runtime.text.answers.calls.python_calls import read_python_calls
from edgelm.runtime.text.answers.calls.tagged_calls import read_function_tags, read_key_value_tags
from edgelm.runtime.text.answers.calls.tool_call import ToolCall

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
    """The parts of a family's answers.

    `hidden` are tags that only separate. Text that must be generated under a constraint follows
    `after_reasoning` (where there was any) and, unless it calls tools, `before_content`.
    """

    name: str
    calls: CallSyntax
    reasoning: Tags | None = None
    hidden: tuple[str, ...] = ()
    after_reasoning: str = ""
    before_content: str = ""

    def shows(self, control_token: str) -> bool:
        """Whether a control token is of interest: part of a tag, or of what stands in a call."""
        pairs = [*self.calls.tags, *([] if self.reasoning is None else [self.reasoning])]
        tags = [*self.hidden, *_INNER, *(tag for pair in pairs for tag in (pair.begin, pair.end))]
        return any(control_token in tag for tag in tags)


# Control tokens within calls.
_INNER = ('<|"|>', "<escape>", "[ARGS]", "[CALL_ID]", "<|constrain|>")


def _plain(read: Callable[[str], list[ToolCall]]) -> Reader:
    return lambda body, _: read(body)


_JSON = _plain(read_json_calls)
_NAMED = _plain(read_named_calls)
_PYTHON = _plain(read_python_calls)
_GEMMA = _plain(read_gemma_calls)
_CODER = ("<tool_call>", "<function=")
_LFM2 = "<|tool_call_start|>", "<|tool_call_end|>"

# Family, what its template holds, tags of a call, what stands between them; the first match counts.
_CALLS: list[tuple[str, tuple[str, ...], tuple[str, str], Reader]] = [
    ("gemma4", ("<|tool_call>",), ("<|tool_call>", "<tool_call|>"), _GEMMA),
    (
        "functiongemma",
        ("<start_function_call>",),
        ("<start_function_call>", "<end_function_call>"),
        _GEMMA,
    ),
    ("mistral-args", ("[TOOL_CALLS]", "[ARGS]"), ("[TOOL_CALLS]", ""), _NAMED),
    ("mistral", ("[TOOL_CALLS]",), ("[TOOL_CALLS]", ""), _NAMED),
    ("lfm2", ("<|tool_call_start|>",), _LFM2, _PYTHON),
    ("lfm2", ("<|tool_list_start|>",), _LFM2, _PYTHON),
    ("phi4", ("<|tool_call|>", "<|/tool_call|>"), ("<|tool_call|>", "<|/tool_call|>"), _JSON),
    ("granite", ("<|tool_call|>",), ("<|tool_call|>", ""), _JSON),
    ("nemotron", ("<TOOLCALL>",), ("<TOOLCALL>", "</TOOLCALL>"), _JSON),
    ("olmo3", ("<function_calls>",), ("<function_calls>", "</function_calls>"), _PYTHON),
    ("qwen3-coder", _CODER, ("<tool_call>", "</tool_call>"), read_function_tags),
    ("glm", ("<tool_call>", "<arg_key>"), ("<tool_call>", "</tool_call>"), read_key_value_tags),
    ("hermes", ("<tool_call>",), ("<tool_call>", "</tool_call>"), _JSON),
    ("llama3", ("<|python_tag|>",), ("<|python_tag|>", ""), _JSON),
    ("llama3", ('"parameters"', "ipython"), ("<|python_tag|>", ""), _JSON),
    # A template without tools: the system message asks for calls in Hermes' format.
    ("plain", (), ("<tool_call>", "</tool_call>"), _JSON),
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
    after_reasoning="<|start|>assistant",
    before_content="<|channel|>final<|message|>",
)


def answer_format(template: str) -> AnswerFormat:
    """The format of the family that a chat template belongs to."""
    if "<|channel|>" in template and "<|message|>" in template:
        return _HARMONY
    name, _, (begin, end), read = next(
        row for row in _CALLS if all(mark in template for mark in row[1])
    )
    calls = CallSyntax((Tags(begin, end),), read, bare=name == "llama3")
    reasoning = next((tags for mark, tags in _REASONING if mark in template), None)
    hidden = ("<response>", "</response>") if reasoning and "<response>" in template else ()
    return AnswerFormat(name, calls, reasoning, hidden)
