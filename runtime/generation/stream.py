"""A generation: its chunks as they are requested, and its reply at the end."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType

from edgelm.errors import BadInput
from edgelm.python310 import Self
from edgelm.runtime.engines.session import Cancelled
from edgelm.runtime.generation.chunk import Chunk
from edgelm.runtime.generation.decoding import Decoding, Vocabulary
from edgelm.runtime.generation.reply import Reply, Timings, Usage
from edgelm.runtime.generation.request import GenerationRequest
from edgelm.runtime.generation.steps import Steps
from edgelm.runtime.sequences import Sequences
from edgelm.runtime.speculation.speculator import Speculator
from edgelm.runtime.speculation.value_lookup import ValueLookup


class Stream(Iterator[Chunk]):
    """The chunks of one generation, computed as they are requested; the first request starts it.

    `cancel` may be called from any thread. Closing or discarding the stream also ends the
    generation; the tokens that it has computed stay in the cache of its sequence.
    """

    def __init__(
        self,
        sequences: Sequences,
        vocabulary: Vocabulary,
        request: GenerationRequest,
        *,
        ended: Callable[[Reply], None] | None = None,
    ) -> None:
        self._sequences = sequences
        self._request = request
        self._decoding = Decoding(request, vocabulary)
        self._ended = ended
        self._chunks: list[Chunk] = []
        self._clock = _Clock()
        self._lock = threading.RLock()
        self._done = self._running = False
        self._stop = _Cancellation(sequences, request)
        self._speculator = (
            None
            if request.speculation == "off"
            else Speculator(
                request.speculation,
                sequences.speculation_of(request.adapter),
                self._decoding.history,
                ValueLookup(
                    self._decoding.history,
                    vocabulary.tokenizer,
                    sequences.vocab_size,
                    self._decoding.forced,
                ),
            )
        )
        self._steps = Steps(
            sequences,
            request,
            self._decoding.history,
            speculator=self._speculator,
            stop=self._stop,
            placed=self._clock.placed,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        with self._lock:
            if self._done:
                raise StopIteration
            self._clock.start()
            self._running = True
            try:
                chunk = self._next()
            except BaseException as error:
                self._sequences.interrupted(self, error)
                self._finish(failed=isinstance(error, Exception))
                raise
            finally:
                self._running = False
            self._chunks.append(chunk)
            if chunk.stop_reason is not None:
                self._finish()
            return chunk

    @property
    def is_running(self) -> bool:
        """Whether a thread is waiting for its next chunk now."""
        return self._running

    @property
    def reply(self) -> Reply:
        """The whole answer, once the stream has ended.

        Raises:
            BadInput: it has not ended, or was closed or failed before it did.
        """
        if not self._chunks or self._chunks[-1].stop_reason is None:
            raise BadInput("this stream has not ended: read it to its end, or cancel it, first")
        return self._reply()

    def read(self) -> Reply:
        """Read it to its end; return the whole answer."""
        for _ in self:
            pass
        return self.reply

    def cancel(self) -> None:
        """End the generation as `cancelled`, even while it waits or processes a long prompt.

        May be called from any thread; the next chunk is the last one.
        """
        self._stop.cancelled = True

    def close(self) -> None:
        """End it here, without a last chunk, and give its sequence back."""
        self._stop.cancelled = True
        with self._lock:
            if not self._done:
                self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _next(self) -> Chunk:
        decoding, sequences = self._decoding, self._sequences
        try:
            if self._chunks:
                last = decoding.ended(sequences.capacity, self._stop)
                if last is not None:
                    sequences.check_open()  # closing cancels, too
                    return last
            elif self._stop():
                raise Cancelled
            slot, moved = sequences.enter(self, decoding.history, self._stop, self._request.adapter)
            try:
                row = self._steps.row(slot, moved)
                self._clock.took()
                chunk = decoding.take(row)
            finally:
                sequences.leave(slot, done=self._done)
        except Cancelled:
            sequences.check_open()
            return decoding.end("cancelled")
        return chunk

    def _finish(self, *, failed: bool = False) -> None:
        self._done = True
        self._sequences.release(self)
        ended, self._ended = self._ended, None
        if ended is not None and not failed:
            ended(self._reply())

    def _reply(self) -> Reply:
        return Reply(
            text="".join(chunk.text for chunk in self._chunks),
            chunks=tuple(self._chunks),
            usage=Usage(
                prompt_tokens=len(self._request.tokens),
                completion_tokens=sum(chunk.token is not None for chunk in self._chunks),
                cached_tokens=self._clock.cached,
            ),
            timings=self._timings(),
        )

    def _timings(self) -> Timings:
        timings = self._clock.timings(len(self._request.tokens))
        speculator = self._speculator
        if speculator is None:
            return timings
        return replace(timings, drafted=speculator.drafted, accepted=speculator.accepted)


class _Cancellation:
    """Says whether a generation is to end; it knows nothing of its stream, which may be dropped."""

    def __init__(self, sequences: Sequences, request: GenerationRequest) -> None:
        self._sequences, self._request = sequences, request
        self.cancelled = False

    def __call__(self) -> bool:
        return self.cancelled or self._sequences.closed or self._request.cancel()


class _Clock:
    """The moments of a generation, in seconds."""

    def __init__(self) -> None:
        self._started = self._placed = self._first = self._last = 0.0
        self._tokens = 0
        self.cached = 0

    def start(self) -> None:
        if not self._started:
            self._started = time.perf_counter()

    def placed(self, cached: int) -> None:
        """The first time that it has a sequence, which holds `cached` tokens already."""
        if not self._placed:
            self._placed, self.cached = time.perf_counter(), cached

    def took(self) -> None:
        """The logits of one more token are there."""
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._tokens += 1

    def timings(self, prompt_tokens: int) -> Timings:
        placed = self._placed or self._started
        first = self._first or placed
        return Timings(
            queued_ms=1e3 * (placed - self._started),
            first_token_ms=1e3 * (first - self._started),
            decode_ms=1e3 * (self._last - first) if self._tokens > 1 else 0.0,
            prefilled=prompt_tokens - self.cached if self._tokens else 0,
            decoded=max(0, self._tokens - 1),
        )
