"""What an evaluation asks of a loaded bundle, one request at a time.

A request can be sent to another process, which runs it on its own copy of the bundle.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from edgelm.bench.evaluation.bundle.request_starts import Start
from edgelm.compress.evaluation.backend import Answer, Call, Continuation, Conversation
from edgelm.errors import BadInput
from edgelm.runtime.generation.options import GREEDY, Options
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.sequences import common_prefix

_ROWS = 128  # rows of logits that the engine computes at a time
_CACHED_ROWS = 4  # rows of logits that stay in a core's cache while they are summed


class Request(Protocol):
    """One request; `decodes` says whether it generates tokens, one after another.

    Requests whose `order` is close begin alike, so that running them after one another uses the
    cache of the one before.
    """

    @property
    def decodes(self) -> bool:
        """See above."""

    @property
    def order(self) -> Any:
        """A key to sort requests of one kind by."""

    def run(self, start: Start) -> Any:
        """The result."""


@dataclass(frozen=True, slots=True)
class ContinuationRequest:
    """The likelihood of the last `count` tokens of a row after those before them.

    shared: the first tokens of the row, which other requests have, too.
    """

    row: tuple[int, ...]
    count: int
    shared: int = 0
    decodes: ClassVar[bool] = False

    @property
    def order(self) -> tuple[int, ...]:
        """See Request."""
        return self.row

    def run(self, start: Start) -> Continuation:
        """See Request."""
        row, count = self.row, self.count
        session = start.begin(row[: self.shared])
        tokens = np.array(row[self.shared : -1], dtype=np.int64)
        logits = session.advance(tokens, logits=count)
        targets = np.array(row[-count:])
        greedy = bool((logits.argmax(-1) == targets).all())
        return Continuation(float(_logprobs(logits, targets).sum()), count, greedy)


@dataclass(frozen=True, slots=True)
class LossRequest:
    """The mean next-token loss of a row, in nats."""

    row: tuple[int, ...]
    decodes: ClassVar[bool] = False

    @property
    def order(self) -> tuple[int, ...]:
        """See Request."""
        return self.row

    def run(self, start: Start) -> float:
        """See Request."""
        session, tokens = start.begin(()), np.array(self.row, dtype=np.int64)
        total = 0.0
        for at in range(0, len(tokens) - 1, _ROWS):
            part, targets = tokens[at : at + _ROWS], tokens[at + 1 : at + 1 + _ROWS]
            logits = session.advance(part[: len(targets)], logits=len(targets))
            total -= float(_logprobs(logits, targets).sum())
        return total / (len(tokens) - 1)


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """A greedy answer to a conversation.

    shared: the first tokens of its prompt, which other requests have, too.
    """

    conversation: Conversation
    max_new_tokens: int
    shared: tuple[int, ...] = ()
    decodes: ClassVar[bool] = True

    @property
    def order(self) -> str:
        """Templates write tools and the system message first."""
        return json.dumps([self.conversation.tools, self.conversation.messages])

    def run(self, start: Start) -> Answer:
        """See Request."""
        start.begin(self.shared)
        options = Options(**GREEDY, max_tokens=self.max_new_tokens)
        if self.conversation.tools:
            options["tools"] = self.conversation.tools
        messages = [dict(one) for one in self.conversation.messages]
        reply = start.model.generate(messages, **options)  # type: ignore[arg-type]
        calls = tuple(Call(one.name, one.parsed()) for one in reply.tool_calls)
        return Answer(reply.text, len(reply.tokens), reply.finish_reason != "length", calls)


def continuation_requests(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], context: int
) -> list[ContinuationRequest]:
    """Requests of pairs of a context and what follows it, truncated to the bundle's context.

    Pairs with the same context share it, but for its last token: its logits are needed.
    """
    rows = [(*before, *after)[-context:] for before, after in pairs]
    counts = [len(after) for _, after in pairs]
    begins = [row[: -count - 1] for row, count in zip(rows, counts, strict=True)]
    seen = Counter(begins)
    return [
        ContinuationRequest(row, count, len(begin) if seen[begin] > 1 else 0)
        for row, count, begin in zip(rows, counts, begins, strict=True)
    ]


def answer_requests(
    model: LanguageModel, conversations: Sequence[Conversation], max_new_tokens: int
) -> list[AnswerRequest]:
    """Requests of conversations; those with the same system message and tools share these."""
    begins = [_beginning(one) for one in conversations]
    seen = Counter(begins)
    shared = {
        begin: _shared_tokens(model, one)
        for begin, one in zip(begins, conversations, strict=True)
        if seen[begin] > 1
    }
    return [
        AnswerRequest(one, max_new_tokens, shared.get(begin, ()))
        for begin, one in zip(begins, conversations, strict=True)
    ]


def _beginning(conversation: Conversation) -> str:
    """What templates write first."""
    return json.dumps([conversation.tools, _system(conversation)])


def _system(conversation: Conversation) -> list[dict[str, Any]]:
    first = conversation.messages[:1]
    return [dict(one) for one in first if one.get("role") in ("system", "developer")]


def _shared_tokens(model: LanguageModel, conversation: Conversation) -> tuple[int, ...]:
    """The tokens that every prompt with this system message and these tools begins with."""
    if not model.has_chat_template:
        return ()  # the answer's request will say so
    prompts = []
    for text in ("a", "b"):
        messages = [*_system(conversation), {"role": "user", "content": text}]
        tools = [dict(one) for one in conversation.tools] or None
        try:
            tokens = model.chat_tokens(messages, tools=tools)  # type: ignore[arg-type]
        except BadInput:  # a template with its own ideas of a conversation
            return ()
        prompts.append(tokens.tolist())
    length = common_prefix(*prompts)
    return tuple(prompts[0][:length])


def _logprobs(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Log-probabilities [rows] of the targets."""
    found = np.empty(len(targets), dtype=np.float64)
    for at in range(0, len(targets), _CACHED_ROWS):
        rows = slice(at, at + _CACHED_ROWS)
        shifted = logits[rows] - logits[rows].max(-1, keepdims=True)
        chosen = np.take_along_axis(shifted, targets[rows, None], 1)[:, 0]
        total = np.exp(shifted, out=shifted).sum(-1, dtype=np.float64)
        found[rows] = chosen.astype(np.float64) - np.log(total)
    return found
