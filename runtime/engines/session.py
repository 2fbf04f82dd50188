"""What the generation loop needs of a session, and a session of its engine."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgelm.python310 import Self
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.recurrent_state import RecurrentState

Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
# The first rows of the cache, on the host: keys and values of the layers, alternating,
# [1, heads, rows, head_dim] each, in the cache's type (bf16 and fp8 as unsigned integers). Behind
# them, in a session's state, what cannot be cut back to fewer tokens (RecurrentState).
CacheRows = list[npt.NDArray[Any]]


class Cancelled(Exception):
    """A run was stopped because its result is no longer wanted."""


def never() -> bool:
    """The question whether to cancel, of a run that nothing cancels."""
    return False


class BatchedRuns(Protocol):
    """Runs that take a token of each of several sequences over the same weights."""

    def run(
        self,
        places: Sequence[int],
        tokens: Sequence[int],
        pasts: Sequence[int],
        adapters: Sequence[LoadedAdapter | None],
    ) -> list[Logits]:
        """Write a token into each of several caches, behind what comes before it there.

        Args:
            places: of the sequences' engines, all different.
            tokens: one for each.
            pasts: tokens of each cache that come before it.
            adapters: of each sequence; None where it has none.

        Returns:
            Logits [1, vocab_size] for each, which stay valid.

        Raises:
            DoesNotFit: there is no memory for it; nothing has changed.
        """


class TextRuns(Protocol):
    """Runs over several whole texts, whose keys and values nobody needs afterwards."""

    def run(self, texts: Sequence[Tokens], positions: Sequence[int]) -> Logits:
        """Run texts from their first tokens on, in one run; no cache of a sequence changes.

        Args:
            texts: their tokens, together with what fills shorter ones at most `chunk`.
            positions: of which tokens outputs are returned, the same of every text; what a position
                behind a text's end gives has no meaning.

        Returns:
            Outputs [len(texts), len(positions), width], which stay valid.

        Raises:
            DoesNotFit: there is no memory for it.
        """


class BatchPlace(NamedTuple):
    """How an engine's sequence takes part in runs with others: their common runs, and its place."""

    runs: BatchedRuns
    place: int


class Engine(Protocol):
    """A loaded graph and the memory of its key-value cache.

    `capacity` is how many tokens the cache holds, `chunk` how many one run takes. Which tokens are
    in the cache is the session's business.
    """

    capacity: int
    vocab_size: int
    chunk: int

    @property
    def recurrent(self) -> RecurrentState | None:
        """What cannot be cut back to fewer tokens; None where all layers hold all tokens."""

    @property
    def batch(self) -> BatchPlace | None:
        """How it runs together with its siblings; None where it cannot."""

    @property
    def texts(self) -> TextRuns | None:
        """How it runs several texts at once; None where it cannot, or for a language model."""

    @property
    def cache_bytes(self) -> int:
        """Memory that the key-value cache takes."""

    def run(
        self, tokens: Tokens, past: int, *, logits: int, cancelled: Callable[[], bool]
    ) -> Logits:
        """Write tokens into the cache behind the first `past`, over what was there.

        Args:
            tokens: int64 [T], 1 to `chunk` of them.
            past: tokens of the cache that come before them.
            logits: of how many of the last tokens logits are returned; 0 for none.
            cancelled: called during a long run; true stops it.

        Returns:
            Logits [logits, vocab_size], valid until the next run.

        Raises:
            Cancelled: `cancelled` returned true.
        """

    def sibling(self) -> "Engine":
        """Another cache over the same weights, closed on its own.

        Raises:
            BadInput: this engine can have only one.
            DoesNotFit: there is no memory for it.
        """

    def read_rows(self, count: int) -> CacheRows:
        """The first `count` rows of the layers that hold all tokens; valid until the next run."""

    def write_rows(self, rows: CacheRows) -> None:
        """Write rows that `read_rows` of the same bundle gave, over the first ones of the cache."""

    def close(self) -> None:
        """Release the graph and the cache; called once, and never during a run."""


class Session(Protocol):
    """A sequence of tokens on an engine.

    `length` tokens of the sequence are in the cache. `capacity` is how many it holds, `chunk` how
    many are processed at once.
    """

    length: int

    @property
    def adapter(self) -> LoadedAdapter | None:
        """The adapter that it runs with, and that its tokens ran with."""

    @property
    def capacity(self) -> int:
        """Tokens that the cache holds."""

    @property
    def vocab_size(self) -> int:
        """Logits per token."""

    @property
    def chunk(self) -> int:
        """Tokens that are processed at once."""

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

    def verify(self, tokens: Tokens) -> Logits:
        """Append tokens of which some may be dropped by `keep`; return the logits of all of them.

        The array is valid until the next call.
        """

    def keep(self, length: int) -> None:
        """End what `verify` began: forget all tokens after the first `length`."""

    def cancel_when(self, cancelled: Callable[[], bool] | None) -> None:
        """Call this during a prefill; `advance` raises `Cancelled` when it returns true."""

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""

    def use_adapter(self, adapter: LoadedAdapter | None) -> None:
        """Run with another adapter, or with none: all tokens are forgotten then."""

    def sibling(self) -> "Session":
        """Another, empty sequence over the same weights, closed on its own."""

    def state(self, length: int) -> CacheRows:
        """The cache of the first `length` tokens; valid until the next call."""

    def restore(self, tokens: Sequence[int], state: CacheRows) -> None:
        """Hold these tokens, with the state that a session of the same bundle gave for them."""

    def close(self) -> None:
        """Release the engine and the cache."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
