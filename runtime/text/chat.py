"""Chat templates: a conversation to the text that a model was trained on.

Templates come with models and are programs: they run in a sandbox, without access to anything but
the conversation, and within a budget of steps, time and memory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jinja2

from edgelm.errors import BadBundle, BadInput
from edgelm.files.bounded_read import read_bounded
from edgelm.reasons import reason
from edgelm.runtime.text.template_budget import Budget, OutOfBudget, bytes_of, current
from edgelm.runtime.text.template_sandbox import TemplateSandbox
from edgelm.runtime.text.tokenizer import check_text

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MAX_TEMPLATE_BYTES = 128 * 2**10  # the longest published ones have some 30 KB
_MAX_DEPTH = 100  # of lists and dicts in a message
# Names of a message's reasoning; templates read the first two.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Message(TypedDict):
    """One message: `role` is system, developer, user, assistant or tool.

    A developer's message is a system message to templates that do not know the role.
    """

    role: str
    content: str


class ChatTemplate:
    """A bundle's `chat_template.jinja`.

    Args:
        path: the file.
        special_tokens: `bos_token` and the like: name to text.

    Raises:
        BadInput: there is none.
        BadBundle: one that cannot be compiled.
    """

    def __init__(self, path: Path, *, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        try:
            self.source = read_bounded(path, at_most=_MAX_TEMPLATE_BYTES).decode()
            self._template = TemplateSandbox().from_string(self.source)
        except FileNotFoundError:
            raise BadInput(
                f"{path.parent} has no chat template: this model was not trained to chat; use "
                "generate or stream with a plain prompt"
            ) from None
        except BadBundle:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise BadBundle(f"{path}, line {error.lineno}: {reason(error)}") from None
        except Exception as error:  # nesting, numbers, encoding: compilers fail in many ways
            raise BadBundle(f"{path} is not a chat template: {reason(error)}") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the prompt that asks for the next assistant turn.

        Args:
            messages: the conversation.
            tools: JSON schemas of functions that the model may call.
            documents: what it may quote from, with `title` and `text`.

        Raises:
            BadInput: no message, an unknown role, a conversation that the template rejects, or a
                template that does not end within its budget.
        """
        check_messages(messages)
        given = {
            "messages": [
                self._with_known_role(_with_reasoning(_plain(message))) for message in messages
            ],
            "tools": _plain(tools),
            "documents": _plain(documents),
        }
        token = current.set(Budget(bytes_of(given)))
        try:
            return self._template.render(
                **{**self._special_tokens, **given}, add_generation_prompt=True
            )
        except OutOfBudget as error:
            raise BadInput(
                f"the chat template does too much: {error}; use a bundle from a source "
                "that you trust, or a shorter conversation"
            ) from None
        except Exception as error:  # a template is a program: it can fail in any way
            raise BadInput(
                f"the chat template rejects this conversation: {reason(error)}"
            ) from None
        finally:
            current.reset(token)

    def _with_known_role(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] == "developer" and "developer" not in self.source:
            return {**message, "role": "system"}
        return message


def check_messages(messages: Sequence[Message]) -> None:
    """Raise BadInput for what is not a conversation."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise BadInput(
            f"the conversation is a {type(messages).__name__}, expected a list of messages such as "
            '{"role": "user", "content": "Why is the sky blue?"}'
        )
    if not messages:
        raise BadInput("the conversation is empty; expected at least one message")
    for message in messages:
        if not isinstance(message, Mapping) or not _is_turn(message):
            raise BadInput(
                f"bad message {str(message)[:200]}; expected a role ({', '.join(_ROLES)}) and a "
                "content string"
            )
        if isinstance(message.get("content"), str):
            check_text(message["content"])


def _is_turn(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    # A message that calls a tool may have no content.
    silent = content is None and message.get("role") == "assistant" and message.get("tool_calls")
    return message.get("role") in _ROLES and (isinstance(content, str) or bool(silent))


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy of plain values: what else a caller puts in may have methods that act."""
    if depth > _MAX_DEPTH:
        raise BadInput(f"the conversation has lists and dicts nested deeper than {_MAX_DEPTH}")
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, Mapping):
        return {_plain(key, depth + 1): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    raise BadInput(
        f"the conversation holds a {type(value).__name__}; expected texts, numbers, lists and dicts"
    )


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}
