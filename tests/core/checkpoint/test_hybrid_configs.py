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
    "granite-older": (
        "granite-hybrid",
        ("mamba_d_head", "time_step_limit"),
        {
            "layer_types": ["mamba", "attention", "mamba"] * 2,
            "position_embedding_type": "nope",
        },
    ),
    "granite-block-types": (
        "granite-hybrid",
        ("layer_types",),
        {"layers_block_type": ["mamba", "attention", "mamba"] * 2},
    ),
    "granite-limits": ("granite-hybrid", (), {"time_step_limit": [0.0, float("inf")]}),
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


GRANITE = CONFIG | {
    "model_type": "granitemoehybrid",
    "layer_types": ["mamba", "attention"],
    "num_local_experts": 0,
    "mamba_n_heads": 4,
}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"layer_types": None}, "no layer has attention"),
        ({"mamba_n_heads": 3}, "mamba_n_heads 3 times mamba_d_head 5 is not mamba_expand"),
        ({"mamba_d_head": 8}, "mamba_n_heads 4 times mamba_d_head 8 is not mamba_expand"),
        ({"mamba_n_groups": 3}, "mamba_n_heads 4 is not a multiple of mamba_n_groups 3"),
        ({"mamba_d_conv": 1}, "mamba_d_conv is 1, expected an integer of at least 2"),
        ({"mamba_d_state": "128"}, "mamba_d_state is '128', expected"),
        ({"mamba_conv_bias": 1}, "mamba_conv_bias is 1, expected true or false"),
        ({"time_step_limit": [0.001, 0.1]}, "time_step_limit is .*limited time steps are not"),
        ({"time_step_limit": 3}, "time_step_limit is 3, expected"),
        ({"num_local_experts": 8}, "num_local_experts is 8, expected 0: .* not supported"),
        ({"num_local_experts": "many"}, "num_local_experts is 'many', expected"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected silu"),
    ],
)
def test_wrong_values_of_mamba(over: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        DecoderSpec.from_hf(GRANITE | over)


def test_experts_are_refused_where_the_field_is_missing() -> None:
    config = {name: value for name, value in GRANITE.items() if name != "num_local_experts"}
    with pytest.raises(BadCheckpoint, match="num_local_experts is 8, expected 0"):
        DecoderSpec.from_hf(config)


def test_value_heads_are_shared_evenly() -> None:
    config = CONFIG | {"model_type": "qwen3_5_text", "head_dim": 8, "linear_num_key_heads": 3}
    with pytest.raises(BadCheckpoint, match="linear_num_value_heads 32 is not a multiple of"):
        DecoderSpec.from_hf(config)
