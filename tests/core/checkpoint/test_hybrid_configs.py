"""Configurations of hybrids as their checkpoints were published, read as transformers does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadCheckpoint
from edgelm.export.source.reference import Reference
from edgelm.spec.decoder import DecoderSpec
from tests.models import save_tiny

TOKENS = torch.randint(3, 100, (1, 20), generator=torch.Generator().manual_seed(1))
# Fields to remove, and fields to write in their place.
SPELLINGS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "lfm2-older": (
        "lfm2",
        ("intermediate_size", "layer_types", "tie_word_embeddings"),
        {"block_ff_dim": 132, "full_attn_idxs": [1, 4], "tie_embedding": True},
    ),
    "lfm2-both-sizes": ("lfm2", (), {"block_ff_dim": 132, "intermediate_size": 999}),
    "qwen3.5-interval": ("qwen3.5", ("layer_types",), {"full_attention_interval": 2}),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_spellings(case: str, tmp_path: Path) -> None:
    name, removed, written = SPELLINGS[case]
    save_tiny(name, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config = {key: value for key, value in config.items() if key not in removed}
    path.write_text(json.dumps(config | written))
    checkpoint = open_checkpoint(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    reference = Reference(checkpoint)
    ours = reference.logits(reference.hidden_states(TOKENS)[0], reference.head())
    with torch.inference_mode():
        expected = model(input_ids=TOKENS).logits[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


CONFIG: dict[str, Any] = {
    "model_type": "lfm2",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"layer_types": ["conv", "conv"]}, "no layer has attention"),
        ({"layer_types": ["conv", "mamba"]}, "layer_types has the kind 'mamba', expected"),
        ({"conv_L_cache": 1}, "conv_L_cache is 1, expected an integer of at least 2"),
        ({"full_attn_idxs": "all"}, "full_attn_idxs is 'all', expected a list of the indices"),
        ({"full_attn_idxs": []}, "no layer has attention"),
    ],
)
def test_wrong_values(over: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        DecoderSpec.from_hf(CONFIG | over)


def test_value_heads_are_shared_evenly() -> None:
    config = CONFIG | {"model_type": "qwen3_5_text", "head_dim": 8, "linear_num_key_heads": 3}
    with pytest.raises(BadCheckpoint, match="linear_num_value_heads 32 is not a multiple of"):
        DecoderSpec.from_hf(config)
