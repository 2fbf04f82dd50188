"""Perplexity on a text, and how far a student is from its teacher on it."""

import math
from collections.abc import Callable

import torch

from edgelm.compress.distillation.head_loss import Head
from edgelm.compress.evaluation.tasks.scores import Score, share
from edgelm.compress.model import Model
from edgelm.compress.pruning.importance import spec_of

_ROWS = 4  # sequences at a time
_CHUNK = 256  # positions whose logits exist at a time


@torch.no_grad()
def perplexity(
    model: Model, tokens: torch.Tensor, progress: Callable[[int, int], None] | None = None
) -> Score:
    """Perplexity of the next token on int64 tokens [B, T]; the error is over sequences."""
    losses = []
    for part in tokens.split(_ROWS):
        for hidden, labels in _states(model, part):
            head = Head.of(model, spec_of(model))
            chunks = zip(hidden.split(_CHUNK), labels.split(_CHUNK), strict=True)
            total = sum(
                float(torch.nn.functional.cross_entropy(head.logits(a), b, reduction="sum"))
                for a, b in chunks
            )
            losses.append(total / len(labels))
        if progress:
            progress(len(losses), len(tokens))
    mean, error = _mean(losses)
    return Score(math.exp(mean), math.exp(mean) * error, len(losses), "lower")


@torch.no_grad()
def distance_to_teacher(
    student: Model,
    teacher: Model,
    tokens: torch.Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Score]:
    """KL(teacher ‖ student) in nats a token, and how often the likeliest token is the same."""
    divergences, same = [], []
    for part in tokens.split(_ROWS):
        pairs = zip(_states(student, part), _states(teacher, part), strict=True)
        for (ours, _), (theirs, _) in pairs:
            total, agree = 0.0, []
            heads = Head.of(student, spec_of(student)), Head.of(teacher, spec_of(teacher))
            for a, b in zip(ours.split(_CHUNK), theirs.split(_CHUNK), strict=True):
                log_q, log_p = (
                    head.logits(states).log_softmax(-1)
                    for head, states in zip(heads, (a, b), strict=True)
                )
                total += float((log_p.exp() * (log_p - log_q)).sum())
                agree += (log_q.argmax(-1) == log_p.argmax(-1)).tolist()
            divergences.append(total / len(ours))
            same += agree
        if progress:
            progress(len(divergences), len(tokens))
    mean, error = _mean(divergences)
    return {"kl": Score(mean, error, len(divergences), "lower"), "top1": share(same)}


def _states(model: Model, tokens: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per sequence the hidden states [T - 1, hidden] and next tokens [T - 1]."""
    tokens = tokens.to(model.device)
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    return list(zip(hidden[:, :-1], tokens[:, 1:], strict=True))


def _mean(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, math.sqrt(variance / len(values))
