"""POST /v1/responses. Nothing is stored: every request holds the whole conversation."""

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgelm.errors import EdgeLMError
from edgelm.runtime.generation.reply import Reply
from edgelm.runtime.generation.stream import Stream
from edgelm.runtime.server.context import ServerContext, json_response, new_id, now
from edgelm.runtime.server.endpoints.events import EventStream, event
from edgelm.runtime.server.endpoints.fields import options_of
from edgelm.runtime.server.endpoints.generations import Generation, unless_disconnected
from edgelm.runtime.server.errors import ApiError, as_api_error
from edgelm.runtime.server.request_log import log_reply
from edgelm.runtime.server.requests import ResponsesRequest

_TEXTS = ("input_text", "output_text", "text")


async def responses(request: Request, body: ResponsesRequest, context: ServerContext) -> Response:
    """Answer a conversation, whole or as events."""
    stored = (body.previous_response_id, body.conversation, body.prompt)
    if body.background or any(one is not None for one in stored):
        raise ApiError(
            400,
            "this server stores neither responses nor prompts: send the whole conversation as "
            "`input`",
        )
    messages = _messages(body)
    options = options_of(
        body,
        context.settings,
        adapter=context.adapter(body.model),
        max_tokens=body.max_output_tokens,
        response_format=_response_format(body),
        tools=_tools(body),
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
    )

    def prepare() -> Stream:
        return context.lm.answer(messages, {}, options)

    generation = await unless_disconnected(request, context.generations.start(prepare))
    base = _Response(body)
    if body.stream:
        return EventStream(_events(request, generation, base), [generation])
    try:
        reply = await unless_disconnected(request, generation.read())
    finally:
        generation.close()
    log_reply(request, reply)
    return json_response(base.completed(reply))


def _messages(body: ResponsesRequest) -> list[Any]:
    messages: list[Any] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for item in body.input:
        message = _message(item)
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
            "content": _text(item.get("output")),
        }
    if kind != "message":
        raise ApiError(400, f"input items of type {kind!r} are not supported", param="input")
    return {"role": item.get("role"), "content": _text(item.get("content"))}


def _text(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, dict)]
    if len(parts) < len(content) or any(part.get("type") not in _TEXTS for part in parts):
        raise ApiError(400, f"content parts must be one of {', '.join(_TEXTS)}", param="input")
    return "".join(str(part.get("text", "")) for part in parts)


def _tools(body: ResponsesRequest) -> list[dict[str, Any]] | None:
    """Tools as chat completions have them: the function's fields are flat here, nested there."""
    if body.tools is None:
        return None
    if others := [tool.get("type") for tool in body.tools if tool.get("type") != "function"]:
        raise ApiError(400, f"tools of type {others[0]!r} are not supported", param="tools")
    return [
        {"type": "function", "function": {key: one[key] for key in one if key != "type"}}
        for one in body.tools
    ]


def _tool_choice(body: ResponsesRequest) -> str | dict[str, Any] | None:
    given = body.tool_choice
    if isinstance(given, dict) and "name" in given:
        return {"type": "function", "function": {"name": given["name"]}}
    return given


def _response_format(body: ResponsesRequest) -> dict[str, Any] | None:
    given = body.text.format if body.text is not None else None
    if given is None or given.get("type") == "text":
        return None
    if given.get("type") == "json_schema":  # flat here, nested in chat completions
        inner = {key: value for key, value in given.items() if key != "type"}
        return {"type": "json_schema", "json_schema": inner}
    return given


class _Response:
    """The response object in its states."""

    def __init__(self, body: ResponsesRequest) -> None:
        self._base: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": now(),
            "model": body.model,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "metadata": {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "store": False,
        }
        self._item_id = new_id("msg")

    def in_progress(self) -> dict[str, Any]:
        return {**self._base, "status": "in_progress", "output": [], "usage": None}

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def item(self, status: str, *parts: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": list(parts),
        }

    def output(self, reply: Reply, status: str) -> list[dict[str, Any]]:
        """The message, unless there are only calls, and the calls."""
        calls = [
            {
                "id": f"fc-{call.id}",
                "type": "function_call",
                "status": "completed",
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
            }
            for call in reply.tool_calls
        ]
        if not reply.text and calls:
            return calls
        return [self.item(status, self.part(reply.text)), *calls]

    def place(self) -> dict[str, Any]:
        """Where a text belongs."""
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def completed(self, reply: Reply) -> dict[str, Any]:
        cut = reply.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        usage = reply.usage
        return {
            **self._base,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self.output(reply, status),
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
            },
        }


async def _events(
    request: Request, generation: Generation, response: _Response
) -> AsyncIterator[bytes]:
    number = 0

    def made(kind: str, **data: Any) -> bytes:
        nonlocal number
        number += 1
        return event({"type": kind, "sequence_number": number - 1, **data}, kind)

    place = response.place()
    yield made("response.created", response=response.in_progress())
    yield made("response.in_progress", response=response.in_progress())
    begun = False
    try:
        async for chunk in generation:
            if chunk.text and not begun:
                begun = True
                item = response.item("in_progress")
                yield made("response.output_item.added", output_index=0, item=item)
                yield made("response.content_part.added", **place, part=response.part(""))
            if chunk.text:
                delta = {"delta": chunk.text, "logprobs": []}
                yield made("response.output_text.delta", **place, **delta)
    except EdgeLMError as error:
        inner = as_api_error(error).body()["error"]
        yield made("error", message=inner["message"], code=inner["code"], param=inner["param"])
        return
    reply = generation.reply
    log_reply(request, reply)
    whole = response.completed(reply)
    if begun:
        part = response.part(reply.text)
        yield made("response.output_text.done", **place, text=reply.text, logprobs=[])
        yield made("response.content_part.done", **place, part=part)
    for index, item in enumerate(whole["output"]):
        if item["type"] == "function_call":
            yield made("response.output_item.added", output_index=index, item=item)
            arguments = {"item_id": item["id"], "arguments": item["arguments"]}
            yield made(
                "response.function_call_arguments.done",
                output_index=index,
                name=item["name"],
                **arguments,
            )
        if begun or item["type"] == "function_call":
            yield made("response.output_item.done", output_index=index, item=item)
    end = "response.completed" if whole["status"] == "completed" else "response.incomplete"
    yield made(end, response=whole)
