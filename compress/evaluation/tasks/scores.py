"""The score of an evaluation: a value, its standard error, and which direction is better."""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec


class Score(msgspec.Struct, frozen=True):
    """A mean over `n` items with its standard error."""

    value: float
    error: float | None
    n: int
    better: Literal["lower", "higher"]


def share(right: Sequence[bool]) -> Score:
    """The share of successes."""
    count = len(right)
    value = sum(right) / count
    return Score(value, math.sqrt(value * (1 - value) / count), count, "higher")
