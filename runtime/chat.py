"""Chat templates: a conversation to the text that a model was trained on.

Templates come with models and are programs: they run in jinja2's sandbox, without access to
anything but the conversation.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgelm.errors import BadBundle, BadInput

_ROLES = ("system", "user", "assistant", "tool")


class Message(TypedDict):
    """One turn: `role` is system, user, assistant or tool."""

    role: str
    content: str


class ChatTemplate:
    """A bundle's `chat_template.jinja`."""

    def __init__(self, path: Path, *, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
        environment.filters["tojson"] = _to_json
        self._special_tokens = special_tokens
        try:
            self._template = environment.from_string(path.read_text())
        except FileNotFoundError:
            raise BadInput(
                f"{path.parent} has no chat template: this model was not trained to chat; use "
                "generate or stream with a plain prompt"
            ) from None
        except jinja2.TemplateSyntaxError as error:
            raise BadBundle(f"{path}, line {error.lineno}: {error.message}") from None

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt that asks for the next assistant turn.

        Raises:
            BadInput: no message, an unknown role, or a conversation the template refuses.
        """
        if not messages:
            raise BadInput("the conversation is empty; expected at least one message")
        for message in messages:
            if message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
                raise BadInput(
                    f"bad message {message!r}; expected a role ({', '.join(_ROLES)}) and a "
                    "content string"
                )
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        except Exception as error:  # a template is a program: it can fail in any way
            raise BadInput(f"the chat template refuses this conversation: {error}") from None


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant said, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # jinja2's own filter escapes HTML, which models are not trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)
