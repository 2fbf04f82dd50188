"""What a student is trained to minimize, row by row of logits."""

from dataclasses import dataclass
from typing import Literal

LossKind = Literal["forward-kl", "reverse-kl", "jsd"]


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss per row: divergence from the teacher, cross-entropy, or a mix."""

    kind: LossKind = "forward-kl"
    temperature: float = 1.0
    cross_entropy: float = 0.0
    """Share of the cross-entropy with the next token: 0 is the teacher only, 1 is no teacher."""
