"""POST /v1/chat/completions."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgelm.errors import EdgeLMError
from edgelm.runtime.generation.chunk import Chunk, FinishReason
from edgelm.runtime.generation.options import Options
from edgelm.runtime.generation.reply import Reply, Usage
from edgelm.runtime.generation.stream import Stream
from edgelm.runtime.server.context import ServerContext, json_response, new_id, now
from edgelm.runtime.server.endpoints.events import DONE, EventStream, event
from edgelm.runtime.server.endpoints.fields import for_choice, options_of, reasoning_options
from edgelm.runtime.server.endpoints.generations import (
    Generation,
    Place,
    all_or_none,
    unless_disconnected,
)
from edgelm.runtime.server.endpoints.logprobs import chat_logprobs
from edgelm.runtime.server.errors import ApiError, as_api_error
from edgelm.runtime.server.request_log import log_fields, log_reply
from edgelm.runtime.server.requests import ChatRequest


async def chat_completions(request: Request, body: ChatRequest, context: ServerContext) -> Response:
    """Answer a conversation, whole or as events."""
    options = _options(body, context)
    place = context.generations.place()
    starts = [_starter(body, for_choice(options, n), context, place) for n in range(body.n or 1)]
    if body.stream:
        await place.first(request, starts[0]())
        return EventStream(_events(request, body, context, place, starts), place)
    with closing(place):
        replies = await unless_disconnected(request, all_or_none(map(place.read, starts)))
    for reply in replies:
        log_reply(request, reply)
    if context.settings.log_text:
        log_fields(request)["answers"] = [reply.text for reply in replies]
    return json_response(
        {
            "id": new_id("chatcmpl"),
            "object": "chat.completion",
            "created": now(),
            "model": body.model,
            "choices": [_choice(n, reply, body, context) for n, reply in enumerate(replies)],
            "usage": usage_of(replies),
        }
    )


def _check_supported(body: ChatRequest) -> None:
    """Refuse what would change the answer and is not done, rather than ignore it."""
    if body.functions:
        raise ApiError(400, "functions is not supported: use tools", param="functions")
    if other := sorted({*(body.modalities or ())} - {"text"}):
        raise ApiError(400, f"modalities: {other[0]!r} is not supported", param="modalities")
    if body.web_search_options is not None:
        raise ApiError(400, "web_search_options is not supported", param="web_search_options")


def _options(body: ChatRequest, context: ServerContext) -> Options:
    _check_supported(body)
    logprobs = None
    if body.logprobs:
        logprobs = body.top_logprobs or 0
    elif body.top_logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    given = body.max_completion_tokens
    return options_of(
        body,
        context.settings,
        adapter=context.adapter(body.model),
        max_tokens=body.max_tokens if given is None else given,
        stop=body.stop,
        logprobs=logprobs,
        response_format=body.response_format,
        tools=body.tools,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls,
        **reasoning_options(
            body.reasoning_effort, body.reasoning_budget, body.chat_template_kwargs
        ),
    )


Starter = Callable[[], Awaitable[Generation]]


def _starter(body: ChatRequest, options: Options, context: ServerContext, place: Place) -> Starter:
    def prepare() -> Stream:
        messages: list[Any] = body.messages
        return context.lm.answer(messages, {}, options)

    return lambda: place.start(prepare)


def _choice(index: int, reply: Reply, body: ChatRequest, context: ServerContext) -> dict[str, Any]:
    logprobs = chat_logprobs(reply.chunks, context.token_bytes) if body.logprobs else None
    return {
        "index": index,
        "message": {**reply.message, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": openai_reason(reply.finish_reason),
    }


async def _events(
    request: Request,
    body: ChatRequest,
    context: ServerContext,
    place: Place,
    starts: list[Starter],
) -> AsyncIterator[bytes]:
    base = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion.chunk",
        "created": now(),
        "model": body.model,
    }
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    if with_usage:
        base["usage"] = None
    try:
        for index, start in enumerate(starts):
            generation = await start() if index else place.generations[0]
            async for data in _choice_events(index, generation, body, context):
                yield event({**base, "choices": [data]})
            log_reply(request, generation.reply)
            generation.close()
    except (EdgeLMError, ApiError) as error:
        yield event(as_api_error(error).body())
        return
    replies = [generation.reply for generation in place.generations]
    if context.settings.log_text:
        log_fields(request)["answers"] = [reply.text for reply in replies]
    if with_usage:
        yield event({**base, "choices": [], "usage": usage_of(replies)})
    yield DONE


async def _choice_events(
    index: int, generation: Generation, body: ChatRequest, context: ServerContext
) -> AsyncIterator[dict[str, Any]]:
    def data(delta: dict[str, Any], logprobs: Any = None, reason: Any = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    yield data({"role": "assistant", "content": ""})
    reason: FinishReason | None = None
    calls = 0
    async for chunk in generation:
        logprobs = chat_logprobs([chunk], context.token_bytes) if body.logprobs else None
        delta = _delta(chunk, calls)
        calls += len(chunk.tool_calls)
        if delta or (logprobs and logprobs["content"]):
            yield data(delta, logprobs)
        reason = chunk.finish_reason
    yield data({}, None, openai_reason(reason))


def _delta(chunk: Chunk, calls: int) -> dict[str, Any]:
    """What a chunk adds to the message; `calls` of tools came before it."""
    delta: dict[str, Any] = {}
    if chunk.text:
        delta["content"] = chunk.text
    if chunk.reasoning:
        delta["reasoning_content"] = chunk.reasoning
    if chunk.tool_calls:
        delta["tool_calls"] = [
            {"index": index, **call.message_part()}
            for index, call in enumerate(chunk.tool_calls, calls)
        ]
    return delta


def usage_of(replies: list[Reply]) -> dict[str, Any]:
    """Numbers of tokens; several answers to one prompt have one prompt."""
    usages: list[Usage] = [reply.usage for reply in replies]
    completion = sum(usage.completion_tokens for usage in usages)
    prompt = usages[0].prompt_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usages[0].cached_tokens},
        "completion_tokens_details": {
            **prediction_details(replies),
            "reasoning_tokens": sum(reply.reasoning_tokens for reply in replies),
        },
    }


def prediction_details(replies: list[Reply]) -> dict[str, int]:
    """How many drafted tokens were accepted, by OpenAI's names."""
    drafted = sum(reply.timings.drafted for reply in replies)
    accepted = sum(reply.timings.accepted for reply in replies)
    return {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": drafted - accepted,
    }


def openai_reason(reason: FinishReason | None) -> str:
    """A finish reason that OpenAI's clients know."""
    return "stop" if reason in (None, "cancelled") else str(reason)
