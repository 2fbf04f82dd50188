"""How many drafted tokens a target accepts, on text that neither model was trained on.

Leviathan et al. 2022 (arXiv 2211.17192): sampling at temperature 1, a drafted token is accepted
with the probability sum(min(p, q)) of the two distributions. Greedily, tokens are accepted up to
the first that the target would not have chosen; with one more of its own, a verification gives
`accepted + 1` tokens.
"""

import math
from collections.abc import Callable, Sequence

import torch

from edgelm.checkpoint.student import Figure
from edgelm.compress.evaluation.next_token import ROWS, hidden_states
from edgelm.compress.head import Head
from edgelm.compress.model import Model

_STARTS = 8  # places of a row where drafting starts
_CHUNK = 128  # positions whose logits exist at a time


@torch.no_grad()
def acceptance(
    draft: Model,
    target: Model,
    rows: torch.Tensor,
    drafted: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Figure]:
    """The chance that a sampled token is accepted, and the number of tokens per verification.

    Args:
        draft: with the target's tokenizer, on its device.
        target: whose output the text shall be.
        rows: held-out tokens, int64 [B, T].
        drafted: tokens between two verifications.
        progress: called with the rows done, and all.
    """
    chances, lengths = list[float](), list[float]()
    for part in rows.split(ROWS):
        chances += _chances(draft, target, part)
        lengths += _accepted(draft, target, part, drafted)
        progress(len(chances), len(rows))
    return {
        "acceptance of a token": _figure(chances),
        f"tokens per verification, {drafted} drafted": _figure([1 + one for one in lengths]),
    }


def _chances(draft: Model, target: Model, tokens: torch.Tensor) -> list[float]:
    """The mean of sum(min(p, q)) over each row's positions."""
    heads = Head.from_model(draft), Head.from_model(target)
    states = (hidden_states(draft, tokens), hidden_states(target, tokens))
    found = []
    for ours, theirs in zip(*states, strict=True):
        total = 0.0
        for a, b in zip(ours.split(_CHUNK), theirs.split(_CHUNK), strict=True):
            p, q = heads[0].logits(a).softmax(-1), heads[1].logits(b).softmax(-1)
            total += float(torch.minimum(p, q).sum())
        found.append(total / len(ours))
    return found


def _accepted(draft: Model, target: Model, tokens: torch.Tensor, drafted: int) -> list[float]:
    """The mean number of greedily drafted tokens that the target accepts, for each row."""
    length = tokens.shape[1]
    counts = []
    for start in starts(length, drafted):
        text = tokens[:, :start].to(target.device)
        for _ in range(drafted):
            text = torch.cat([text, _greedy(draft, text, 1)], 1)
        wanted = _greedy(target, text[:, :-1], drafted)
        same = (text[:, start:] == wanted).long()
        counts.append(same.cumprod(1).sum(1).double())
    return torch.stack(counts).mean(0).tolist()


def starts(length: int, drafted: int) -> list[int]:
    """Up to eight places of a row where drafting starts, spread evenly."""
    last = max(1, length - drafted)
    return sorted({max(1, last * (index + 1) // _STARTS) for index in range(_STARTS)})


def _greedy(model: Model, tokens: torch.Tensor, count: int) -> torch.Tensor:
    """The most likely next tokens [B, count] behind the last positions of int64 tokens [B, T]."""
    states = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, -count:]
    return Head.from_model(model).logits(states).argmax(-1)


def _figure(values: Sequence[float]) -> Figure:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return Figure(mean, math.sqrt(variance / len(values)), len(values), "higher")
