"""A caller's part in the choice of a token: functions from logits to logits.

A processor is called once per token, in the order given, with the model's raw logits: before bias,
penalties, temperature and truncation, so that all of these work on what it leaves. Minus infinity
forbids a token. Log-probabilities that a caller asks for are the model's own, before processors.

A plain function is enough. An object may have `advance`, too: it is called as soon as a token is
chosen, before the model runs, so that it can compute the next mask while the model runs. An object
with state belongs to one generation.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float32]

# (tokens so far: prompt and answer, logits [vocab_size]) -> logits [vocab_size]. Both may be
# changed in place: the tokens are a list of the call's own, the logits a copy for the processors.
LogitsProcessor = Callable[[Sequence[int], Row], Row]


@runtime_checkable
class AdvancingProcessor(Protocol):
    """A processor that gets each token as soon as it is chosen.

    Its call comes first, with the prompt as history; then `advance` and the call alternate. After
    the token that ends the answer (end of sequence, stop token) there is no further call.
    """

    def __call__(self, history: Sequence[int], logits: Row) -> Row:
        """Return the logits that the next token is chosen from."""

    def advance(self, token: int) -> None:
        """Take note of the chosen token; the model's run begins when this returns."""


class Constraint(AdvancingProcessor, Protocol):
    """A processor that says which text may be generated, and when it is complete.

    It may be given the model's own logits, and returns others in place of changing them.
    """

    @property
    def complete(self) -> bool:
        """Whether nothing may follow the tokens so far: the generation ends."""

    def forced(self) -> str:
        """The text that has to follow, as far as no other may; empty if that is not known yet."""
