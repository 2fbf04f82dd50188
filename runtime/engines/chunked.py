"""What a session does with tokens before its engine sees them: chunks, the length, rewinding.

It also keeps its state whole: calls from several threads wait for each other, a call that fails or
is interrupted leaves the cache as it was, and closing waits for the engine to stop.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

from edgelm.bundle import CacheContract
from edgelm.errors import BadInput, ContextFull
from edgelm.runtime.engines.session import Logits, Tokens


def check_capacity(cache: CacheContract, capacity: int) -> None:
    """Raise BadInput where a graph's cache is of another size than was asked for."""
    if cache.capacity not in (None, capacity):
        raise BadInput(
            f"the context of this bundle is fixed at {cache.capacity}, {capacity} was asked; "
            "export it again with --context"
        )


class Cancelled(Exception):
    """What `advance` raises when the question set by `cancel_when` was answered with yes."""


def _never() -> bool:
    return False


class ChunkedSession:
    """A session but for its engine, which `_step`, `_run` and `_release` ask.

    The first two find in `length` the tokens that came before theirs, and leave it as it is.
    """

    length: int
    capacity: int
    vocab_size: int
    chunk: int

    def __init__(self) -> None:
        self.length = 0
        self._tokens: list[int] = []
        self._lock = threading.RLock()
        self._cancelled: Callable[[], bool] = _never
        self._advancing = self._closing = self._released = False

    @property
    def tokens(self) -> list[int]:
        """The tokens in the cache, oldest first."""
        return self._tokens[: self.length]

    def _step(self, token: int) -> Logits:
        """Append one token; return its logits [1, vocab_size]."""
        raise NotImplementedError

    def _run(self, chunk: Tokens, wanted: Tokens, *, owed: bool) -> Logits:
        """Append at most `chunk` tokens; return logits of the rows `wanted`, counted from 0.

        Where they are not `owed` the graph computes them, and nobody reads them.
        """
        raise NotImplementedError

    def _release(self) -> None:
        """Release the engine and the cache; called once, and never while the engine runs."""
        raise NotImplementedError

    def advance(self, tokens: Tokens, *, logits: int = 1) -> Logits:
        """Append tokens; return logits [P, vocab_size] of the last `logits` of them (or of all).

        The array is valid until the next call.

        Raises:
            ContextFull: the cache cannot hold them; it is left as it was.
            BadInput: no tokens, logits of none, or a closed session.
            Cancelled: `cancel_when` said so; the cache is left as it was.
        """
        with self._lock:
            self._check(len(tokens), logits)
            # A token that is not known here (an interrupt came between two lines) equals no other.
            self._tokens[self.length :] = [-1] * max(0, self.length - len(self._tokens))
            self._advancing = True
            try:
                rows = self._advance(tokens, logits)
            finally:
                self._advancing = False
                if self._closing:
                    self._release_once()
            return rows

    def cancel_when(self, cancelled: Callable[[], bool] | None) -> None:
        """Ask this during a prefill, between chunks and within long ones; None: ask nobody."""
        self._cancelled = cancelled or _never

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`; the cache's memory stays as it is."""
        with self._lock:
            self._check_open()
            if not 0 <= length <= self.length:
                raise BadInput(f"cannot rewind to {length}: the cache holds {self.length} tokens")
            self.length = length
            del self._tokens[length:]

    def close(self) -> None:
        """Release the engine and the cache; a call that is running ends first, at its next chunk.

        May be repeated, and called from another thread.
        """
        self._closing = True
        with self._lock:
            if not self._advancing:  # else this is its own thread, in `cancelled`: it will do it
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
        if self._advancing:
            raise BadInput("the session is running; do not use it from within its own `cancel`")
        if count < 1 or logits < 1:
            raise BadInput(
                f"{count} tokens were given and the logits of {logits} requested; expected at "
                "least one of each"
            )
        if self.length + count > self.capacity:
            raise ContextFull(
                f"{self.length} tokens and {count} more do not fit in a context of {self.capacity}"
            )

    def _check_open(self) -> None:
        if self._closing:
            raise BadInput("this model is closed; load it again")

    def _release_once(self) -> None:
        if not self._released:
            self._released = True
            self._release()

    def _advance(self, tokens: Tokens, logits: int) -> Logits:
        if len(tokens) == 1 and logits == 1:
            row = self._step(int(tokens[0]))
            self._tokens.append(int(tokens[0]))
            self.length += 1
            return row
        rows = self._prefill(tokens, logits)
        self._tokens += [int(token) for token in tokens]
        return rows

    def _stop_asked(self) -> bool:
        return self._closing or self._cancelled()

    def _ask(self) -> None:
        """Between two chunks: raise if nobody wants the rest."""
        self._check_open()
        if self._cancelled():
            raise Cancelled

    def _prefill(self, tokens: Tokens, logits: int) -> Logits:
        parts = []
        start = self.length
        try:
            for at in range(0, len(tokens), self.chunk):
                if at:
                    self._ask()
                chunk = np.ascontiguousarray(tokens[at : at + self.chunk], dtype=np.int64)
                # Rows whose logits are wanted, counted from this chunk's first token; a chunk
                # that owes none still computes one, since a graph output cannot be empty.
                first = max(0, len(tokens) - logits - at)
                wanted = np.arange(min(first, len(chunk) - 1), len(chunk), dtype=np.int64)
                owed = first < len(chunk)
                rows = self._run(chunk, wanted, owed=owed)
                self.length += len(chunk)
                if owed:
                    parts.append(rows)
        except BaseException:
            self.length = start
            raise
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
