"""What /v1/responses answers: the response object in its states, and its events."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from starlette.requests import Request

from edgelm.errors import EdgeLMError
from edgelm.runtime.generation.chunk import Chunk
from edgelm.runtime.generation.reply import Reply
from edgelm.runtime.server.context import new_id, now
from edgelm.runtime.server.endpoints.events import event
from edgelm.runtime.server.endpoints.generations import Generation
from edgelm.runtime.server.endpoints.logprobs import token_logprobs
from edgelm.runtime.server.errors import as_api_error
from edgelm.runtime.server.request_log import log_reply
from edgelm.runtime.server.requests import ResponsesRequest
from edgelm.runtime.text.token_bytes import TokenBytes

TextKind = Literal["reasoning", "message"]


class ResponseObject:
    """The response object in its states.

    Its output is the reasoning, if there is any, and the message, unless there are only calls, in
    the order in which they began; then the calls of tools.
    """

    def __init__(self, body: ResponsesRequest, token_bytes: TokenBytes) -> None:
        self._base: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": now(),
            "model": body.model,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "store": False,
        }
        self._token_bytes = token_bytes
        self.message_id, self.reasoning_id = new_id("msg"), new_id("rs")

    def in_progress(self) -> dict[str, Any]:
        """The response before its first token."""
        return {**self._base, "status": "in_progress", "output": [], "usage": None}

    def part(self, text: str, chunks: Sequence[Chunk] = ()) -> dict[str, Any]:
        """A message's text, with the log-probabilities of the tokens that it was made of."""
        logprobs = self.logprobs(chunks)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def logprobs(self, chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
        """Those of a message's tokens; empty if they were not requested."""
        return token_logprobs(
            (one for one in chunks if not (one.reasoning or one.tool_calls)), self._token_bytes
        )

    def message(self, status: str, *parts: dict[str, Any]) -> dict[str, Any]:
        """The item of the answer's text."""
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": list(parts),
        }

    def thoughts(self, text: str) -> dict[str, Any]:
        """The text of the reasoning."""
        return {"type": "reasoning_text", "text": text}

    def reasoning(self, status: str, text: str | None = None) -> dict[str, Any]:
        """The item of the reasoning."""
        content = [] if text is None else [self.thoughts(text)]
        return {
            "id": self.reasoning_id,
            "type": "reasoning",
            "status": status,
            "summary": [],
            "content": content,
        }

    def completed(self, reply: Reply) -> dict[str, Any]:
        """The response at its end."""
        cut = reply.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        usage = reply.usage
        return {
            **self._base,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._output(reply, status),
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
                "total_tokens": usage.total_tokens,
            },
        }

    def _output(self, reply: Reply, status: str) -> list[dict[str, Any]]:
        begun = dict.fromkeys(kind for chunk in reply.chunks for kind in texts_of(chunk))
        if not reply.tool_calls:
            begun.setdefault("message")
        items = [
            self.reasoning(status, reply.reasoning)
            if kind == "reasoning"
            else self.message(status, self.part(reply.text, reply.chunks))
            for kind in begun
        ]
        items += [
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
        return items


def texts_of(chunk: Chunk) -> dict[TextKind, str]:
    """What a chunk adds to the items that are made of text."""
    texts: dict[TextKind, str] = {"reasoning": chunk.reasoning, "message": chunk.text}
    return {kind: text for kind, text in texts.items() if text}


async def response_events(
    request: Request, generation: Generation, response: ResponseObject
) -> AsyncIterator[bytes]:
    """The events of a response, as they happen."""
    events = _Events(response)
    yield events.made("response.created", response=response.in_progress())
    yield events.made("response.in_progress", response=response.in_progress())
    try:
        async for chunk in generation:
            for one in events.of(chunk):
                yield one
    except EdgeLMError as error:
        inner = as_api_error(error).body()["error"]
        fields = {key: inner[key] for key in ("message", "code", "param")}
        yield events.made("error", **fields)
        return
    reply = generation.reply
    log_reply(request, reply)
    for one in events.end(response.completed(reply)):
        yield one


class _Events:
    """Numbers the events, and begins each item with the first text of it."""

    def __init__(self, response: ResponseObject) -> None:
        self._response = response
        self._number = 0
        self._begun: list[str] = []  # ids of items, in the order of the output
        self._silent: list[Chunk] = []  # whose text comes with a later one

    def made(self, kind: str, **data: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **data}, kind)

    def of(self, chunk: Chunk) -> list[bytes]:
        self._silent.append(chunk)
        return [one for kind, text in texts_of(chunk).items() for one in self._delta(kind, text)]

    def end(self, whole: dict[str, Any]) -> list[bytes]:
        """What follows the last token: the end of each item, the calls, and the response."""
        events = []
        for item in whole["output"]:
            events += self._call(item) if item["type"] == "function_call" else self._done(item)
            index = self._begun.index(item["id"])
            events.append(self.made("response.output_item.done", output_index=index, item=item))
        ended = "completed" if whole["status"] == "completed" else "incomplete"
        return [*events, self.made(f"response.{ended}", response=whole)]

    def _delta(self, kind: TextKind, text: str) -> list[bytes]:
        response = self._response
        if kind == "reasoning":
            events, place = self._text_item(response.reasoning("in_progress"))
            events.append(self.made("response.reasoning_text.delta", **place, delta=text))
        else:
            events, place = self._text_item(response.message("in_progress"))
            logprobs, self._silent = response.logprobs(self._silent), []
            delta = {"delta": text, "logprobs": logprobs}
            events.append(self.made("response.output_text.delta", **place, **delta))
        return events

    def _done(self, item: dict[str, Any]) -> list[bytes]:
        """The end of an item's text, which may have been empty."""
        events, place = self._text_item({**item, "status": "in_progress", "content": []})
        (part,) = item["content"]
        if item["type"] == "reasoning":
            events.append(self.made("response.reasoning_text.done", **place, text=part["text"]))
        else:
            texts = {"text": part["text"], "logprobs": part["logprobs"]}
            events.append(self.made("response.output_text.done", **place, **texts))
        return [*events, self.made("response.content_part.done", **place, part=part)]

    def _call(self, item: dict[str, Any]) -> list[bytes]:
        events = self._begin({**item, "status": "in_progress", "arguments": ""})
        place = {"item_id": item["id"], "output_index": self._begun.index(item["id"])}
        call = {"name": item["name"], "arguments": item["arguments"]}
        kind = "response.function_call_arguments"
        events.append(self.made(f"{kind}.delta", **place, delta=item["arguments"]))
        return [*events, self.made(f"{kind}.done", **place, **call)]

    def _text_item(self, item: dict[str, Any]) -> tuple[list[bytes], dict[str, Any]]:
        """The events that begin an item of text, if it is new, and where its text belongs."""
        new = item["id"] not in self._begun
        events = self._begin(item) if new else []
        index = self._begun.index(item["id"])
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        if new:
            response = self._response
            part = response.thoughts("") if item["type"] == "reasoning" else response.part("")
            events.append(self.made("response.content_part.added", **place, part=part))
        return events, place

    def _begin(self, item: dict[str, Any]) -> list[bytes]:
        self._begun.append(item["id"])
        index = len(self._begun) - 1
        return [self.made("response.output_item.added", output_index=index, item=item)]
