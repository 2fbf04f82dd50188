"""A sequence of tokens on an engine: chunks, the length, rewinding.

It also keeps its state consistent: calls from several threads wait for each other, a call that
fails or is interrupted leaves the cache as it was, and closing waits for the engine to stop.
"""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn

import numpy as np

from edgelm.errors import BadInput, ContextFull
from edgelm.python310 import Self
from edgelm.runtime.engines.adapters import LoadedAdapter, SwitchesAdapters
from edgelm.runtime.engines.recurrent_state import SnapshotHistory
from edgelm.runtime.engines.session import (
    BatchPlace,
    CacheRows,
    Cancelled,
    Engine,
    Logits,
    Tokens,
    never,
)
from edgelm.runtime.turns import RunningThread, with_locks


class EngineSession:
    """A session on any engine; it closes the engine when it is closed.

    Args:
        engine: a loaded graph, whose cache belongs to this session alone.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.length = 0
        self._adapter: LoadedAdapter | None = None
        self._tokens: list[int] = []
        self._history = SnapshotHistory(engine.recurrent) if engine.recurrent else None
        self._lock = threading.RLock()
        self._cancelled: Callable[[], bool] = never
        self.running = RunningThread()
        self._closing = self._released = False

    @property
    def adapter(self) -> LoadedAdapter | None:
        """The adapter that it runs with, and that its tokens ran with."""
        return self._adapter

    @property
    def capacity(self) -> int:
        """Tokens that the cache holds."""
        return self.engine.capacity

    @property
    def vocab_size(self) -> int:
        """Logits per token."""
        return self.engine.vocab_size

    @property
    def chunk(self) -> int:
        """Tokens that are processed at once."""
        return self.engine.chunk

    @property
    def cache_bytes(self) -> int:
        """Memory that the key-value cache takes."""
        return self.engine.cache_bytes

    @property
    def tokens(self) -> list[int]:
        """The tokens in the cache, oldest first."""
        return self._tokens[: self.length]

    def advance(self, tokens: Tokens, *, logits: int = 1) -> Logits:
        """Append tokens; return logits [P, vocab_size] of the last `logits` of them (or of all).

        The array is valid until the next call.

        Raises:
            ContextFull: the cache cannot hold them; it is left as it was.
            BadInput: no tokens, logits of none, or a closed session.
            Cancelled: the function of `cancel_when` returned true; the cache is left as it was.
        """
        with self._lock:
            return self._append(len(tokens), logits, lambda: self._advance(tokens, logits))

    def verify(self, tokens: Tokens) -> Logits:
        """Append tokens of which some may be dropped by `keep`; return the logits of all of them.

        They are at most `chunk`. The array is valid until the next call.

        Raises:
            ContextFull, BadInput: as `advance`.
        """
        with self._lock:
            return self._append(len(tokens), len(tokens), lambda: self._verify(tokens))

    @staticmethod
    def advance_each(sessions: Sequence["EngineSession"], tokens: Sequence[int]) -> list[Logits]:
        """Append a token to each of several siblings, in one run.

        Returns logits [1, vocab_size] of each, which stay valid, unlike those of `advance`.

        Raises:
            ContextFull, BadInput, DoesNotFit: one of them cannot take it; all are as they were.
        """

        def run() -> list[Logits]:
            for session in sessions:
                session._check(1, 1)
            try:
                for session in sessions:
                    session._begin_append()
                    session._begin_step()
                places = [session._batch().place for session in sessions]
                pasts = [session.length for session in sessions]
                adapters = [session.adapter for session in sessions]
                rows = sessions[0]._batch().runs.run(places, tokens, pasts, adapters)
                for session, token in zip(sessions, tokens, strict=True):
                    session._end_step(int(token))
                return rows
            except BaseException:
                for session in sessions:
                    session._fail_step()
                raise
            finally:
                for session in sessions:
                    session._end_append()

        return with_locks([session._lock for session in sorted(sessions, key=id)], run)

    def _begin_step(self) -> None:
        """Before a token is appended: the state is that of the tokens before it."""
        if self._history:
            self._history.leave_trial()
            self._catch_up(self.length)

    def _fail_step(self) -> None:
        if self._history:
            self._history.failed()

    def _end_step(self, token: int) -> None:
        self._tokens.append(token)
        self.length += 1
        if self._history:
            self._history.advanced(self.length, decoded=True)

    def _batch(self) -> BatchPlace:
        batch = self.engine.batch
        if batch is None:
            raise BadInput("this bundle's graph takes one sequence per run")
        return batch

    def keep(self, length: int) -> None:
        """End what `verify` began: forget all tokens after the first `length`.

        A recurrent state is computed again from the snapshot that was taken before.
        """
        with self._lock:
            self._forget_after(length)
            if self._history:
                self._catch_up(length, decoded=True)
                self._history.end_trial()

    def _forget_after(self, length: int) -> None:
        self._check_open()
        if not 0 <= length <= self.length:
            raise BadInput(f"cannot rewind to {length}: the cache holds {self.length} tokens")
        self.length = length
        del self._tokens[length:]
        if self._history:
            self._history.forget_after(length)

    def _append(self, count: int, logits: int, run: Callable[[], Logits]) -> Logits:
        self._check(count, logits)
        self._begin_append()
        try:
            return run()
        finally:
            self._end_append()

    def _begin_append(self) -> None:
        # A token that is not known here (an interrupt came between two lines) equals no other.
        self._tokens[self.length :] = [-1] * max(0, self.length - len(self._tokens))
        self.running.begin()

    def _end_append(self) -> None:
        self.running.end()
        if self._closing:
            self._release_once()

    def cancel_when(self, cancelled: Callable[[], bool] | None) -> None:
        """Call this during a prefill, between chunks and within long ones; None: nothing."""
        self._cancelled = cancelled or never

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`; the cache's memory stays as it is."""
        with self._lock:
            self._forget_after(length)
            if self._history:
                self._history.leave_trial()

    def use_adapter(self, adapter: LoadedAdapter | None) -> None:
        """Run with another adapter, or with none: all tokens are forgotten then.

        Raises:
            BadInput: a closed session, or an engine that takes no adapters.
        """
        with self._lock:
            if adapter is self._adapter:
                return
            if not isinstance(self.engine, SwitchesAdapters):
                raise BadInput("this engine takes no adapters; use a bundle for ONNX Runtime's CPU")
            self.rewind(0)
            self.engine.use_adapter(adapter)
            self._adapter = adapter

    def sibling(self) -> "EngineSession":
        """Another, empty sequence over the same weights, closed on its own."""
        self._check_open()
        return EngineSession(self.engine.sibling())

    def state(self, length: int) -> CacheRows:
        """The cache of the first `length` tokens; valid until the next call.

        Raises:
            BadInput: more tokens than it holds, or a closed session.
        """
        with self._lock:
            self._check_open()
            if not 0 <= length <= self.length:
                raise BadInput(f"the cache holds {self.length} tokens, not {length}")
            if not self._history:
                return self.engine.read_rows(length)
            if self._history.at == self.length:
                self._history.take()  # to return from `length` without running tokens again
            self._catch_up(length)
            return [*self.engine.read_rows(length), *self._history.state.read(length)]

    def restore(self, tokens: Sequence[int], state: CacheRows) -> None:
        """Hold these tokens, with the state that a session of the same bundle gave for them.

        Raises:
            ContextFull: the cache cannot hold them.
            BadInput: a state of another number of tokens, or a closed session.
        """
        with self._lock:
            self._check_open()
            rows, recurrent = state, []
            if self._history:
                count = self._history.state.count
                rows, recurrent = state[: len(state) - count], state[len(state) - count :]
            if any(one.shape[2] != len(tokens) for one in rows):
                raise BadInput(f"the state was not saved after these {len(tokens)} tokens")
            if len(tokens) > self.capacity:
                raise ContextFull(
                    f"{len(tokens)} tokens do not fit in a context of {self.capacity}"
                )
            self.length = 0
            self.engine.write_rows(rows)
            if self._history:
                self._history.replace(len(tokens), recurrent)
            self._tokens = [int(token) for token in tokens]
            self.length = len(self._tokens)

    def close(self) -> None:
        """Release the engine and the cache; a call that is running ends first, at its next chunk.

        May be repeated, and called from another thread.
        """
        self._closing = True
        with self._lock:
            if not self.running.here():  # else this is in `cancelled`, and its run will do it
                self._release_once()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, count: int, logits: int) -> None:
        self._check_open()
        if self.running.here():
            raise BadInput("the session is running; do not use it from within its own `cancel`")
        if count < 1 or logits < 1:
            raise BadInput(
                f"{count} tokens were given and the logits of {logits} requested; expected at "
                "least one of each"
            )
        if self.length + count > self.engine.capacity:
            raise ContextFull(
                f"{self.length} tokens and {count} more do not fit in a context of {self.capacity}"
            )

    def _check_open(self) -> None:
        if self._closing:
            raise BadInput("this model is closed; load it again")

    def _release_once(self) -> None:
        if not self._released:
            self._released = True
            self.engine.close()

    def _advance(self, tokens: Tokens, logits: int) -> Logits:
        start = self.length
        try:
            self._begin_step()
            if len(tokens) == 1:
                row = self.engine.run(tokens, start, logits=1, cancelled=never)
                self._end_step(int(tokens[0]))
                return row
            if self._history:
                self._history.take()  # a turn ends here
            rows = self._prefill(tokens, min(logits, len(tokens)))
        except BaseException:
            self.length = start
            self._fail_step()
            raise
        self._tokens += [int(token) for token in tokens]
        return rows

    def _verify(self, tokens: Tokens) -> Logits:
        start = self.length
        try:
            if self._history:
                self._catch_up(start)
                self._history.begin_trial(len(tokens))
            rows = self.engine.run(tokens, start, logits=len(tokens), cancelled=never)
        except BaseException:
            self._fail_step()
            raise
        self._tokens += [int(token) for token in tokens]
        self.length = start + len(tokens)
        if self._history:
            self._history.advanced(self.length, decoded=True)
        return rows

    def _catch_up(self, length: int, *, decoded: bool = False) -> None:
        """Bring the state that cannot be cut back to `length` tokens, by a snapshot and runs.

        The rows of keys and values of what is run again are written again, as they were.
        """
        assert self._history is not None
        at = self._history.return_to(length)
        while at < length:
            end = min(length, at + self.chunk)
            tokens = np.array(self._tokens[at:end], dtype=np.int64)
            self._history.failed()  # until the run has ended
            self.engine.run(tokens, at, logits=0, cancelled=self._stop_requested)
            self._history.advanced(end, decoded=decoded)
            at = end

    def _prefill(self, tokens: Tokens, logits: int) -> Logits:
        """Run tokens in chunks; `logits` is at most their number."""
        gathered: Logits | None = None
        for at in range(0, len(tokens), self.chunk):
            if at and self._stop_requested():
                self._cancel()
            chunk = np.ascontiguousarray(tokens[at : at + self.chunk], dtype=np.int64)
            # Tokens of this chunk and before it that are among the last `logits` of all.
            until = max(0, at + len(chunk) - (len(tokens) - logits))
            wanted = min(until, len(chunk))
            rows = self._run(chunk, wanted)
            self.length += len(chunk)
            if self._history:
                self._history.advanced(self.length, decoded=False)
            if wanted == logits:  # all of them are in the last chunk
                return rows
            if gathered is None and wanted:
                gathered = np.empty((logits, self.vocab_size), dtype=np.float32)
            if gathered is not None:
                gathered[until - wanted : until] = rows
        assert gathered is not None
        return gathered

    def _run(self, chunk: Tokens, logits: int) -> Logits:
        try:
            return self.engine.run(
                chunk, self.length, logits=logits, cancelled=self._stop_requested
            )
        except Cancelled:
            self._cancel()

    def _stop_requested(self) -> bool:
        return self._closing or self._cancelled()

    def _cancel(self) -> NoReturn:
        """Raise because nobody wants the rest: BadInput if the session was closed meanwhile."""
        self._check_open()
        raise Cancelled
