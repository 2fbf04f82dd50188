"""Which tokens may come next in a text that must match a grammar.

The mask of a step depends on the tokens so far alone, so it is computed in a thread while the
engine runs the step; llguidance releases the interpreter's lock.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelm.errors import BadInput
from edgelm.reasons import one_line

_NO_DETAILS = "<non-verbose/>"  # in llguidance's messages
Row = npt.NDArray[np.float32]
_Mask = npt.NDArray[np.bool_]


class TokenMask:
    """A logits processor: removes the tokens that the grammar does not allow next.

    Args:
        matcher: an `llguidance.LLMatcher` of its own.
        vocab_size: of the logits; what the tokenizer has beyond them cannot be chosen.
    """

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._complete = False
        self._next = self._submit()

    @property
    def complete(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        return self._complete

    def __call__(self, history: Sequence[int], logits: Row) -> Row:
        """Logits [vocab_size] with minus infinity for what may not come next.

        Raises:
            BadInput: the grammar is too complex at this place, or no token can continue the text.
        """
        return np.where(self._next.result(), logits, np.float32(-np.inf))

    def advance(self, token: int) -> None:
        """Add the token that was chosen, and begin with the next mask.

        Raises:
            BadInput: the grammar does not allow it.
        """
        self._next.cancel()
        if not self._matcher.consume_token(token):
            raise self._failure(f"token {token} does not match it")
        self._complete = self._matcher.is_stopped()
        if not self._complete:
            self._next = self._submit()

    def _submit(self) -> "Future[_Mask]":
        return _workers().submit(self._mask)

    def _mask(self) -> _Mask:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise self._failure("it failed")
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
        if not allowed.any() and not self._matcher.is_accepting():
            raise BadInput(
                "no token of this model's vocabulary can continue the text as response_format "
                "requires; change the schema or the grammar"
            )
        return allowed

    def _failure(self, otherwise: str) -> BadInput:
        error = one_line(self._matcher.get_error().partition(_NO_DETAILS)[0]) or otherwise
        if error.startswith("NoExtension"):
            error = "no text of this model's tokens matches it"
        return BadInput(f"response_format cannot be followed: {error}")


@functools.cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix="edgelm-grammar")
