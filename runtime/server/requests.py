"""The bodies of requests, as OpenAI's API has them, with the samplers that it lacks.

Fields that change nothing here (`user`, `store`, `metadata`) are ignored.
"""

from typing import Annotated, Any, Literal

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
_Budget = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=16)]
_TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]
_Seed = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class StreamOptions(msgspec.Struct, frozen=True):
    """`include_usage` sends a last chunk with the numbers of tokens."""

    include_usage: bool = False


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """What all endpoints have."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: _Seed | None = None
    speculation: str | None = None
    stream: bool | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """/v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    n: _Choices | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: _TopLogprobs | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    reasoning_budget: _Budget | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: Any = None
    modalities: list[str] | None = None
    web_search_options: Any = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """/v1/completions."""

    prompt: str | list[str | int | list[int]]
    max_tokens: _Count | None = 16
    n: _Choices | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    logprobs: _TopLogprobs | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    response_format: dict[str, Any] | None = None


class TextFormat(msgspec.Struct, frozen=True):
    """`text.format` of /v1/responses."""

    format: dict[str, Any] | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """`reasoning` of /v1/responses."""

    effort: Effort | None = None


class ResponsesRequest(SamplingFields, frozen=True, kw_only=True):
    """/v1/responses; every request holds the whole conversation."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: _Count | None = None
    text: TextFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    reasoning_budget: _Budget | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: _TopLogprobs | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None


class EmbeddingsRequest(msgspec.Struct, frozen=True):
    """/v1/embeddings; `prompt` and `truncate` are those of `lm.embed`."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    prompt: str | None = None
    truncate: bool | None = None
