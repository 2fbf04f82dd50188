"""Student and teacher as one module: tokens in, losses out.

One module, so that wrappers for many GPUs (DDP, FSDP2) see a single forward pass, in which the
head's weight is gathered.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from edgelm.compress.distillation.loss.head_loss import LiveTeacher, Target, head_loss
from edgelm.compress.distillation.loss.hidden_loss import HiddenLoss, record_states, recorded_layers
from edgelm.compress.distillation.loss.layer_map import LayerMap, check_map
from edgelm.compress.distillation.loss.losses import Sampled, TopK
from edgelm.compress.distillation.loss.objective import Objective
from edgelm.compress.head import Head
from edgelm.compress.model import Model, spec_of


@dataclass(frozen=True)
class Losses:
    """Losses of a batch, per token: the total to minimize, and its parts without gradient."""

    total: torch.Tensor
    divergence: torch.Tensor
    cross_entropy: torch.Tensor
    hidden: torch.Tensor


class Distiller(nn.Module):
    """A student in training; the teacher is not a submodule: it is never trained, moved or saved.

    Args:
        student: trained.
        teacher: in any type; None for cached rows or cross-entropy only.
        objective: the loss on logits.
        layer_map: pairs of layers for the loss on hidden states; empty for none. Its weight is
            dynamic: always equal to the loss on logits (Minitron, section 3).
        compute: type of the head's products.
    """

    def __init__(
        self,
        student: Model,
        teacher: Model | None,
        objective: Objective,
        *,
        layer_map: LayerMap = (),
        compute: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)  # in a tuple: not registered as a submodule
        self.objective = objective
        self.compute = compute
        self.spec = spec_of(student)
        self.hidden: HiddenLoss | None = None
        if layer_map:
            assert teacher is not None
            theirs = spec_of(teacher)
            check_map(layer_map, self.spec.num_hidden_layers, theirs.num_hidden_layers)
            self.hidden = HiddenLoss(layer_map, self.spec.hidden_size, theirs.hidden_size)

    def tie_weights(self) -> None:
        """Tie head and embedding again, if they were: FSDP2 loads them separately."""
        self.student.tie_weights()

    @property
    def teacher(self) -> Model | None:
        """The teacher, if it is live."""
        return self._teacher[0]

    def recorded_layers(self) -> set[nn.Module]:
        """Decoder layers of student and teacher inside which hidden states are recorded."""
        if self.hidden is None or self.teacher is None:
            return set()
        ours, theirs = zip(*self.hidden.pairs, strict=True)
        return recorded_layers(self.student, ours) | recorded_layers(self.teacher, theirs)

    def forward(
        self,
        tokens: torch.Tensor,
        cached: TopK | Sampled | None = None,
        first: int = 1,
        positions: torch.Tensor | None = None,
    ) -> Losses:
        """Losses on int64 tokens [B, T]; the last position of a row predicts nothing.

        `cached` holds the teacher's rows [B * (T - 1), k] where it does not run itself. `first` is
        the first token of a row that is predicted. `positions` [B, T] restart where a document
        begins, and attention then stays within it; None is one document per row.
        """
        pairs = self.hidden.pairs if self.hidden else ()
        with ExitStack() as stack:
            ours = stack.enter_context(record_states(self.student, [pair[0] for pair in pairs]))
            states = _states(self.student, tokens, positions)
            target: Target | None = cached
            theirs = None
            if cached is None and self.teacher is not None:
                theirs = stack.enter_context(
                    record_states(self.teacher, [pair[1] for pair in pairs])
                )
                target = self._live(tokens, first, positions)
            hidden = states.new_zeros(())
            if self.hidden is not None and theirs is not None:
                hidden = self.hidden(ours, theirs)
        labels = tokens[:, first:].flatten()
        loss, divergence, entropy = head_loss(
            states[:, first - 1 : -1].flatten(0, 1),
            Head.from_model(self.student),
            target,
            labels,
            self.objective,
            compute=self.compute,
        )
        total = loss
        if self.hidden is not None:
            total = loss + hidden * (loss.detach() / hidden.detach().clamp_min(1e-6))
        return Losses(total, divergence, entropy, hidden.detach())

    def _live(
        self, tokens: torch.Tensor, first: int, positions: torch.Tensor | None
    ) -> LiveTeacher:
        teacher = self.teacher
        assert teacher is not None
        device = tokens.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            hidden = _states(teacher, tokens, positions)
        return LiveTeacher(hidden[:, first - 1 : -1].flatten(0, 1), Head.from_model(teacher))


def _states(model: Model, tokens: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Final hidden states; transformers builds a block-diagonal mask from restarting positions."""
    over = {} if positions is None else {"position_ids": positions}
    states: torch.Tensor = model.base_model(
        input_ids=tokens, use_cache=False, **over
    ).last_hidden_state
    return states
