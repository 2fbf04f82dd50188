"""Chat templates: a conversation to the text that a model was trained on.

Templates come with models and are programs: they run in a sandbox, without access to anything but
the conversation, and within a budget of steps, time and memory.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from edgelm.errors import BadBundle, BadInput
from edgelm.files.bounded_read import read_bounded
from edgelm.reasons import reason
from edgelm.runtime.text.answers.formats import answer_format
from edgelm.runtime.text.answers.tool_turns import (
    with_instructions,
    with_tool_responses,
    with_written_calls,
)
from edgelm.runtime.text.messages import Message, check_messages, normalized, plain
from edgelm.runtime.text.template_budget import Budget, OutOfBudget, bytes_of, current
from edgelm.runtime.text.template_sandbox import TemplateSandbox

_NO_SYSTEM = "System role not supported"  # Gemma 2's words
_MAX_TEMPLATE_BYTES = 128 * 2**10  # the longest published ones have some 30 KB


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
            raise BadBundle(
                f"{path}, line {error.lineno}: {reason(error)}; export the model again"
            ) from None
        except Exception as error:  # nesting, numbers, encoding: compilers fail in many ways
            raise BadBundle(
                f"{path} is not a chat template: {reason(error)}; export the model again"
            ) from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **arguments: Any,
    ) -> str:
        """Return the prompt that asks for the next assistant turn.

        Args:
            messages: the conversation.
            tools: functions that the model may call, as OpenAI's API has them.
            documents: what it may quote from, with `title` and `text`.
            arguments: what else the template reads, such as `enable_thinking`.

        Raises:
            BadInput: no message, an unknown role, a conversation that the template rejects, or a
                template that does not end within its budget.
        """
        turns = [self._with_known_role(message) for message in normalized(messages)]
        if tools and not self.takes_tools:
            system = "system" in self.source and _NO_SYSTEM not in self.source
            turns, tools = with_instructions(turns, tools, system=system), None
        elif "tool_responses" in self.source:
            turns = with_tool_responses(turns)
        elif "tool_calls" not in self.source:
            turns = with_written_calls(turns, answer_format(self.source).calls.tags[0])
        given = {
            **plain(arguments),
            "messages": turns,
            "tools": plain(tools) or None,
            "documents": plain(documents),
        }
        try:
            return self._render(given)
        except OutOfBudget as error:
            raise BadInput(
                f"the chat template exceeds its limits: {error}; use a bundle from a source "
                "that you trust, or a shorter conversation"
            ) from None
        except Exception as error:  # a template is a program: it can fail in any way
            if (other := _with_text_arguments(turns)) != turns:
                # Some templates join the arguments of a call with texts.
                with contextlib.suppress(Exception):
                    return self._render({**given, "messages": other})
            raise BadInput(
                f"the chat template rejects this conversation: {reason(error)}"
            ) from None

    @property
    def takes_tools(self) -> bool:
        """Whether it tells the model of tools."""
        return "tools" in self.source

    def _render(self, given: Mapping[str, Any]) -> str:
        token = current.set(Budget(bytes_of(given)))
        try:
            return self._template.render(
                {**self._special_tokens, **given, "add_generation_prompt": True}
            )
        finally:
            current.reset(token)

    def _with_known_role(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] == "developer" and "developer" not in self.source:
            return {**message, "role": "system"}
        return message


def _with_text_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    result = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": _json(call["function"])}}
            for call in message.get("tool_calls", [])
        ]
        result.append({**message, "tool_calls": calls} if calls else message)
    return result


def _json(function: Mapping[str, Any]) -> str:
    return json.dumps(function["arguments"], ensure_ascii=False)


__all__ = ["ChatTemplate", "Message", "check_messages"]
