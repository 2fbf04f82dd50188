"""How far students are from their teacher on rows that neither trains on."""

import torch

from edgelm.compress.evaluation.next_token import ROWS, compare, hidden_states
from edgelm.compress.model import Model


class HeldOut:
    """Held-out rows; the teacher runs over them once, for all students.

    Args:
        teacher: in any type, which is also that of the head's products.
        rows: int64 tokens [B, T].
    """

    def __init__(self, teacher: Model, rows: torch.Tensor) -> None:
        self.teacher = teacher
        self.parts = rows.split(ROWS)
        with torch.no_grad():
            self.states = [hidden_states(teacher, part) for part in self.parts]

    def divergence(self, student: Model) -> float:
        """KL(teacher || student) in nats per token."""
        found = [
            one.kl
            for part, states in zip(self.parts, self.states, strict=True)
            for one in compare(student, self.teacher, states, part)
        ]
        return sum(found) / len(found)


def held_out_divergence(student: Model, teacher: Model, rows: torch.Tensor) -> float:
    """KL(teacher || student) in nats per token on int64 tokens [B, T]."""
    return HeldOut(teacher, rows).divergence(student)
