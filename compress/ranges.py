"""Ranges that settings are checked against where they are read from a file or a command line.

A bound on one side refuses NaN and infinity too.
"""

from typing import Annotated

from msgspec import Meta

_LARGE = 10**15  # beyond any number of tokens, rows or bytes, and exact as a float

Count = Annotated[int, Meta(ge=1, le=_LARGE)]
RowLength = Annotated[int, Meta(ge=2, le=_LARGE)]
"""Tokens of a row; the first one is not predicted."""
CountOrZero = Annotated[int, Meta(ge=0, le=_LARGE)]
Layer = Annotated[int, Meta(ge=0, le=10**6)]
LayerOrEmbedding = Annotated[int, Meta(ge=-1, le=10**6)]
"""A layer number; -1 is the embeddings' output."""
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""What numpy, torch and Python's random all take."""
Positive = Annotated[float, Meta(gt=0, le=float(_LARGE))]
NotNegative = Annotated[float, Meta(ge=0, le=float(_LARGE))]
Share = Annotated[float, Meta(gt=0, le=1)]
Part = Annotated[float, Meta(ge=0, le=1)]
