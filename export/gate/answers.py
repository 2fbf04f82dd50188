"""Sampled answers of a source and of a bundle to the same prompts, with the same random numbers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import torch

from edgelm.devices.detection.memory import available_bytes
from edgelm.errors import BadInput
from edgelm.export.gate import prompts as asked
from edgelm.export.source.reference import Reference
from edgelm.runtime.generation.options import Options
from edgelm.runtime.generation.sampler import Sampler, Sampling
from edgelm.runtime.model import LanguageModel

SEED = 7
_MEMORY_SHARE = 0.4  # of what is free, for the source's weights in fp32


class SampledAnswer(msgspec.Struct, frozen=True):
    """New tokens, the end-of-turn token left out, and whether there was one."""

    tokens: tuple[int, ...]
    ended: bool


def can_sample(reference: Reference) -> bool:
    """Whether the source's weights fit in memory: token by token, each is read again."""
    return 4 * reference.spec.parameters < _MEMORY_SHARE * available_bytes()


def sampling_of(values: dict[str, Any], vocab_size: int) -> Sampling:
    """The sampling of a generation config, at temperature 1 where it names none that is valid."""
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    given = {name: values[name] for name in names if values.get(name) is not None}
    if not given.get("temperature"):  # greedy: nothing would be sampled
        given["temperature"] = 1.0
    sampling = Sampling(**given)
    try:
        sampling.check(vocab_size)
    except BadInput:  # values of a config that does not sample are not checked at export
        return Sampling(temperature=1.0)
    return sampling


def bundle_answers(
    model: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[SampledAnswer]:
    """The answers of a bundle through the runtime's generation loop."""
    answers = []
    for number, prompt in enumerate(prompts):
        options = Options(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=SEED + number,
            max_tokens=asked.MAX_TOKENS,
        )
        reply = model.generate(list(prompt), **options)
        ended = reply.stop_reason == "eos_token"
        answers.append(SampledAnswer(tuple(reply.tokens[: -1 if ended else None]), ended))
    return answers


def source_answers(
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    ends: frozenset[int],
) -> list[SampledAnswer]:
    """The answers of the source, all prompts in one padded batch.

    Args:
        reference: whose weights fit in memory.
        prompts: token ids.
        sampling: as the bundle's.
        ends: tokens that end an answer.
    """
    # Padding would enter the state of layers that are not attention.
    size = 1 if reference.spec.is_hybrid else len(prompts)
    with reference.cached_reads():
        return [
            answer
            for at in range(0, len(prompts), size)
            for answer in _batch(reference, prompts[at : at + size], sampling, ends, SEED + at)
        ]


def _batch(
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    ends: frozenset[int],
    seed: int,
) -> list[SampledAnswer]:
    from transformers import DynamicCache

    count, longest = len(prompts), max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    samplers = [
        Sampler(replace(sampling, seed=seed + row), prompt_length=len(prompts[row]))
        for row in range(count)
    ]
    history = [list(map(int, row)) for row in prompts]
    ended = [False] * count
    cache, head = DynamicCache(config=reference.model.config), reference.head()
    for _ in range(asked.MAX_TOKENS):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with torch.inference_mode():
            states = reference.model.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        rows = reference.logits(states, head).numpy()
        drawn = np.zeros(count, np.int64)
        for row in range(count):
            if ended[row]:
                continue
            token = samplers[row](rows[row], history[row])
            ended[row] = token in ends
            drawn[row] = token
            if not ended[row]:
                history[row].append(token)
        if all(ended):
            break
        ids = torch.from_numpy(drawn)[:, None]
        mask = torch.cat([mask, mask.new_ones(count, 1)], 1)
    return [
        SampledAnswer(tuple(history[row][len(prompts[row]) :]), ended[row]) for row in range(count)
    ]
