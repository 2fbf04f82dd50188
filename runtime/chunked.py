"""What a session does with tokens before its engine sees them: chunks, the length, rewinding."""

from types import TracebackType
from typing import Self

import numpy as np

from edgelm.bundle import CacheContract
from edgelm.errors import BadInput, ContextFull
from edgelm.runtime.session import Logits, Tokens


def check_capacity(cache: CacheContract, capacity: int) -> None:
    """Raise BadInput where a graph's cache is of another size than was asked for."""
    if cache.capacity not in (None, capacity):
        raise BadInput(
            f"the context of this bundle is fixed at {cache.capacity}, {capacity} was asked; "
            "export it again with --context"
        )


class ChunkedSession:
    """A session but for its engine, which `_step` and `_run` ask.

    Both find in `length` the tokens that came before theirs, and leave it as it is.
    """

    length: int
    capacity: int
    vocab_size: int
    chunk: int

    def _step(self, token: int) -> Logits:
        """Append one token; return its logits [1, vocab_size]."""
        raise NotImplementedError

    def _run(self, chunk: Tokens, wanted: Tokens, *, owed: bool) -> Logits:
        """Append at most `chunk` tokens; return logits of the rows `wanted`, counted from 0.

        Where they are not `owed` the graph computes them, and nobody reads them.
        """
        raise NotImplementedError

    def advance(self, tokens: Tokens, *, logits: int = 1) -> Logits:
        """Append tokens; return logits [P, vocab_size] of the last `logits` of them.

        The array is valid until the next call.

        Raises:
            ContextFull: the cache cannot hold them; it is left as it was.
        """
        count = len(tokens)
        if self.length + count > self.capacity:
            raise ContextFull(
                f"{self.length} tokens and {count} more do not fit in a context of {self.capacity}"
            )
        if count == 1 and logits == 1:
            row = self._step(int(tokens[0]))
            self.length += 1
            return row
        return self._prefill(tokens, logits)

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`; the cache's memory stays as it is."""
        if not 0 <= length <= self.length:
            raise BadInput(f"cannot rewind to {length}: the cache holds {self.length} tokens")
        self.length = length

    def close(self) -> None:
        """Release the engine and the cache."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _prefill(self, tokens: Tokens, logits: int) -> Logits:
        parts = []
        start = self.length
        try:
            for at in range(0, len(tokens), self.chunk):
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
