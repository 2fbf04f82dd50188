"""Perplexities and ratios of them, of any loss: JSON has no infinity."""

import math

_MAX_LOSS = 600.0  # nats; e to this power leaves room for a standard error


def exponential(nats: float) -> float:
    """`exp`, finite for any loss: a broken model loses thousands of nats."""
    return math.exp(max(-_MAX_LOSS, min(nats, _MAX_LOSS)))


def ratio_text(ratio: float) -> str:
    """A ratio of perplexities with three decimals; that of a broken graph as a power of ten."""
    return f"×{ratio:.3f}" if ratio < 1e6 else f"×{ratio:.1e}"
