"""Whether a bundle's chat template can be used: which conversations it renders, before any work.

Transformers may agree that a template rejects a conversation, but a bundle that cannot chat at all,
or only in one way, should not come as a surprise after the export.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from edgelm.bundle.files import TOKENIZER
from edgelm.checkpoint.source import Checkpoint
from edgelm.checkpoint.special_token_names import SPECIAL_TOKENS_FILE
from edgelm.errors import BadInput, GateFailed
from edgelm.runtime.generation.generation_config import GENERATION_CONFIG, read_generation_config
from edgelm.runtime.text.bundle_template import CHAT_TEMPLATE, special_texts
from edgelm.runtime.text.chat import ChatTemplate, Message
from edgelm.runtime.text.special_tokens import read_special_tokens
from edgelm.runtime.text.tokenizer import Tokenizer

_QUESTION = "Why is the sky blue?"
_USER = Message(role="user", content=_QUESTION)
_FUNCTION = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time of day.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@dataclass(frozen=True, eq=False)
class _Attempt:
    """A kind of conversation; `needs` names it where a template takes no other."""

    what: str
    messages: tuple[Message, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""


_PLAIN = _Attempt("a user's message", (_USER,))
_SYSTEM = _Attempt(
    "a system message and a user's",
    (Message(role="system", content="Be brief."), _USER),
    needs="a system message",
)
_TURNS = _Attempt(
    "several turns",
    (_USER, Message(role="assistant", content="Scattering."), _USER),
    needs="several turns",
)
_TOOLS = _Attempt("a message with tools", (_USER,), {"tools": [_FUNCTION]}, "tools")
_DOCUMENTS = _Attempt(
    "a message with documents",
    (_USER,),
    {"documents": [{"title": "Sky", "text": "Air scatters blue light."}]},
    "documents",
)
# What Qwen 3, Granite and gpt-oss call how much a model thinks before it answers.
_THINKING: dict[str, Any] = {
    "enable_thinking": False,
    "thinking": False,
    "reasoning_effort": "low",
}
_THOUGHT = _Attempt(
    "a message with " + ", ".join(_THINKING),
    (_USER,),
    _THINKING,
    "an argument for thinking (" + ", ".join(_THINKING) + ")",
)
_FOUR = _Attempt(
    "four messages, the first of them the system's",
    (*_SYSTEM.messages, *_TURNS.messages[1:]),
    needs="at least four messages",
)
_FIVE = _Attempt(
    "five messages",
    (*_TURNS.messages, *_TURNS.messages[1:]),
    needs="at least four messages",
)
_ALL = _Attempt(
    "a system message with tools, documents and these arguments",
    _SYSTEM.messages,
    {**_TOOLS.arguments, **_DOCUMENTS.arguments, **_THINKING},
    "a system message, tools, documents and an argument for thinking",
)
_ATTEMPTS = (_PLAIN, _SYSTEM, _TURNS, _TOOLS, _DOCUMENTS, _THOUGHT, _FOUR, _FIVE, _ALL)


def check_chat(checkpoint: Checkpoint, bundle: Path) -> list[str]:
    """Warnings about conversations that the chat template does not take.

    Args:
        checkpoint: the source.
        bundle: the folder of its bundle; without a chat template there is nothing to check.

    Raises:
        GateFailed: the template renders none of the usual conversations.
    """
    path = bundle / CHAT_TEMPLATE
    if not path.is_file():
        return []
    template = ChatTemplate(path, special_tokens=_special_tokens(bundle))
    found = {attempt: _rendered(template, attempt) for attempt in _ATTEMPTS}
    usable = [attempt for attempt in _ATTEMPTS if isinstance(found[attempt], str)]
    name = f"the chat template of {checkpoint.name}"
    if not usable:
        tried = ", ".join(attempt.what for attempt in _ATTEMPTS)
        raise GateFailed(
            f"{name} renders no conversation ({found[_PLAIN]}); tried: {tried}. Repair it, or "
            "remove it from the source to export a model that only continues texts (--gate off "
            "exports it anyway)"
        )
    return [f"{name} {problem}" for problem in _problems(found, usable)]


def _special_tokens(bundle: Path) -> dict[str, str]:
    config = read_generation_config(bundle / GENERATION_CONFIG)
    named = read_special_tokens(bundle / SPECIAL_TOKENS_FILE)
    return special_texts(named, config, Tokenizer(bundle / TOKENIZER))


class _Refusal(NamedTuple):
    reason: str

    def __str__(self) -> str:
        return self.reason


def _rendered(template: ChatTemplate, attempt: _Attempt) -> str | _Refusal:
    try:
        prompt = template.render(attempt.messages, **attempt.arguments)
    except BadInput as error:
        return _Refusal(str(error))
    return prompt if prompt.strip() else _Refusal("the prompt is empty")


def _problems(found: Mapping[_Attempt, str | _Refusal], usable: list[_Attempt]) -> list[str]:
    problems = []
    if _PLAIN not in usable:
        problems.append(f"needs {usable[0].needs} in every conversation: {found[_PLAIN]}")
    elif _SYSTEM not in usable:
        problems.append(f"takes no system message: {found[_SYSTEM]}")
    if _TURNS not in usable and _PLAIN in usable:
        problems.append(f"takes only one question: {found[_TURNS]}")
    question = _QUESTION.casefold()
    if not any(question in str(found[attempt]).casefold() for attempt in usable):
        problems.append("writes prompts without the user's message: the model does not see it")
    return problems
