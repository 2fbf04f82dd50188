"""How activations become scores of importance."""

from dataclasses import dataclass
from typing import Literal

Reduction = Literal["mean", "l2", "var"]


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How activations [batch, sequence] become one score: over the sequence, then over the batch.

    mean: mean magnitude; l2: root of the sum of squares; var: variance.
    """

    sequence: Reduction = "mean"
    batch: Reduction = "l2"
