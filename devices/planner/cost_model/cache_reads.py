"""How much of its cache an engine reads for a token: the one place that knows.

An engine whose kernels stop at the used length reads what it has seen; where a mask makes
attention read the whole tensor, every token costs as much as the last one, and a sliding window
saves nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

from edgelm.devices.planner.cost_model.work import Work

_FIRST_CAPACITY = 256


class CacheReads(NamedTuple):
    """What attention reads: positions per token, and whether windows shorten that."""

    positions: Callable[[float, int], float]
    windows: bool

    def depth(self, seen: float, context: int) -> float:
        """Positions that are read for a token after `seen` others."""
        return max(seen, self.positions(seen, context))

    def pairs(self, work: Work, tokens: float, context: int) -> float:
        """Query-key pairs that attention multiplies for a prompt, summed over widths."""
        if self is USED:
            return work.attention_pairs(tokens)
        return tokens * self.depth(tokens, context) * work.attention_width


def used(seen: float, context: int) -> float:
    """Kernels that stop at the used length."""
    return seen


def whole(seen: float, context: int) -> float:
    """A mask over a cache of fixed size."""
    return context


def grown(seen: float, context: int) -> float:
    """A mask over a cache that doubles when it is full."""
    capacity = float(_FIRST_CAPACITY)
    while capacity < seen:
        capacity *= 2
    return min(capacity, context)


USED = CacheReads(used, windows=True)
READS = {
    "ort": USED,
    "standard": CacheReads(grown, windows=False),
    "decomposed": CacheReads(grown, windows=False),
}
