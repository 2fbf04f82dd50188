"""Rows that the student writes itself, for the teacher to score.

On-policy distillation (Agarwal et al. 2023, GKD, arXiv 2306.13649; Gu et al. 2023, MiniLLM, arXiv
2306.08543): trained on given text alone, a student never sees its own mistakes. In some steps the
second half of every row is therefore sampled from the student, and the loss covers that half. No
gradient passes through the sampling.
"""

from collections.abc import Sequence

import numpy as np
import torch

from edgelm.compress.head import Head
from edgelm.compress.model import Model


def is_on_policy(step: int, share: float) -> bool:
    """Whether the student writes the rows of a step: a share of the steps, spread evenly."""
    return int((step + 1) * share) > int(step * share)


def prompt_length(length: int) -> int:
    """How many tokens of a row are given; the student writes the others."""
    return max(1, length // 2)


@torch.no_grad()
def continued(
    student: Model, tokens: torch.Tensor, step: int, rows: Sequence[int], seed: int
) -> torch.Tensor:
    """Rows whose second half is the student's own, at temperature 1.

    A row's text depends on seed, step, row and student, and not on the other rows: it is the
    same however they are divided over processes.

    Args:
        student: on the tokens' device.
        tokens: int64 [B, T].
        step: of the training.
        rows: indices of the rows in the data, [B].
        seed: of the run.
    """
    from transformers import DynamicCache

    given, length = prompt_length(tokens.shape[1]), tokens.shape[1]
    chances = np.stack(
        [np.random.default_rng((seed, step, row)).random(length - given) for row in rows]
    )
    where = torch.from_numpy(chances).to(tokens.device, torch.float32)
    training = student.training
    student.eval()
    try:
        cache, head = DynamicCache(config=student.config), Head.from_model(student)
        written = [tokens[:, :given]]
        for position in range(length - given):
            states = student.base_model(
                input_ids=written[-1], past_key_values=cache, use_cache=True
            ).last_hidden_state
            logits = head.logits(states[:, -1].to(head.weight.dtype)).float()
            written.append(_drawn(logits, where[:, position, None]))
    finally:
        student.train(training)
    return torch.cat(written, 1)


def _drawn(logits: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The token [B, 1] at which the summed probabilities of logits [B, vocab] pass `where`."""
    summed = logits.softmax(-1).cumsum(-1)
    # Their total may be a little below or above 1.
    found = torch.searchsorted(summed, where * summed[:, -1:], right=True)
    return found.clamp(max=logits.shape[1] - 1)
