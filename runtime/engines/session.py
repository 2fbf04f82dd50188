"""What the generation loop asks of an engine, whichever it is."""

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class Session(Protocol):
    """A loaded graph and its key-value cache.

    `length` tokens of the sequence are in the cache. `capacity` is how many it holds, `chunk` how
    many are processed at once.
    """

    length: int
    capacity: int
    vocab_size: int
    chunk: int

    @property
    def tokens(self) -> list[int]:
        """The tokens in the cache, oldest first."""

    @property
    def cache_bytes(self) -> int:
        """Memory that the key-value cache takes."""

    def advance(self, tokens: Tokens, *, logits: int = 1) -> Logits:
        """Append tokens; return logits [P, vocab_size] of the last `logits` of them.

        The array is valid until the next call.
        """

    def cancel_when(self, cancelled: Callable[[], bool] | None) -> None:
        """Ask this during a prefill; `advance` raises `Cancelled` when it is true."""

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""

    def close(self) -> None:
        """Release the engine and the cache."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
