"""A call of a tool that a model wrote."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Mistral's templates require ids of nine letters and digits; nobody else minds.
_ID_CHARACTERS = 9


def new_call_id() -> str:
    """An id that no other call of the conversation has."""
    return secrets.token_hex(_ID_CHARACTERS)[:_ID_CHARACTERS]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called; `arguments` is a JSON object, as text."""

    name: str
    arguments: str
    id: str = field(default_factory=new_call_id)

    def parsed(self) -> dict[str, Any]:
        """The arguments as a dict."""
        arguments: dict[str, Any] = json.loads(self.arguments)
        return arguments

    def message_part(self) -> dict[str, Any]:
        """The call as it stands in the assistant's message, in OpenAI's form."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


def tool_call(name: str, arguments: Mapping[str, Any]) -> ToolCall:
    """A call with these arguments.

    Raises:
        ValueError: arguments that JSON has not.
    """
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    return ToolCall(_whole_characters(name), _whole_characters(text))


def _whole_characters(text: str) -> str:
    """A text that can be written as UTF-8: an escape in JSON may be half a character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
