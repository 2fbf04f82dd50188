"""How far students are from their teacher on rows that neither trains on."""

import torch

from edgelm.compress.distillation.head_loss import Head
from edgelm.compress.distillation.losses import forward_kl
from edgelm.compress.model import Model
from edgelm.compress.pruning.importance import spec_of

_ROWS = 4  # sequences at a time
_CHUNK = 128  # positions whose logits exist at a time


class HeldOut:
    """Rows to judge students on; the teacher runs over them once, for all students.

    Args:
        teacher: in any type, which is that of the head's products too.
        rows: int64 tokens [B, T].
    """

    def __init__(self, teacher: Model, rows: torch.Tensor) -> None:
        self.teacher = teacher
        self.head = Head.of(teacher, spec_of(teacher))
        self.parts = rows.split(_ROWS)
        with torch.no_grad():
            self.states = [self._states(teacher, part) for part in self.parts]

    def divergence(self, student: Model) -> float:
        """KL(teacher ‖ student) in nats a token."""
        spec, dtype = spec_of(student), self.teacher.dtype
        plain = Head.of(student, spec)
        head = Head(plain.weight.detach().to(dtype), plain.divisor, plain.softcap)
        total, count = 0.0, 0
        # A student in training is in fp32, where its teacher often is not.
        mixed = torch.autocast(student.device.type, dtype, enabled=student.dtype != dtype)
        with torch.no_grad(), mixed:
            for part, theirs in zip(self.parts, self.states, strict=True):
                ours = self._states(student, part)
                for a, b in zip(ours.split(_CHUNK), theirs.split(_CHUNK), strict=True):
                    loss, _ = forward_kl(head.logits(a), self.head.logits(b))
                    total += float(loss)
                count += len(ours)
        return total / count

    @staticmethod
    def _states(model: Model, tokens: torch.Tensor) -> torch.Tensor:
        """Final hidden states [B * (T - 1), hidden]: the last position predicts nothing."""
        hidden = model.model(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state
        return hidden[:, :-1].flatten(0, 1)  # type: ignore[no-any-return]


def held_out_divergence(student: Model, teacher: Model, rows: torch.Tensor) -> float:
    """KL(teacher ‖ student) in nats a token on int64 tokens [B, T]."""
    return HeldOut(teacher, rows).divergence(student)
