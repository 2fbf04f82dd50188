"""One message of a conversation, as chat templates read it: text, calls of tools, their results."""

import json
from typing import Any

from edgelm.errors import BadInput

Message = dict[str, Any]
Messages = tuple[Message, ...]
ROLES = ("system", "developer", "user", "assistant", "tool")
_EXAMPLE = '[{"role": "user", "content": "Why?"}]'
_CALL = '{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}'
# Fields that templates read besides role and content.
_TEXTS = ("name", "tool_call_id", "reasoning_content")


def read_messages(where: str, name: str, value: Any) -> Messages:
    """A list of messages; nothing that a template could render is left out.

    Args:
        where: file and line, for errors.
        name: of the field.
        value: as it was read.

    Raises:
        BadInput: it is not a list of messages.
    """
    if not isinstance(value, list) or not value:
        raise BadInput(
            f"{where}: `{name}` is {shown(value)}, expected a text or a list of messages such as "
            f"{_EXAMPLE}"
        )
    return tuple(_message(where, f"{name}[{i}]", message) for i, message in enumerate(value))


def read_tools(where: str, row: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The tools that a row offers to the assistant, as JSON schemas; also as a text of JSON.

    Raises:
        BadInput: not a list of JSON schemas; the message names the row.
    """
    value = row.get("tools")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = row["tools"]
    if value is None:
        return ()
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return tuple(value)
    raise BadInput(f"{where}: `tools` is {shown(row['tools'])}, expected a list of JSON schemas")


def has_tools(messages: Messages) -> bool:
    """Whether messages call tools or answer for them."""
    return any(one["role"] == "tool" or "tool_calls" in one for one in messages)


def not_empty(where: str, name: str, value: str) -> str:
    """A text with more than white space.

    Raises:
        BadInput: it is empty.
    """
    if not value.strip():
        raise BadInput(f"{where}: `{name}` is empty; remove the line or fill it in")
    return value


def shown(value: Any) -> str:
    """A value for an error, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _message(where: str, name: str, value: Any) -> Message:
    calls = (isinstance(value, dict) and value.get("tool_calls")) or None
    if not isinstance(value, dict) or "role" not in value or ("content" not in value and not calls):
        raise BadInput(f"{where}: `{name}` is {shown(value)}, expected `role` and `content`")
    role, content = value["role"], value.get("content")
    if role not in ROLES:
        raise BadInput(
            f"{where}: `{name}` has role {shown(role)}, expected one of {', '.join(ROLES)}"
        )
    if calls and role != "assistant":
        raise BadInput(
            f"{where}: `{name}` has tool_calls and role {shown(role)}, expected role assistant"
        )
    content = _text(where, name, "" if content is None and calls else content)
    if role == "assistant" and not calls:
        not_empty(where, name, content)
    message: Message = {"role": role, "content": content}
    if calls:
        message["tool_calls"] = _calls(where, name, calls)
    return message | _texts(where, name, value)


def _text(where: str, name: str, content: Any) -> str:
    """The text of a content, which may be a list of parts, as in OpenAI's API."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if _is_text(part)]
    if not parts or len(texts) < len(parts):
        raise BadInput(
            f"{where}: the content of `{name}` is {shown(content)}, expected a text or parts such "
            'as {"type": "text", "text": "Why?"}; images are not supported'
        )
    return "".join(texts)


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _texts(where: str, name: str, value: Message) -> Message:
    found = {field: value[field] for field in _TEXTS if value.get(field) is not None}
    for field, text in found.items():
        if not isinstance(text, str):
            raise BadInput(f"{where}: {field} of `{name}` is {shown(text)}, expected a text")
    return found


def _calls(where: str, name: str, value: Any) -> list[dict[str, Any]]:
    """Calls of tools; arguments that are a text of JSON, as in OpenAI's API, become an object."""
    calls = value if isinstance(value, list) else [value]
    found = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadInput(
                f"{where}: a tool call of `{name}` is {shown(call)}, expected e.g. {_CALL}"
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                arguments = function["arguments"]
        if not isinstance(arguments, dict):
            raise BadInput(
                f"{where}: the arguments of a tool call of `{name}` are {shown(arguments)}, "
                "expected a JSON object"
            )
        own = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        found.append(identity | own)
    return found
