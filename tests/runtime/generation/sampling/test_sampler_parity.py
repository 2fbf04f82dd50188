"""The transforms against Hugging Face's logits processors on random rows."""

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from edgelm.runtime.generation.sampling.sampler import Sampler
from edgelm.runtime.generation.sampling.settings import Sampling

VOCAB = 200
HISTORY = [3, 5, 5, 199, 0, 42]
PAIRS = {
    "temperature": (Sampling(temperature=0.7), [hf.TemperatureLogitsWarper(0.7)]),
    "top-k": (Sampling(temperature=1, top_k=17), [hf.TopKLogitsWarper(17)]),
    "top-p": (Sampling(temperature=1, top_p=0.8), [hf.TopPLogitsWarper(0.8)]),
    "min-p": (Sampling(temperature=1, min_p=0.05), [hf.MinPLogitsWarper(0.05)]),
    "typical": (Sampling(temperature=1, typical_p=0.6), [hf.TypicalLogitsWarper(0.6)]),
    "repetition": (
        Sampling(repetition_penalty=1.3),
        [hf.RepetitionPenaltyLogitsProcessor(1.3)],
    ),
    # The order in which transformers' generate() puts them.
    "chain": (
        Sampling(temperature=0.8, top_k=60, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
        [
            hf.RepetitionPenaltyLogitsProcessor(1.2),
            hf.TemperatureLogitsWarper(0.8),
            hf.TopKLogitsWarper(60),
            hf.TopPLogitsWarper(0.9),
            hf.MinPLogitsWarper(0.02),
        ],
    ),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("sampling", "processors"), PAIRS.values(), ids=PAIRS)
def test_parity(sampling: Sampling, processors: list[hf.LogitsProcessor], seed: int) -> None:
    row = np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)
    theirs = torch.from_numpy(row)[None]
    for processor in processors:
        theirs = processor(torch.tensor([HISTORY]), theirs)
    ours = Sampler(sampling).transformed(row, HISTORY)
    kept = np.isfinite(ours)
    np.testing.assert_array_equal(kept, np.isfinite(theirs[0].numpy()))
    np.testing.assert_allclose(ours[kept], theirs[0].numpy()[kept], rtol=1e-6)
