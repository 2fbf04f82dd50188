"""Sampled answers of a source: all prompts in one batch, over one cache.

Prompts of one chat template begin alike, so their common beginning is run once; answers that ended
leave the batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch

from edgelm.devices.detection.memory import available_bytes
from edgelm.export.gate import prompts as asked
from edgelm.export.gate.answers import SEED, CoupledSampler, SampledAnswer
from edgelm.export.source.reference import Reference
from edgelm.runtime.generation.sampling.settings import Sampling
from edgelm.runtime.sequences import common_prefix

_MEMORY_SHARE = 0.4  # of what is free, for the source's weights in fp32


def can_sample(reference: Reference) -> bool:
    """Whether the source's weights fit in memory: token by token, each is read again."""
    return 4 * reference.spec.parameters < _MEMORY_SHARE * available_bytes()


def source_answers(
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    ends: frozenset[int],
    first: int = 0,
) -> list[SampledAnswer]:
    """The answers of the source.

    Args:
        reference: whose weights fit in memory.
        prompts: token ids.
        sampling: as the bundle's.
        ends: tokens that end an answer.
        first: the number of the first prompt, which its seed depends on.
    """
    # Padding would enter the state of layers that are not attention.
    size = 1 if reference.spec.is_hybrid else len(prompts)
    with reference.cached_reads():
        return [
            answer
            for at in range(0, len(prompts), size)
            for answer in _answers(
                reference, prompts[at : at + size], sampling, ends, SEED + first + at
            )
        ]


def _answers(
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    ends: frozenset[int],
    seed: int,
) -> list[SampledAnswer]:
    samplers = [
        CoupledSampler(replace(sampling, seed=seed + row), prompt_length=len(prompt))
        for row, prompt in enumerate(prompts)
    ]
    history = [list(map(int, prompt)) for prompt in prompts]
    batch = _Batch(reference, prompts)
    active, ended = list(range(len(prompts))), set[int]()
    ids, mask = batch.padded(prompts)
    for _ in range(asked.MAX_TOKENS):
        logits = batch.advance(ids, mask).numpy()
        drawn = {row: samplers[row](logits[at], history[row]) for at, row in enumerate(active)}
        ended |= {row for row, token in drawn.items() if token in ends}
        kept = [at for at, row in enumerate(active) if row not in ended]
        if not kept:
            break
        if len(kept) < len(active):
            batch.select(kept)
            active = [active[at] for at in kept]
        for row in active:
            history[row].append(drawn[row])
        ids = torch.tensor([[drawn[row]] for row in active])
        mask = torch.ones_like(ids)
    return [
        SampledAnswer(tuple(row[len(prompt) :]), number in ended)
        for number, (row, prompt) in enumerate(zip(history, prompts, strict=True))
    ]


class _Batch:
    """The source's cache for prompts, their common beginning in it."""

    def __init__(self, reference: Reference, prompts: Sequence[Sequence[int]]) -> None:
        from transformers import DynamicCache

        self._reference = reference
        self._head = reference.head()
        self._cache: Any = DynamicCache(config=reference.model.config)
        self._shared = _shared_length(reference, prompts)
        self._mask = torch.ones(1, 0, dtype=torch.long)
        if self._shared:
            ids = torch.tensor([list(prompts[0][: self._shared])])
            self._run(ids, torch.ones_like(ids))
            self._cache.batch_repeat_interleave(len(prompts))
        self._mask = self._mask.repeat(len(prompts), 1)

    def padded(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """What follows the common beginning, [B, T] padded on the left, and where it is."""
        rest = [list(prompt[self._shared :]) for prompt in prompts]
        longest = max(map(len, rest))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rest])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rest])
        return ids, mask

    def advance(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits [B, vocab] after tokens [B, T]."""
        return self._reference.logits(self._run(ids, mask)[:, -1], self._head)

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these rows only."""
        index = torch.tensor(rows)
        self._cache.batch_select_indices(index)
        self._mask = self._mask[index]

    def _run(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self._mask = torch.cat([self._mask, mask], 1)
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with torch.inference_mode():
            states: torch.Tensor = self._reference.model.base_model(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
        return states


def _shared_length(reference: Reference, prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, but for the last of each.

    Padding behind them would shorten the reach of a window that is not longer than a prompt and
    its answer.
    """
    reach = max(map(len, prompts)) + asked.MAX_TOKENS
    windows = [layer.window for layer in reference.spec.layers if layer.window]
    if len(prompts) < 2 or any(window <= reach for window in windows):
        return 0
    alike = reduce(
        lambda length, prompt: min(length, common_prefix(prompts[0], prompt)),
        prompts[1:],
        len(prompts[0]),
    )
    return min(alike, min(map(len, prompts)) - 1)
