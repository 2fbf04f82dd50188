"""The result of a generation: the text, why it ended, counts and times."""

from dataclasses import dataclass

from edgelm.runtime.generation.chunk import (
    FINISH_REASONS,
    Chunk,
    FinishReason,
    StopReason,
    TokenLogprob,
)
from edgelm.runtime.text.answers.calls.tool_call import ToolCall
from edgelm.runtime.text.messages import Message


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens; `cached_tokens` of the prompt were in the cache, and not computed."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of a generation, from when its first chunk was requested.

    `queued_ms` passed until a sequence was free, `first_token_ms` until the first token was chosen
    (including `queued_ms`), and `decode_ms` between the first token and the last. `prefilled`
    tokens of the prompt were computed, and `decoded` tokens were generated after the first.
    `drafted` tokens were checked in runs of several tokens; `accepted` of them were chosen.
    """

    queued_ms: float
    first_token_ms: float
    decode_ms: float
    prefilled: int
    decoded: int
    drafted: int = 0
    accepted: int = 0

    @property
    def prefill_ms(self) -> float:
        """From the start of the prefill to the first token."""
        return self.first_token_ms - self.queued_ms

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed; None with fewer than two tokens."""
        return 1e3 * self.decoded / self.decode_ms if self.decode_ms > 0 else None


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished generation.

    `text` is the answer without reasoning, tool calls, stop strings and special tokens; `chunks`
    are the steps that it was made of.
    """

    text: str
    chunks: tuple[Chunk, ...]
    usage: Usage
    timings: Timings

    @property
    def reasoning(self) -> str:
        """The model's reasoning, which is not part of `text`."""
        return "".join(chunk.reasoning for chunk in self.chunks)

    @property
    def reasoning_tokens(self) -> int:
        """How many tokens were generated until the reasoning ended; 0 without reasoning."""
        with_reasoning = [n for n, chunk in enumerate(self.chunks, start=1) if chunk.reasoning]
        return max(with_reasoning, default=0)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The functions that the model wants called."""
        return tuple(call for chunk in self.chunks for call in chunk.tool_calls)

    @property
    def message(self) -> Message:
        """The answer as a message of the conversation, in OpenAI's form."""
        message = Message(role="assistant", content=self.text)
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["content"] = self.text or None
            message["tool_calls"] = [call.message_part() for call in self.tool_calls]
        return message

    @property
    def tokens(self) -> list[int]:
        """The generated token ids, an end-of-sequence token included."""
        return [chunk.token for chunk in self.chunks if chunk.token is not None]

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """Each generated token with its log-probability; None unless they were requested."""
        found = [
            TokenLogprob(chunk.token, chunk.logprob)
            for chunk in self.chunks
            if chunk.token is not None and chunk.logprob is not None
        ]
        return found or None

    @property
    def stop_reason(self) -> StopReason:
        """Why it ended, in detail: see Chunk."""
        reason = self.chunks[-1].stop_reason
        assert reason is not None
        return reason

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended, in OpenAI's words: stop, length, tool_calls or cancelled."""
        return FINISH_REASONS[self.stop_reason]
