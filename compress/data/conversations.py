"""Conversations in JSONL files: questions for a teacher, examples for alignment.

If the tokenizer has a chat template, a text is a conversation of one turn: `"prompt": "Why?"` means
`"prompt": [{"role": "user", "content": "Why?"}]`. Without a template, texts stay texts. Every error
is reported with file and line before any work starts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgelm.compress.data.jsonl import read_jsonl
from edgelm.compress.data.messages import Messages, has_tools, not_empty, read_messages, read_tools
from edgelm.errors import BadInput

_T = TypeVar("_T")
_Tools = tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its answer; `rejected` is the worse answer of a preference.

    All three are conversations or, without a chat template, texts. every_turn: the assistant's
    messages in `prompt` are training targets too. tools: that the assistant may call, as JSON
    schemas.
    """

    where: str
    prompt: Messages | str
    answer: Messages | str
    rejected: Messages | str | None = None
    every_turn: bool = False
    tools: _Tools = ()

    @property
    def has_tools(self) -> bool:
        """Whether tools are offered, called or answered for."""
        sides = (side for side in (self.prompt, self.answer) if not isinstance(side, str))
        return bool(self.tools) or any(map(has_tools, sides))


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation that ends before the answer."""

    where: str
    messages: Messages
    tools: _Tools = ()


def read_prompts(path: Path) -> list[ChatPrompt]:
    """Prompts of a JSONL file: a text or a conversation in `prompt`, or one in `messages`.

    Answers at the end of `messages` are removed, so that a data set of conversations can be used
    as questions.

    Raises:
        BadInput: the file cannot be read, is empty, or a line is of another form.
    """
    prompts = []
    for where, row in read_jsonl(path):
        name = _field(where, row, "prompt", "messages")
        messages = _conversation(where, name, row[name], role="user")
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise BadInput(f"{where}: `{name}` holds no question, only assistant messages")
        prompts.append(ChatPrompt(where, messages, read_tools(where, row)))
    return _not_empty(prompts, path)


def read_demonstrations(path: Path, *, chat: bool) -> list[Example]:
    """Examples of good answers: `messages` that end with the assistant's, or prompt and completion.

    Args:
        path: a JSONL file.
        chat: whether the tokenizer has a chat template.

    Raises:
        BadInput: the file cannot be read, is empty, or a line is of another form.
    """

    def read(where: str, row: dict[str, Any]) -> Example:
        tools = read_tools(where, row)
        if tools:
            _needs_template(where, chat)
        if _field(where, row, "messages", "prompt") == "prompt":
            _field(where, row, "completion")
            prompt, answer = _sides(where, row, ("prompt", "completion"), chat=chat)
            return Example(where, prompt, answer, tools=tools)
        messages = _conversation(where, "messages", row["messages"], role="user")
        _needs_template(where, chat)
        if messages[-1]["role"] != "assistant":
            raise BadInput(
                f"{where}: the last message is the {messages[-1]['role']}'s, expected the "
                "assistant's, which is the training target"
            )
        return Example(where, messages[:-1], messages[-1:], every_turn=True, tools=tools)

    return _examples(path, read)


def read_preferences(path: Path, *, chat: bool) -> list[Example]:
    """Prompts with a better and a worse answer: `prompt`, `chosen`, `rejected`.

    Raises:
        BadInput: the file cannot be read, is empty, or a line is of another form.
    """

    def read(where: str, row: dict[str, Any]) -> Example:
        names = ("prompt", "chosen", "rejected")
        for name in names:
            _field(where, row, name)
        prompt, chosen, rejected = _sides(where, row, names, chat=chat)
        example = Example(where, prompt, chosen, rejected)
        if read_tools(where, row) or example.has_tools:
            raise BadInput(
                f"{where}: preferences cannot hold tools or calls of them; use examples of good "
                "calls with SFT"
            )
        if example.answer == example.rejected:
            raise BadInput(f"{where}: `chosen` and `rejected` are equal; expected a preference")
        return example

    return _examples(path, read)


def _examples(path: Path, read: Callable[[str, dict[str, Any]], Example]) -> list[Example]:
    examples = _not_empty([read(where, row) for where, row in read_jsonl(path)], path)
    for example in examples:
        if isinstance(example.prompt, str) != isinstance(examples[0].prompt, str):
            raise BadInput(
                f"{example.where}: `prompt` is a {_kind(example.prompt)}, in {examples[0].where} "
                f"it is a {_kind(examples[0].prompt)}; use one form throughout"
            )
    return examples


def _sides(
    where: str, row: dict[str, Any], names: tuple[str, ...], *, chat: bool
) -> list[Messages | str]:
    values = [row[name] for name in names]
    if not chat and all(isinstance(value, str) for value in values):
        for name, value in zip(names, values, strict=True):
            not_empty(where, name, value)
        return values
    _needs_template(where, chat)
    sides: list[Messages | str] = []
    for name, value in zip(names, values, strict=True):
        role = "user" if name == "prompt" else "assistant"
        messages = _conversation(where, name, value, role=role)
        if role == "assistant" and messages[-1]["role"] != "assistant":
            raise BadInput(
                f"{where}: `{name}` ends with the {messages[-1]['role']}'s message, expected the "
                "assistant's"
            )
        sides.append(messages)
    return sides


def _needs_template(where: str, chat: bool) -> None:
    if not chat:
        raise BadInput(
            f"{where}: a conversation, but the tokenizer has no chat template to render it; use "
            "texts in `prompt` and the answer's field, or a tokenizer with a template"
        )


def _conversation(where: str, name: str, value: Any, *, role: str) -> Messages:
    if isinstance(value, str):
        return ({"role": role, "content": not_empty(where, name, value)},)
    return read_messages(where, name, value)


def _field(where: str, row: dict[str, Any], *names: str) -> str:
    for name in names:
        if name in row:
            return name
    expected = " or ".join(f"`{name}`" for name in names)
    raise BadInput(f"{where}: no field {expected}, found {', '.join(row)[:200] or 'none'}")


def _not_empty(items: list[_T], path: Path) -> list[_T]:
    if not items:
        raise BadInput(f"{path} holds no examples; expected one JSON object per line")
    return items


def _kind(value: Messages | str) -> str:
    return "text" if isinstance(value, str) else "conversation"
