"""Messages as OpenAI's API has them, checked and made into what chat templates expect."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from edgelm.errors import BadInput
from edgelm.reasons import reason
from edgelm.runtime.text.tokenizer import check_text

_ROLES = ("system", "developer", "user", "assistant", "tool")
# Names of a message's reasoning; templates read the first two.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_MAX_DEPTH = 100  # of lists and dicts in a message


class _Turn(TypedDict):
    role: str
    content: Any


class Message(_Turn, total=False):
    """One message: `role` is system, developer, user, assistant or tool.

    `content` is a text, a list of parts such as `{"type": "text", "text": ...}`, or None in a
    message that only calls tools or has a `refusal`, which is then its text. A developer's message
    is a system message to templates that do not know the role. A tool's message is the result of
    the call with `tool_call_id`.
    """

    name: str
    reasoning_content: str | None
    refusal: str | None
    tool_calls: Sequence[Mapping[str, Any]]
    tool_call_id: str


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
        for text in _texts(_content(message)):
            check_text(text)


def normalized(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copies in the form that templates read.

    Content is a text, reasoning has both of its names, arguments of calls are dicts, and results of
    tools have the function's name.

    Raises:
        BadInput: not a conversation, or one with parts that are not text.
    """
    check_messages(messages)
    names: dict[Any, str] = {}
    result = []
    for given in messages:
        message = _with_reasoning(plain(given))
        message["content"] = "".join(_texts(_content(message)))
        message.pop("refusal", None)
        if message.get("tool_calls"):
            message["tool_calls"] = [_with_dict_arguments(call) for call in message["tool_calls"]]
            names |= {call.get("id"): call["function"]["name"] for call in message["tool_calls"]}
        else:
            message.pop("tool_calls", None)  # templates ask whether it is there
        if message["role"] == "tool" and "name" not in message:
            name = names.get(message.get("tool_call_id"))
            message |= {} if name is None else {"name": name}
        result.append(message)
    return result


def plain(value: Any, depth: int = 0) -> Any:
    """A copy of plain values: what else a caller puts in may have methods that act.

    Raises:
        BadInput: other values, or nesting that is too deep.
    """
    if depth > _MAX_DEPTH:
        raise BadInput(f"the conversation has lists and dicts nested deeper than {_MAX_DEPTH}")
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, Mapping):
        return {plain(key, depth + 1): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    raise BadInput(
        f"the conversation holds a {type(value).__name__}; expected texts, numbers, lists and dicts"
    )


def _content(message: Mapping[str, Any]) -> Any:
    """The content, or the refusal that an assistant's message has in its place."""
    content, refusal = message.get("content"), message.get("refusal")
    if content is None and message.get("role") == "assistant" and isinstance(refusal, str):
        return refusal
    return content


def _is_turn(message: Mapping[str, Any]) -> bool:
    content = _content(message)
    # A message that calls a tool may have no content.
    silent = content is None and message.get("role") == "assistant" and message.get("tool_calls")
    written = isinstance(content, str) or (isinstance(content, (list, tuple)) and bool(content))
    return message.get("role") in _ROLES and (written or bool(silent))


def _texts(content: Any) -> Iterable[str]:
    if content is None:
        return []
    return [content] if isinstance(content, str) else [_part_text(part) for part in content]


def _part_text(part: Any) -> str:
    if isinstance(part, Mapping):
        for name in ("text", "refusal"):
            if isinstance(part.get(name), str):
                return str(part[name])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise BadInput(
        f"a message has a part of type {str(kind)[:40]!r}; this model reads only text: expected "
        '{"type": "text", "text": ...}'
    )


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return {key: value for key, value in message.items() if key not in _REASONING}
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _with_dict_arguments(call: Any) -> dict[str, Any]:
    call = _with_function(call)
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadInput(
            f"a message has the tool call {str(call)[:100]}; expected "
            '{"id": ..., "type": "function", "function": {"name": ..., "arguments": "{...}"}}'
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str) or arguments is None:
        arguments = _parsed(function["name"], arguments or "{}")
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _with_function(call: Any) -> Any:
    """A call in OpenAI's form, if it is in the flat one: name and arguments without `function`.

    The flat fields stay: templates that are made for them read them, as transformers lets them.
    """
    if not isinstance(call, dict) or "function" in call or "arguments" not in call:
        return call
    name, arguments = call.get("name", ""), call["arguments"]
    if isinstance(arguments, str):
        arguments = _parsed(str(name), arguments)
    return {**call, "arguments": arguments, "function": {"name": name, "arguments": arguments}}


def _parsed(name: str, arguments: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"the arguments of the call of {name} are not JSON: {reason(error)}"
        ) from None
    if not isinstance(value, dict):
        raise BadInput(f"the arguments of the call of {name} are not a JSON object")
    return value


def are_messages(prompt: object) -> bool:
    """Whether a prompt is a list of messages, not a text or tokens."""
    return isinstance(prompt, Iterable) and any(isinstance(one, Mapping) for one in prompt)
