"""POST /v1/completions: texts or tokens that are continued as they are."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgelm.errors import EdgeLMError
from edgelm.runtime.generation.options import Options
from edgelm.runtime.generation.reply import Reply
from edgelm.runtime.generation.stream import Stream
from edgelm.runtime.server.context import ServerContext, json_response, new_id, now
from edgelm.runtime.server.endpoints.chat_completions import openai_reason, prediction_details
from edgelm.runtime.server.endpoints.events import DONE, EventStream, event
from edgelm.runtime.server.endpoints.fields import for_choice, options_of
from edgelm.runtime.server.endpoints.generations import (
    Generation,
    Place,
    all_or_none,
    unless_disconnected,
)
from edgelm.runtime.server.endpoints.logprobs import completion_logprobs
from edgelm.runtime.server.errors import ApiError, as_api_error
from edgelm.runtime.server.request_log import log_reply
from edgelm.runtime.server.requests import CompletionRequest

_MAX_PROMPTS = 64
Prompt = str | list[int]


async def completions(
    request: Request, body: CompletionRequest, context: ServerContext
) -> Response:
    """Continue one prompt or several, whole or as events."""
    _refuse_what_is_missing(body)
    prompts = _prompts(body)
    options = options_of(
        body,
        context.settings,
        adapter=context.adapter(body.model),
        max_tokens=body.max_tokens,
        stop=body.stop,
        logprobs=body.logprobs,
        response_format=body.response_format,
    )
    # As OpenAI orders them: all answers to the first prompt, then to the second.
    jobs = [(prompt, for_choice(options, n)) for prompt in prompts for n in range(body.n or 1)]
    place = context.generations.place()
    starts = [_starter(prompt, chosen, context, place) for prompt, chosen in jobs]
    base = {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": now(),
        "model": body.model,
    }
    if body.stream:
        await place.first(request, starts[0]())
        return EventStream(_events(request, body, context, base, place, starts), place)
    with closing(place):
        replies = await unless_disconnected(request, all_or_none(map(place.read, starts)))
    for reply in replies:
        log_reply(request, reply)
    choices = [_choice(n, reply, body, context) for n, reply in enumerate(replies)]
    return json_response({**base, "choices": choices, "usage": _usage(replies, body.n or 1)})


def _refuse_what_is_missing(body: CompletionRequest) -> None:
    if body.echo:
        raise ApiError(400, "echo is not supported", param="echo")
    if body.suffix:
        raise ApiError(400, "suffix is not supported", param="suffix")
    if body.best_of not in (None, 1, body.n):
        raise ApiError(400, "best_of is not supported; use n", param="best_of")


def _prompts(body: CompletionRequest) -> list[Prompt]:
    given = body.prompt
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(one, int) for one in given):
        return [given]  # type: ignore[list-item]
    if not 1 <= len(given) <= _MAX_PROMPTS or any(isinstance(one, int) for one in given):
        raise ApiError(
            400,
            f"prompt is a list of {len(given)}; expected 1 to {_MAX_PROMPTS} texts, or token ids",
            param="prompt",
        )
    return given  # type: ignore[return-value]


Starter = Callable[[], Awaitable[Generation]]


def _starter(prompt: Prompt, options: Options, context: ServerContext, place: Place) -> Starter:
    def prepare() -> Stream:
        return context.lm.stream(prompt, **options)

    return lambda: place.start(prepare)


def _choice(
    index: int, reply: Reply, body: CompletionRequest, context: ServerContext
) -> dict[str, Any]:
    logprobs = None
    if body.logprobs is not None:
        logprobs = completion_logprobs(reply.chunks, context.token_bytes)
    return {
        "index": index,
        "text": reply.text,
        "logprobs": logprobs,
        "finish_reason": openai_reason(reply.finish_reason),
    }


async def _events(
    request: Request,
    body: CompletionRequest,
    context: ServerContext,
    base: dict[str, Any],
    place: Place,
    starts: list[Starter],
) -> AsyncIterator[bytes]:
    try:
        for index, start in enumerate(starts):
            generation = await start() if index else place.generations[0]
            async for choice in _choice_events(index, generation, body, context):
                yield event({**base, "choices": [choice]})
            log_reply(request, generation.reply)
            generation.close()
    except (EdgeLMError, ApiError) as error:
        yield event(as_api_error(error).body())
        return
    if body.stream_options is not None and body.stream_options.include_usage:
        replies = [generation.reply for generation in place.generations]
        yield event({**base, "choices": [], "usage": _usage(replies, body.n or 1)})
    yield DONE


async def _choice_events(
    index: int, generation: Generation, body: CompletionRequest, context: ServerContext
) -> AsyncIterator[dict[str, Any]]:
    offset = 0
    async for chunk in generation:
        reason = None if chunk.finish_reason is None else openai_reason(chunk.finish_reason)
        logprobs = None
        if body.logprobs is not None:
            logprobs = completion_logprobs([chunk], context.token_bytes, offset=offset)
        offset += len(chunk.text)
        if chunk.text or reason or logprobs:
            yield {
                "index": index,
                "text": chunk.text,
                "logprobs": logprobs,
                "finish_reason": reason,
            }


def _usage(replies: list[Reply], answers: int) -> dict[str, Any]:
    prompt = sum(reply.usage.prompt_tokens for reply in replies[::answers])
    completion = sum(reply.usage.completion_tokens for reply in replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": prediction_details(replies),
    }
