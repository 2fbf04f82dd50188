"""Next-token loss, and KL divergence from a teacher: one implementation for every package.

The search, layer removal, training's held-out figures and the evaluation all measure with it.
Logits exist for a few positions at a time, whatever the vocabulary.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from edgelm.compress.distillation.loss.losses import forward_kl
from edgelm.compress.head import Head
from edgelm.compress.model import Model

ROWS = 4  # sequences that pass through a model at a time
_CHUNK = 128  # positions whose logits exist at a time


@dataclass(frozen=True, slots=True)
class Agreement:
    """How close a student is to its teacher on one sequence.

    kl: KL(teacher || student), nats per token. top1: whether both have the same most likely token,
    per position.
    """

    kl: float
    top1: tuple[bool, ...]


def mean_loss(model: Model, batches: Iterable[torch.Tensor]) -> float:
    """Negative log-likelihood of the next token on int64 tokens [B, T], in nats per token."""
    total, count = 0.0, 0
    for tokens in batches:
        predictions = tokens.shape[1] - 1
        for loss in sequence_losses(model, tokens):
            total += loss * predictions
            count += predictions
    return total / count


@torch.no_grad()
def sequence_losses(model: Model, tokens: torch.Tensor) -> Iterator[float]:
    """The mean next-token loss of each sequence of int64 tokens [B, T], in nats."""
    head = Head.from_model(model)
    for part in tokens.split(ROWS):
        states = hidden_states(model, part)
        for sequence, labels in zip(states, part[:, 1:].to(model.device), strict=True):
            chunks = zip(sequence.split(_CHUNK), labels.split(_CHUNK), strict=True)
            total = sum(
                float(torch.nn.functional.cross_entropy(head.logits(a), b, reduction="sum"))
                for a, b in chunks
            )
            yield total / len(labels)


@torch.no_grad()
def compare(
    student: Model, teacher: Model, states: torch.Tensor, tokens: torch.Tensor
) -> list[Agreement]:
    """The agreement on each sequence of int64 tokens [B, T].

    Args:
        student: in any type; the products of both heads are in the teacher's.
        teacher: whose head turns `states` into logits.
        states: the teacher's `hidden_states` on the tokens.
        tokens: what both models read.
    """
    dtype = teacher.dtype
    theirs, ours = Head.from_model(teacher), Head.from_model(student).to(dtype)
    # A student in training is in fp32, where its teacher often is not.
    with torch.autocast(student.device.type, dtype, enabled=student.dtype != dtype):
        pairs = zip(hidden_states(student, tokens), states, strict=True)
        return [_agreement(ours, a, theirs, b) for a, b in pairs]


def hidden_states(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """Final hidden states [B, T - 1, hidden] of all positions that predict a token of the row."""
    states = model.base_model(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state
    return states[:, :-1]  # type: ignore[no-any-return]


def _agreement(ours: Head, states: torch.Tensor, theirs: Head, target: torch.Tensor) -> Agreement:
    total, same = 0.0, list[bool]()
    for a, b in zip(states.split(_CHUNK), target.split(_CHUNK), strict=True):
        student, teacher = ours.logits(a), theirs.logits(b)
        same += (student.argmax(-1) == teacher.argmax(-1)).tolist()
        loss, _ = forward_kl(student, teacher)
        total += float(loss)
    return Agreement(total / len(states), tuple(same))
