"""The decode loop: prefill a prompt, then choose, check, advance, until something ends it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgelm.errors import BadInput, ContextFull
from edgelm.runtime.sampler import Sampler, Sampling, log_softmax
from edgelm.runtime.session import Logits, Session, Tokens
from edgelm.runtime.stops import StopStrings
from edgelm.runtime.tokenizer import Detokenizer, Tokenizer

FinishReason = Literal["end", "stop", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token's log-probability under the model, before any sampling transform."""

    token: int
    log_probability: float


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of a generation.

    `text` may be empty while a character or a possible stop string is incomplete. The last piece
    alone has a `finish_reason`: end (end-of-sequence token), stop (a stop string or token),
    length (max_new_tokens), context (the cache is full), cancelled.
    """

    text: str
    token: int | None = None
    log_probability: float | None = None
    top: tuple[TokenScore, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate.

    `log_probabilities` None gives none; n gives each token's own and those of the n best.
    `cancel` is asked before every step.
    """

    tokens: Tokens
    max_new_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    log_probabilities: int | None = None
    cancel: Callable[[], bool] = lambda: False


class Generator:
    """Generates on one session, which keeps what it has seen.

    A request that begins like the sequence in the cache (the next turn of a chat, a repeated
    prefix) is prefilled only from where it differs.
    """

    def __init__(self, session: Session, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.ends = ends
        self._cached: list[int] = []

    def check(self, request: Request) -> None:
        """Raise BadInput or ContextFull for a request that cannot start."""
        count = len(request.tokens)
        if count == 0:
            raise BadInput("the prompt is empty; expected at least one token")
        if count > self.session.capacity:
            raise ContextFull(
                f"the prompt has {count} tokens, the context holds {self.session.capacity}; "
                "shorten it, or export with a larger --context"
            )
        for token in (int(request.tokens.min()), int(request.tokens.max())):
            if not 0 <= token < self.session.vocab_size:
                raise BadInput(
                    f"the prompt holds token {token}, the vocabulary has "
                    f"{self.session.vocab_size}; was it made by another tokenizer?"
                )
        if request.max_new_tokens is not None and request.max_new_tokens < 1:
            raise BadInput(f"max_new_tokens is {request.max_new_tokens}, expected at least 1")
        if (request.log_probabilities or 0) < 0:
            raise BadInput(f"log_probabilities is {request.log_probabilities}, expected at least 0")
        request.sampling.check(self.session.vocab_size)

    def stream(self, request: Request) -> Iterator[Piece]:
        """Yield a piece per token, and a last one that says why it ended."""
        self.check(request)
        detokenizer, stops = Detokenizer(self.tokenizer), StopStrings(request.stop)
        sampler = Sampler(request.sampling, prompt_length=len(request.tokens))
        history = [int(token) for token in request.tokens]
        if request.cancel():
            yield Piece("", finish_reason="cancelled")
            return
        logits = self._prefill(history)
        generated = 0
        reason: FinishReason
        while True:
            token = sampler(logits[-1], history)
            scores = _scores(logits[-1], token, request.log_probabilities)
            if token in self.ends or token in request.stop_tokens:
                reason = "end" if token in self.ends else "stop"
                text = stops.push(detokenizer.flush())[0] + stops.flush()
                yield Piece(text, token, *scores, finish_reason=reason, stop=token)
                return
            history.append(token)
            generated += 1
            text, stop = stops.push(detokenizer.push(token))
            if stop is not None:
                yield Piece(text, token, *scores, finish_reason="stop", stop=stop)
                return
            yield Piece(text, token, *scores)
            if request.cancel():
                reason = "cancelled"
            elif generated == request.max_new_tokens:
                reason = "length"
            elif self.session.length == self.session.capacity:
                reason = "context"
            else:
                logits = self._advance([token])
                continue
            rest, stop = stops.push(detokenizer.flush())
            rest += "" if stop is not None else stops.flush()
            yield Piece(rest, finish_reason=reason)
            return

    def _prefill(self, tokens: list[int]) -> Logits:
        shared = _common_prefix(self._cached, tokens)
        # At least one token must run: logits are not kept.
        shared = min(shared, len(tokens) - 1)
        self.session.rewind(shared)
        del self._cached[shared:]
        return self._advance(tokens[shared:])

    def _advance(self, tokens: Sequence[int]) -> Logits:
        logits = self.session.advance(np.asarray(tokens, dtype=np.int64))
        self._cached += tokens
        return logits


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _scores(
    row: Logits, token: int, count: int | None
) -> tuple[float | None, tuple[TokenScore, ...]]:
    if count is None:
        return None, ()
    log_probabilities = log_softmax(row)
    best = np.argsort(-log_probabilities, kind="stable")[:count]
    top = tuple(TokenScore(int(i), float(log_probabilities[i])) for i in best)
    return float(log_probabilities[token]), top
