"""Perplexity on a text, and how closely a student agrees with its teacher on it."""

import math
from collections.abc import Callable

import torch

from edgelm.compress.evaluation.next_token import ROWS, compare, hidden_states, sequence_losses
from edgelm.compress.evaluation.tasks.scores import Score, share
from edgelm.compress.model import Model

Progress = Callable[[int, int], None]
"""Called with the number of sequences done, and of all."""


def perplexity(model: Model, tokens: torch.Tensor, progress: Progress | None = None) -> Score:
    """Perplexity of the next token on int64 tokens [B, T]; the error is over sequences."""
    losses: list[float] = []
    for part in tokens.split(ROWS):
        losses += sequence_losses(model, part)
        if progress:
            progress(len(losses), len(tokens))
    mean, error = _mean(losses)
    return Score(math.exp(mean), math.exp(mean) * error, len(losses), "lower")


def teacher_agreement(
    student: Model, teacher: Model, tokens: torch.Tensor, progress: Progress | None = None
) -> dict[str, Score]:
    """KL(teacher || student) in nats per token, and how often both rank the same token first."""
    divergences, same = list[float](), list[bool]()
    for part in tokens.split(ROWS):
        with torch.no_grad():
            states = hidden_states(teacher, part)
        for one in compare(student, teacher, states, part):
            divergences.append(one.kl)
            same += one.top1
        if progress:
            progress(len(divergences), len(tokens))
    mean, error = _mean(divergences)
    return {"kl": Score(mean, error, len(divergences), "lower"), "top1": share(same)}


def _mean(values: list[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, math.sqrt(variance / len(values))
