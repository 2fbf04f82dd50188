"""How many drafted tokens a target accepts, on text that neither model was trained on.

Leviathan et al. 2022 (arXiv 2211.17192): sampling at temperature 1, a drafted token is accepted
with the probability sum(min(p, q)) of the two distributions. Greedily, tokens are accepted up to
the first that the target would not have chosen; with one more of its own, a verification gives
`accepted + 1` tokens.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from edgelm.checkpoint.student import Figure
from edgelm.compress.drafting.settings import starts
from edgelm.compress.evaluation.next_token import ROWS, hidden_states
from edgelm.compress.head import Head
from edgelm.compress.model import Model, spec_of

_CHUNK = 128  # positions whose logits exist at a time


@torch.no_grad()
def acceptance(
    draft: Model,
    target: Model,
    rows: torch.Tensor | Sequence[torch.Tensor],
    drafted: int,
    progress: Callable[[int, int], None] = lambda *_: None,
    first: Sequence[int] = (),
) -> dict[str, Figure]:
    """The chance that a sampled token is accepted, and the number of tokens per verification.

    Args:
        draft: with the target's tokenizer, on its device.
        target: whose output the text shall be.
        rows: held-out tokens, int64 [B, T]; or one row [T] for each text.
        drafted: tokens between two verifications.
        progress: called with the rows done, and all.
        first: for each text, where the tokens begin that are to be drafted: its answer.
    """
    chances, lengths = list[float](), list[float]()
    parts = rows.split(ROWS) if isinstance(rows, torch.Tensor) else [row[None] for row in rows]
    begins = first or [0] * len(parts)
    for part, begin in zip(parts, begins, strict=True):
        chances += _chances(draft, target, part, begin)
        lengths += _accepted(draft, target, part, drafted, begin)
        progress(len(chances), len(rows))
    return {
        "acceptance of a token": _figure(chances, is_share=True),
        f"tokens per verification, {drafted} drafted": _figure([1 + one for one in lengths]),
    }


def _chances(draft: Model, target: Model, tokens: torch.Tensor, first: int) -> list[float]:
    """The mean of sum(min(p, q)) over each row's positions that predict token `first` and on."""
    heads = Head.from_model(draft), Head.from_model(target)
    before = max(0, first - 1)
    states = tuple(hidden_states(one, tokens)[:, before:] for one in (draft, target))
    found = []
    for ours, theirs in zip(*states, strict=True):
        total = 0.0
        for a, b in zip(ours.split(_CHUNK), theirs.split(_CHUNK), strict=True):
            p, q = heads[0].logits(a).softmax(-1), heads[1].logits(b).softmax(-1)
            total += float(torch.minimum(p, q).sum())
        found.append(total / len(ours))
    return found


def _accepted(
    draft: Model, target: Model, tokens: torch.Tensor, drafted: int, first: int
) -> list[float]:
    """The mean number of greedily drafted tokens that the target accepts, for each row."""
    ours, theirs = _Reader(draft), _Reader(target)
    counts = []
    for start in starts(tokens.shape[1], drafted, first):
        text = tokens[:, :start].to(target.device)
        guess = ours.read(text).greedy(drafted)
        wanted = theirs.read(text).choices(guess)
        counts.append((guess == wanted).long().cumprod(1).sum(1).float())
    return torch.stack(counts).mean(0).tolist()


class _Reader:
    """A model that has read the beginning of rows of tokens, which may grow.

    What it read is kept in its cache, which a continuation copies. Layers with a recurrent state
    read everything again: transformers starts several tokens from an empty state.
    """

    def __init__(self, model: Model) -> None:
        self._model, self._head = model, Head.from_model(model)
        self._again = spec_of(model).is_hybrid
        self._cache: Any = None
        self._text = torch.empty(0, 0, dtype=torch.long)

    def read(self, text: torch.Tensor) -> "_Reader":
        """Read int64 tokens [B, T] that begin with those read before."""
        new = text[:, max(0, self._text.shape[1] - 1) : -1]
        if new.shape[1] and not self._again:
            self._cache = self._run(new, self._cache).past_key_values
        self._text = text
        return self

    def greedy(self, count: int) -> torch.Tensor:
        """The most likely continuation [B, count]."""
        cache = copy.deepcopy(self._cache)
        tokens = self._text[:, -1:]
        for _ in range(count):
            run = self._run(self._text_and(tokens) if self._again else tokens[:, -1:], cache)
            cache = run.past_key_values
            tokens = torch.cat([tokens, self._best(run.last_hidden_state[:, -1:])], 1)
        return tokens[:, 1:]

    def choices(self, tokens: torch.Tensor) -> torch.Tensor:
        """The most likely token at the place of each of the next tokens [B, N]."""
        before = torch.cat([self._text[:, -1:], tokens[:, :-1]], 1)
        before = self._text_and(before) if self._again else before
        states = self._run(before, copy.deepcopy(self._cache)).last_hidden_state
        return self._best(states[:, -tokens.shape[1] :])

    def _text_and(self, tokens: torch.Tensor) -> torch.Tensor:
        """All tokens, where `tokens` begin with the last one that was read."""
        return torch.cat([self._text[:, :-1], tokens], 1)

    def _run(self, tokens: torch.Tensor, cache: Any) -> Any:
        over = {} if self._again else {"past_key_values": cache}
        return self._model.base_model(input_ids=tokens, use_cache=not self._again, **over)

    def _best(self, states: torch.Tensor) -> torch.Tensor:
        return self._head.logits(states).argmax(-1)


def _figure(values: Sequence[float], *, is_share: bool = False) -> Figure:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return Figure(mean, math.sqrt(variance / len(values)), len(values), "higher", is_share)
