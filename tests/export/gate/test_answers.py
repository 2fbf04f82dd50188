"""Sampled answers of the source: a padded batch gives what transformers gives prompt by prompt."""

import random
from dataclasses import replace

import pytest
import torch

from edgelm.export.gate import prompts
from edgelm.export.gate.answers import SEED, CoupledSampler, SampledAnswer, sampling_of
from edgelm.export.gate.source_answers import source_answers
from edgelm.export.source.reference import Reference
from edgelm.runtime.generation.sampling.settings import Sampling
from tests.conftest import Tiny, TinyFactory
from tests.slow import slow_but

# Windows, caps, sinks, partial rotation, experts; the last two have layers that are not attention.
FAMILIES = ["llama", "mistral", "gemma2", "gemma3", "phi3-partial", "gpt-oss", "olmoe", "lfm2"]
FAMILIES += ["qwen3.5", "granite-hybrid", "nemotron-h", "falcon-h1"]
ENDS = frozenset(range(3, 15))
SAMPLING = Sampling(temperature=0.8, top_p=0.95)


def _prompts() -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(20, 128) for _ in range(rng.randint(2, 20))] for _ in range(5)]


def _alone(model: Tiny, prompt: list[int], seed: int) -> SampledAnswer:
    sampler = CoupledSampler(replace(SAMPLING, seed=seed), prompt_length=len(prompt))
    ids = list(prompt)
    for _ in range(prompts.MAX_TOKENS):
        with torch.inference_mode():
            row = model.hf(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
        token = sampler(row, ids)
        if token in ENDS:
            return SampledAnswer(tuple(ids[len(prompt) :]), True)
        ids.append(token)
    return SampledAnswer(tuple(ids[len(prompt) :]), False)


@pytest.mark.parametrize("beginning", [0, 7], ids=["different", "alike"])
@pytest.mark.parametrize("name", slow_but(FAMILIES, ("gemma3", "qwen3.5")))
def test_a_batch_answers_as_single_prompts_do(calm: TinyFactory, name: str, beginning: int) -> None:
    model = calm(name)
    asked = [[*range(30, 30 + beginning), *one] for one in _prompts()]
    found = source_answers(Reference(model.checkpoint), asked, SAMPLING, ENDS)
    expected = [_alone(model, one, SEED + at) for at, one in enumerate(asked)]
    assert found == expected
    assert len({answer.tokens for answer in found}) > 2


def test_a_common_beginning_is_run_once(calm: TinyFactory) -> None:
    model = calm("llama")
    reference = Reference(model.checkpoint)
    seen = list[tuple[int, ...]]()
    reference.model.model.embed_tokens.register_forward_pre_hook(
        lambda _, given: seen.append(tuple(given[0].shape))
    )
    asked = [[*range(30, 40), 50 + number] for number in range(4)]
    source_answers(reference, asked, SAMPLING, ENDS)
    assert seen[:2] == [(1, 10), (4, 1)]


def test_sampling_is_that_of_the_generation_config() -> None:
    assert sampling_of({"temperature": 0.7, "top_p": 0.9}, 100) == Sampling(
        temperature=0.7, top_p=0.9
    )
    for greedy in ({}, {"temperature": 0}, {"temperature": None, "do_sample": False}):
        assert sampling_of(greedy, 100) == Sampling(temperature=1.0)
    assert sampling_of({"temperature": 0.7, "top_p": 3}, 100) == Sampling(temperature=1.0)
