"""A student whose layers differ: the compact graph computes what transformers computes padded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.bundle import CacheContract
from edgelm.checkpoint.source import open_checkpoint
from tests.checkpoints.own_sizes import FEWER_HEADS, save_own_sizes
from tests.export.graphs import DialectName, build_session, cpu_engine

LENGTH = 40  # longer than a chunk and a window
DIALECTS: tuple[DialectName, ...] = ("ort", "standard", "decomposed")


@pytest.mark.parametrize(
    ("family", "dialect"),
    [
        *(("llama", dialect) for dialect in DIALECTS),
        *((family, "ort") for family in ("llama-untied", "phi3", "gemma3", "olmo2", "apertus")),
        *((family, "ort") for family in ("starcoder2", "stablelm-parallel")),
        ("lfm2", "standard"),
    ],
)
def test_the_compact_graph_is_the_padded_model(
    tmp_path: Path, family: str, dialect: DialectName
) -> None:
    _check_parity(save_own_sizes(family, tmp_path / "student"), tmp_path / "graph", dialect)


@pytest.mark.parametrize(
    ("family", "dialect"),
    [
        *((family, dialect) for dialect in DIALECTS for family in ("qwen3", "qwen3.5-keys")),
        *((family, "ort") for family in ("qwen2", "phi3", "gemma3", "gpt-neox", "glm")),
        *((family, "decomposed") for family in ("gemma2", "granite-swa", "gpt-neox")),
        *((family, "standard") for family in ("gemma2", "granite-swa", "glm")),
    ],
)
def test_layers_with_fewer_heads(tmp_path: Path, family: str, dialect: DialectName) -> None:
    """GQA with norms of heads, biases, gates, fused and interleaved matrices, caps and sinks."""
    folder = save_own_sizes(family, tmp_path / "student", FEWER_HEADS)
    cache = _check_parity(folder, tmp_path / "graph", dialect)
    spec = open_checkpoint(folder).spec
    heads = [cache.heads(layer)[0] for layer in cache.layers]
    assert heads == [spec.heads(spec.layers[index]).keys for index in spec.cache_layers]
    assert len(set(heads)) == 2


def _check_parity(folder: Path, graph: Path, dialect: DialectName) -> CacheContract:
    tokens = np.random.default_rng(0).integers(3, 128, LENGTH)
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(folder).eval()
        expected = plain(torch.from_numpy(tokens)[None]).logits[0].numpy()
    checkpoint = open_checkpoint(folder)
    with build_session(checkpoint, graph, dialect=dialect) as session:
        prefilled = session.advance(tokens[:30], logits=30).copy()
        decoded = [session.advance(tokens[at : at + 1])[0].copy() for at in range(30, LENGTH)]
    ours = np.concatenate([prefilled, np.stack(decoded)])
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
    assert sum(parameter.numel() for parameter in plain.parameters()) > checkpoint.spec.parameters
    written = sum(path.stat().st_size for path in graph.iterdir())
    assert written < 4 * checkpoint.spec.parameters * 1.1 + 120_000, "the graph is padded"
    return cpu_engine(session)._graph.cache
