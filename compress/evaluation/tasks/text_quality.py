"""Perplexity on a text, and how closely a student agrees with its teacher on it."""

from collections.abc import Callable

import torch

from edgelm.compress.evaluation.metrics import Metric, mean_of, share_of_parts
from edgelm.compress.evaluation.next_token import ROWS, compare, hidden_states, sequence_losses
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.compress.model import Model

Progress = Callable[[int, int], None]
"""Called with the number of sequences done, and of all."""


def text_losses(
    model: Model, tokens: torch.Tensor, progress: Progress | None = None
) -> list[float]:
    """The next-token loss of each sequence of int64 tokens [B, T], in nats per token."""
    losses: list[float] = []
    for part in tokens.split(ROWS):
        losses += sequence_losses(model, part)
        if progress:
            progress(len(losses), len(tokens))
    return losses


def teacher_agreement(
    student: Model, teacher: Model, tokens: torch.Tensor, progress: Progress | None = None
) -> dict[str, Score]:
    """KL(teacher || student) in nats per token, and how often both rank the same token first."""
    found = agreement_metrics(student, teacher, tokens, progress)
    return {name: metric.score() for name, metric in found.items()}


def agreement_metrics(
    student: Model, teacher: Model, tokens: torch.Tensor, progress: Progress | None = None
) -> dict[str, Metric]:
    """`teacher_agreement` by sequence and by position."""
    # Positions of one sequence are not independent: the error is over sequences.
    divergences, same = list[float](), list[tuple[bool, ...]]()
    for part in tokens.split(ROWS):
        with torch.no_grad():
            states = hidden_states(teacher, part)
        for one in compare(student, teacher, states, part):
            divergences.append(one.kl)
            same.append(one.top1)
        if progress:
            progress(len(divergences), len(tokens))
    return {"kl": mean_of(divergences, "lower"), "top1": share_of_parts(same)}
