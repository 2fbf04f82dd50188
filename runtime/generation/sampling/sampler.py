"""From logits to the next token: the caller's processors, the transforms, and the draw."""

from collections.abc import Sequence

import numpy as np

from edgelm.errors import BadBundle, BadInput
from edgelm.runtime.generation.sampling.logits_processor import (
    AdvancingProcessor,
    Constraint,
    LogitsProcessor,
    Row,
)
from edgelm.runtime.generation.sampling.settings import Sampling
from edgelm.runtime.generation.sampling.transforms import relative_weights, transforms


class Sampler:
    """Chooses tokens; holds the random state of one generation.

    Args:
        sampling: the settings.
        prompt_length: tokens of the history that were given, not generated.
        processors: the caller's own, before all others.
        constraint: comes behind them, so that none can allow what it forbids.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        prompt_length: int = 0,
        processors: Sequence[LogitsProcessor] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self._processors = tuple(processors)
        self._constraint = constraint
        self._advancing = [one for one in processors if isinstance(one, AdvancingProcessor)]
        self._advancing += [] if constraint is None else [constraint]
        self._greedy = sampling.temperature == 0
        self._random = np.random.default_rng(sampling.seed)
        self._transforms = transforms(sampling, prompt_length)

    def __call__(self, logits: Row, history: Sequence[int]) -> int:
        """Return the next token for logits [vocab_size].

        Args:
            logits: as the model gave them.
            history: the tokens so far; from call to call it may only grow.

        Raises:
            BadBundle: logits that are not numbers.
            BadInput: settings that forbid every token.
        """
        _check_logits(logits)
        row = self._processed(logits, history)
        if row is not logits:
            _check_some(row)  # transforms expect a token
        row = self.transformed(row, history)
        _check_some(row)
        token = self._choose(row)
        for processor in self._advancing:
            processor.advance(token)
        return token

    def _processed(self, logits: Row, history: Sequence[int]) -> Row:
        row = logits.copy() if self._processors else logits
        for processor in self._processors:
            # Each has the tokens to itself: what one does to its list changes no text.
            row = _as_row(processor(list(history), row), len(logits))
        return row if self._constraint is None else self._constraint(history, row)

    def _choose(self, row: Row) -> int:
        if self._greedy:
            return int(row.argmax())
        if row.min() > -np.inf:
            return self._draw(row)
        candidates = np.flatnonzero(row > -np.inf)
        return int(candidates[self._draw(row[candidates])])

    def _draw(self, row: Row) -> int:
        cumulative = relative_weights(row)
        np.cumsum(cumulative, out=cumulative)
        draw = self._random.random() * cumulative[-1]
        # Against rounding, the last candidate's share ends where the draw's range ends.
        return int(np.searchsorted(cumulative[:-1], draw, side="right"))

    def transformed(self, logits: Row, history: Sequence[int]) -> Row:
        """Logits after all transforms."""
        for transform in self._transforms:
            logits = transform(logits, history)
        return logits


def _as_row(returned: object, size: int) -> Row:
    """What a processor returned, as logits [size]."""
    if (
        not isinstance(returned, np.ndarray)
        or returned.shape != (size,)
        or returned.dtype.kind not in "fiu"
    ):
        shown = type(returned).__name__
        if isinstance(returned, np.ndarray):
            shown = f"an array {list(returned.shape)} of {returned.dtype}"
        raise BadInput(
            f"a logits processor returned {shown}, expected the logits: an array of {size} numbers"
        )
    with np.errstate(over="ignore"):  # becomes infinite, which is refused where it matters
        row: Row = returned.astype(np.float32, copy=False)
    return row


def _check_some(row: Row) -> None:
    peak = row.max()
    if not np.isfinite(peak):
        raise BadInput(f"the sampling settings leave no token (highest: {peak}); allow one")


def _check_logits(row: Row) -> None:
    peak = row.max()  # NaN if any is
    if not np.isfinite(peak):
        raise BadBundle(
            f"the model's logits are not numbers (their maximum is {peak}): its weights are "
            "damaged, or its 16-bit activations overflow; export it again, with --precision fp32 "
            "if the source model's logits are finite"
        )
