"""One step of a generation, as its caller sees it."""

from dataclasses import dataclass
from typing import Literal

from edgelm.runtime.text.answers.calls.tool_call import ToolCall

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
StopReason = Literal[
    "eos_token",
    "stop_token",
    "stop_string",
    "grammar",
    "tool_calls",
    "max_tokens",
    "context",
    "cancelled",
]

# As OpenAI's API has them, and `cancelled`.
FINISH_REASONS: dict[StopReason, FinishReason] = {
    "eos_token": "stop",
    "stop_token": "stop",
    "stop_string": "stop",
    "grammar": "stop",
    "tool_calls": "tool_calls",
    "max_tokens": "length",
    "context": "length",
    "cancelled": "cancelled",
}


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability under the model, before any sampling transform."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of a generation: a token, and the text that is complete with it.

    `text` may be empty while a character or a possible stop string is incomplete. In the answer to
    messages it is the content alone: the model's reasoning and its calls of tools are in
    `reasoning` and, once a call is complete, in `tool_calls`.

    The last chunk alone has a `stop_reason`: eos_token (the model ended its answer), stop_token,
    stop_string, grammar (nothing may follow the text that was required), tool_calls (it ended after
    calls of tools), max_tokens, context (the cache is full) or cancelled; it may be without a
    token. `stop` is the token or the string that ended the generation.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    stop_reason: StopReason | None = None
    stop: str | int | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def finish_reason(self) -> FinishReason | None:
        """The stop reason in OpenAI's words: stop, length, tool_calls or cancelled."""
        return None if self.stop_reason is None else FINISH_REASONS[self.stop_reason]
