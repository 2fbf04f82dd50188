"""A student whose layers differ: the compact graph computes what transformers computes padded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.checkpoint.source import open_checkpoint
from tests.checkpoints.own_sizes import save_own_sizes
from tests.export.graphs import DialectName, build_session

LENGTH = 40  # longer than a chunk and a window


@pytest.mark.parametrize(
    ("family", "dialect"),
    [
        *(("llama", dialect) for dialect in ("ort", "standard", "decomposed")),
        *((family, "ort") for family in ("llama-untied", "phi3", "gemma3", "olmo2", "apertus")),
        *((family, "ort") for family in ("starcoder2", "stablelm-parallel")),
        ("lfm2", "standard"),
    ],
)
def test_the_compact_graph_is_the_padded_model(
    tmp_path: Path, family: str, dialect: DialectName
) -> None:
    folder = save_own_sizes(family, tmp_path / "student")
    tokens = np.random.default_rng(0).integers(3, 128, LENGTH)
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(folder).eval()
        expected = plain(torch.from_numpy(tokens)[None]).logits[0].numpy()
    checkpoint = open_checkpoint(folder)
    with build_session(checkpoint, tmp_path / "graph", dialect=dialect) as session:
        prefilled = session.advance(tokens[:30], logits=30).copy()
        decoded = [session.advance(tokens[at : at + 1])[0].copy() for at in range(30, LENGTH)]
    ours = np.concatenate([prefilled, np.stack(decoded)])
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
    assert sum(parameter.numel() for parameter in plain.parameters()) > checkpoint.spec.parameters
    written = sum(path.stat().st_size for path in (tmp_path / "graph").iterdir())
    assert written < 4 * checkpoint.spec.parameters * 1.1 + 120_000, "the graph is padded"
