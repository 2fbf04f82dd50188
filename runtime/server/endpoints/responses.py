"""POST /v1/responses. Nothing is stored: every request holds the whole conversation."""

from contextlib import closing

from starlette.requests import Request
from starlette.responses import Response

from edgelm.runtime.generation.stream import Stream
from edgelm.runtime.server.context import ServerContext, json_response
from edgelm.runtime.server.endpoints.events import EventStream
from edgelm.runtime.server.endpoints.fields import options_of, reasoning_options
from edgelm.runtime.server.endpoints.generations import unless_disconnected
from edgelm.runtime.server.endpoints.response_input import (
    logprobs_of,
    messages_of,
    response_format_of,
    tool_choice_of,
    tools_of,
)
from edgelm.runtime.server.endpoints.response_output import ResponseObject, response_events
from edgelm.runtime.server.errors import ApiError
from edgelm.runtime.server.request_log import log_reply
from edgelm.runtime.server.requests import ResponsesRequest


async def responses(request: Request, body: ResponsesRequest, context: ServerContext) -> Response:
    """Answer a conversation, whole or as events."""
    stored = (body.previous_response_id, body.conversation, body.prompt)
    if body.background or any(one is not None for one in stored):
        raise ApiError(
            400,
            "this server stores neither responses nor prompts: send the whole conversation as "
            "`input`",
        )
    messages = messages_of(body)
    options = options_of(
        body,
        context.settings,
        adapter=context.adapter(body.model),
        max_tokens=body.max_output_tokens,
        logprobs=logprobs_of(body),
        response_format=response_format_of(body),
        tools=tools_of(body),
        tool_choice=tool_choice_of(body),
        parallel_tool_calls=body.parallel_tool_calls,
        **reasoning_options(
            None if body.reasoning is None else body.reasoning.effort,
            body.reasoning_budget,
            body.chat_template_kwargs,
        ),
    )

    def prepare() -> Stream:
        return context.lm.answer(messages, {}, options)

    base = ResponseObject(body, context.token_bytes)
    place = context.generations.place()
    if body.stream:
        generation = await place.first(request, place.start(prepare))
        return EventStream(response_events(request, generation, base), place)
    with closing(place):
        reply = await unless_disconnected(request, place.read(lambda: place.start(prepare)))
    log_reply(request, reply)
    return json_response(base.completed(reply))
