"""The decode loop: prefill a prompt, then choose, check, advance, until something ends it.

A session holds one sequence, so one generation at a time owns it. The latest one does: when another
begins, an unfinished one is over, and asking it for more raises `Busy` instead of continuing the
other's text. A step is atomic: threads wait for each other's.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgelm.errors import BadInput, Busy, ContextFull
from edgelm.python310 import Self
from edgelm.runtime.engines.session import Cancelled, Logits, Session, Tokens
from edgelm.runtime.logits_processor import Constraint, LogitsProcessor
from edgelm.runtime.sampler import Sampler, Sampling, log_softmax
from edgelm.runtime.text.stops import StopStrings
from edgelm.runtime.text.tokenizer import Detokenizer, Tokenizer

_WAIT_SECONDS = 0.05  # between two questions of a waiting thread whether it is cancelled

FinishReason = Literal["stop", "length", "cancelled"]
StopReason = Literal[
    "eos_token", "stop_token", "stop_string", "grammar", "max_tokens", "context", "cancelled"
]

# As OpenAI's API has them, and `cancelled`.
FINISH_REASONS: dict[StopReason, FinishReason] = {
    "eos_token": "stop",
    "stop_token": "stop",
    "stop_string": "stop",
    "grammar": "stop",
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

    `text` may be empty while a character or a possible stop string is incomplete. The last chunk
    alone has a `stop_reason`: eos_token (the model ended its answer), stop_token, stop_string,
    grammar (nothing may follow the text that was required), max_tokens, context (the cache is full)
    or cancelled; it may be without a token. `stop` is the token or the string that ended the
    generation.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    stop_reason: StopReason | None = None
    stop: str | int | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        """The stop reason in OpenAI's words: stop, length or cancelled."""
        return None if self.stop_reason is None else FINISH_REASONS[self.stop_reason]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate.

    `logprobs` None gives none; n gives each token's own and those of the n best. `cancel` is called
    before every step, and during a long prefill. `constraint` makes the processor that says which
    text may be generated; it is the last of them, so that none can allow what it forbids.
    """

    tokens: Tokens
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    logprobs: int | None = None
    processors: tuple[LogitsProcessor, ...] = ()
    constraint: Callable[[], Constraint] | None = None
    cancel: Callable[[], bool] = lambda: False


class Generation(Iterator[Chunk]):
    """The chunks of one generation, made as they are requested.

    Raises `Busy` once another generation has begun on the same model. Dropping it, or `close`, ends
    it; what it has read stays in the cache.
    """

    def __init__(self, generator: "Generator", request: GenerationRequest) -> None:
        self._generator = generator
        self._request = request
        self._steps = generator.steps(request)
        self._key = object()
        self._begun = self._done = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        if self._done:
            raise StopIteration
        generator, cancel = self._generator, self._request.cancel
        try:
            with generator.turn(self._key, cancel, begins=not self._begun):
                self._begun = True
                chunk = self._step()
        except Cancelled:
            generator.check_open()  # closing cancels, too
            chunk = Chunk("", stop_reason="cancelled")
        self._done = chunk.stop_reason is not None
        return chunk

    def _step(self) -> Chunk:
        try:
            return next(self._steps)
        except BaseException:
            self._done = True
            raise

    def close(self) -> None:
        """End it here."""
        self._done = True


class Generator:
    """Generates on one session, which keeps what it has seen.

    A request that begins like the sequence in the cache (the next turn of a chat, a repeated
    prefix) is prefilled only from where it differs.
    """

    def __init__(
        self, session: Session, tokenizer: Tokenizer, eos_token_ids: frozenset[int]
    ) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self._lock = threading.RLock()
        self._owner: object = None  # the key of the generation that the cache belongs to
        self._stepping = self._closed = False

    @contextmanager
    def turn(self, key: object, cancel: Callable[[], bool], *, begins: bool) -> Iterator[None]:
        """Hold the session for one step.

        Raises:
            Busy: another generation has begun since this one's last step.
            Cancelled: `cancel` returned true while another thread had the session.
            BadInput: the model is closed.
        """
        with self._exclusive(cancel):
            if begins:
                self._owner = key
            elif self._owner is not key:
                raise Busy(
                    "another generation has begun on this model, which holds one sequence; finish "
                    "or close one before the next begins, or load the model a second time"
                )
            self._stepping = True
            try:
                yield
            finally:
                self._stepping = False

    def complete(self, request: GenerationRequest) -> tuple[Chunk, ...]:
        """All chunks of a generation; other threads wait for their turn until it is complete."""
        try:
            with self._exclusive(request.cancel):
                return tuple(self.stream(request))
        except Cancelled:
            return (Chunk("", stop_reason="cancelled"),)

    @contextmanager
    def _exclusive(self, cancel: Callable[[], bool]) -> Iterator[None]:
        while not self._lock.acquire(timeout=_WAIT_SECONDS):
            if cancel():
                raise Cancelled
        try:
            self.check_open()
            if self._stepping:  # this thread holds the lock already
                raise Busy(
                    "this model is generating; it cannot be used from within its own "
                    "`cancel`; load it a second time"
                )
            yield
        finally:
            self._lock.release()

    def check_open(self) -> None:
        """Raise BadInput after `close`."""
        if self._closed:
            raise BadInput("this model is closed; load it again")

    def close(self) -> None:
        """Close the session; a generation of another thread ends at its next step: BadInput."""
        self._closed = True
        with self._lock:
            self.session.close()

    def check(self, request: GenerationRequest) -> None:
        """Raise BadInput or ContextFull for a request that cannot start."""
        self.check_open()
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
        if request.max_tokens is not None and request.max_tokens < 1:
            raise BadInput(f"max_tokens is {request.max_tokens}, expected at least 1")
        if (request.logprobs or 0) < 0:
            raise BadInput(f"logprobs is {request.logprobs}, expected at least 0")
        request.sampling.check(self.session.vocab_size)

    def stream(self, request: GenerationRequest) -> Generation:
        """Give a chunk per token, and a last one that says why it ended.

        The generation begins, and takes the session, when its first chunk is requested.
        """
        self.check(request)
        return Generation(self, request)

    def steps(self, request: GenerationRequest) -> Iterator[Chunk]:
        """Make the chunks; to be resumed within `turn` only."""
        detokenizer, stops = Detokenizer(self.tokenizer), StopStrings(request.stop)
        constraint = None if request.constraint is None else request.constraint()
        processors = request.processors + (() if constraint is None else (constraint,))
        sampler = Sampler(
            request.sampling, prompt_length=len(request.tokens), processors=processors
        )
        history = [int(token) for token in request.tokens]
        if request.cancel():
            yield Chunk("", stop_reason="cancelled")
            return
        logits = self._prefill(history, request.cancel)
        generated = 0
        reason: StopReason
        while True:
            token = sampler(logits[-1], history)
            logprobs = _logprobs(logits[-1], token, request.logprobs)
            if token in self.eos_token_ids or token in request.stop_tokens:
                reason = "eos_token" if token in self.eos_token_ids else "stop_token"
                text = stops.push(detokenizer.flush())[0] + stops.flush()
                yield Chunk(text, token, *logprobs, stop_reason=reason, stop=token)
                return
            history.append(token)
            generated += 1
            text, stop = stops.push(detokenizer.push(token))
            if stop is not None:
                yield Chunk(text, token, *logprobs, stop_reason="stop_string", stop=stop)
                return
            yield Chunk(text, token, *logprobs)
            if constraint is not None and constraint.complete:
                reason = "grammar"
            elif request.cancel():
                reason = "cancelled"
            elif generated == request.max_tokens:
                reason = "max_tokens"
            elif self.session.length == self.session.capacity:
                reason = "context"
            else:
                logits = self._advance([token])
                continue
            rest, stop = stops.push(detokenizer.flush())
            rest += "" if stop is not None else stops.flush()
            yield Chunk(rest, stop_reason=reason)
            return

    def _prefill(self, tokens: list[int], cancel: Callable[[], bool]) -> Logits:
        # At least one token must run: logits are not stored.
        shared = min(_common_prefix(self.session.tokens, tokens), len(tokens) - 1)
        self.session.rewind(shared)
        self.session.cancel_when(lambda: self._closed or cancel())
        try:
            return self._advance(tokens[shared:])
        finally:
            self.session.cancel_when(None)

    def _advance(self, tokens: Sequence[int]) -> Logits:
        return self.session.advance(np.asarray(tokens, dtype=np.int64))


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _logprobs(
    row: Logits, token: int, count: int | None
) -> tuple[float | None, tuple[TokenLogprob, ...]]:
    if count is None:
        return None, ()
    logprobs = log_softmax(row)
    best = np.argsort(-logprobs, kind="stable")[:count]
    top = tuple(TokenLogprob(int(i), float(logprobs[i])) for i in best)
    return float(logprobs[token]), top
