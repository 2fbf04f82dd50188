"""The score of an evaluation: a value, its standard error, and which direction is better."""

from typing import Literal

import msgspec


class Score(msgspec.Struct, frozen=True):
    """A mean over `n` items with its standard error.

    `is_share`: it is a part of a whole, from 0 to 1, which tables show in percent.
    """

    value: float
    error: float | None
    n: int
    better: Literal["lower", "higher"]
    is_share: bool = False
