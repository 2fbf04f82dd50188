"""What a request to /v1/responses says, as messages and options of chat completions."""

from typing import Any

from edgelm.runtime.server.errors import ApiError
from edgelm.runtime.server.requests import ResponsesRequest

_TEXTS = ("input_text", "output_text", "text", "refusal")
_THOUGHTS = ("reasoning_text", "text")
_LOGPROBS = "message.output_text.logprobs"


def messages_of(body: ResponsesRequest) -> list[Any]:
    """The conversation: instructions, and the input's items.

    Raises:
        ApiError: items or parts of a type that is not supported.
    """
    messages: list[Any] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    thoughts = ""
    for item in body.input:
        if item.get("type") == "reasoning":  # of the assistant's message that follows
            thoughts = _text(item.get("content") or [], _THOUGHTS)
            continue
        message = _message(item)
        if thoughts and message["role"] == "assistant":
            message["reasoning_content"], thoughts = thoughts, ""
        last = messages[-1] if messages else {}
        if "tool_calls" in message and last.get("role") == "assistant":
            last.setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message)
    return messages


def _message(item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {
            "role": "tool",
            "tool_call_id": item.get("call_id"),
            "content": _text(item.get("output"), _TEXTS),
        }
    if kind != "message":
        raise ApiError(400, f"input items of type {kind!r} are not supported", param="input")
    return {"role": item.get("role"), "content": _text(item.get("content"), _TEXTS)}


def _text(content: Any, kinds: tuple[str, ...]) -> Any:
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, dict) and part.get("type") in kinds]
    named = [part.get("refusal" if part["type"] == "refusal" else "text") for part in parts]
    texts = [text for text in named if isinstance(text, str)]
    if len(texts) < len(content):
        raise ApiError(
            400, f"content parts must have a type ({', '.join(kinds)}) and a text", param="input"
        )
    return "".join(texts)


def tools_of(body: ResponsesRequest) -> list[dict[str, Any]] | None:
    """Tools as chat completions have them: the function's fields are flat here, nested there."""
    if body.tools is None:
        return None
    if others := [tool.get("type") for tool in body.tools if tool.get("type") != "function"]:
        raise ApiError(400, f"tools of type {others[0]!r} are not supported", param="tools")
    return [
        {"type": "function", "function": {key: one[key] for key in one if key != "type"}}
        for one in body.tools
    ]


def tool_choice_of(body: ResponsesRequest) -> str | dict[str, Any] | None:
    """The choice of a function, whose name is flat here, too."""
    given = body.tool_choice
    if isinstance(given, dict) and "name" in given:
        return {"type": "function", "function": {"name": given["name"]}}
    return given


def response_format_of(body: ResponsesRequest) -> dict[str, Any] | None:
    """The format of the text; None where it is free."""
    given = body.text.format if body.text is not None else None
    if given is None or given.get("type") == "text":
        return None
    if given.get("type") == "json_schema":  # flat here, nested in chat completions
        inner = {key: value for key, value in given.items() if key != "type"}
        return {"type": "json_schema", "json_schema": inner}
    return given


def logprobs_of(body: ResponsesRequest) -> int | None:
    """How many alternatives of each token the answer holds; None for no log-probabilities."""
    if _LOGPROBS in (body.include or ()) or body.top_logprobs:
        return body.top_logprobs or 0
    return None
