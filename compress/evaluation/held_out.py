"""How far students are from their teacher on rows that neither trains on."""

import torch

from edgelm.compress.evaluation.next_token import ROWS, compare, hidden_states
from edgelm.compress.model import Model, is_sharded
from edgelm.compress.run.distributed import process_index, sum_over_processes, world_size


class HeldOut:
    """Held-out rows; the teacher runs over them once, for all students.

    Args:
        teacher: in any type, which is also that of the head's products; may be sharded.
        rows: int64 tokens [B, T].
        shared: divide the rows over all processes, each of which has to make the same calls.
    """

    def __init__(self, teacher: Model, rows: torch.Tensor, *, shared: bool = False) -> None:
        self.teacher = teacher
        self.count = len(rows)
        own, of = (process_index(), world_size()) if shared else (0, 1)
        self.shared = of > 1
        parts = torch.arange(self.count).split(ROWS)
        self.parts = [(part.tolist(), rows[part]) for part in parts[own::of]]
        with torch.no_grad():
            self.states = [hidden_states(teacher, part) for _, part in self.parts]
            if self.shared and is_sharded(teacher):  # which all processes have to run equally often
                for _ in range(-(-len(parts) // of) - len(self.parts)):
                    hidden_states(teacher, rows[:1])

    def divergence(self, student: Model) -> float:
        """KL(teacher || student) in nats per token."""
        found = [0.0] * self.count
        for (indices, part), states in zip(self.parts, self.states, strict=True):
            for index, one in zip(
                indices, compare(student, self.teacher, states, part), strict=True
            ):
                found[index] = one.kl
        if self.shared:  # the others' rows are zero here, so that sums are exact
            found = sum_over_processes(found)
        return sum(found) / len(found)


def held_out_divergence(
    student: Model, teacher: Model, rows: torch.Tensor, *, shared: bool = False
) -> float:
    """KL(teacher || student) in nats per token on int64 tokens [B, T]; see `HeldOut`."""
    return HeldOut(teacher, rows, shared=shared).divergence(student)
