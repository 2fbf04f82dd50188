"""The GPU's peer, on the processor: a static cache gives what the model gives without one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.bench.engines.static_cache_worker import StaticCacheTransformers

TOKENS = np.random.default_rng(0).integers(3, 128, 24)


@pytest.fixture
def engine(source: Path) -> StaticCacheTransformers:
    engine = StaticCacheTransformers()
    loaded = engine.load({"path": source, "context": 64, "threads": None, "device": "cpu"})
    assert (loaded["device"], loaded["context"]) == ("cpu", 64)
    return engine


def test_its_logits_are_the_model_s(engine: StaticCacheTransformers, source: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    assert np.abs(engine.logits(TOKENS) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_steps_fill_the_cache_that_a_reset_empties(engine: StaticCacheTransformers) -> None:
    engine.prefill(TOKENS[:20])
    for token in TOKENS[20:].tolist():
        engine.step(token)
    layer: Any = engine.cache.layers[0]
    stepped = layer.keys.clone()
    engine.reset()
    assert not layer.keys.any()
    engine.prefill(TOKENS)
    torch.testing.assert_close(stepped, layer.keys)


def test_without_a_gpu_it_says_so(source: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        RuntimeError, match=r"it is measured on a GPU, and torch .* sees none; install a torch"
    ):
        StaticCacheTransformers().load({"path": source, "context": 64, "threads": 1})
