"""Configurations of hybrids as their checkpoints were published, read as transformers does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadCheckpoint
from edgelm.export.source.reference import Reference
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.models import save_tiny

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
    "nemotron-pattern": (
        "nemotron-h",
        ("layers_block_type",),
        {"hybrid_override_pattern": "M-*M*--M", "num_hidden_layers": 8},
    ),
    "nemotron-older-kinds": (
        "nemotron-h",
        (),
        {
            "layers_block_type": [
                *("mamba", "mlp", "attention", "mamba"),
                *("attention", "mlp", "mlp", "mamba"),
            ]
        },
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
        ({"num_local_experts": "many"}, "num_local_experts is 'many', expected"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected silu"),
    ],
)
def test_wrong_values_of_mamba(over: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        DecoderSpec.from_hf(GRANITE | over)


NEMOTRON: dict[str, Any] = {
    "model_type": "nemotron_h",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 8,
    "head_dim": 4,
    "vocab_size": 32,
    "hybrid_override_pattern": "M-*",
}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"hybrid_override_pattern": None}, "hybrid_override_pattern is None, expected the kind"),
        ({"hybrid_override_pattern": "M-*E"}, "layers with a mixture of experts"),
        ({"layers_block_type": ["mlp", "moe"]}, "layers with a mixture of experts"),
        ({"hybrid_override_pattern": "M-*X"}, "has the kind 'X', expected"),
        ({"hybrid_override_pattern": "M-"}, "no layer has attention"),
        ({"hybrid_override_pattern": ""}, "no layer has attention|expected the kind"),
        ({"layers_block_type": "M-*"}, "layers_block_type is 'M-\\*', expected the kind of each"),
        ({"layers_block_type": [1, 2]}, "layers_block_type is .*, expected the kind of each"),
        ({"hybrid_override_pattern": "*" * 5000}, "more than 4096 layers"),
        ({"n_groups": 3}, "mamba_num_heads 128 is not a multiple of n_groups 3"),
        ({"mamba_n_groups": 2}, "mamba_n_groups is an older name"),
        ({"mamba_hidden_act": "relu"}, "mamba_hidden_act is 'relu', expected silu"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true, expected false"),
        ({"conv_kernel": 1}, "conv_kernel is 1, expected an integer of at least 2"),
    ],
)
def test_wrong_values_of_nemotron(over: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        DecoderSpec.from_hf(NEMOTRON | over)


FALCON: dict[str, Any] = CONFIG | {"model_type": "falcon_h1", "mamba_n_heads": 4}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"mamba_d_head": 8}, "mamba_n_heads 4 times mamba_d_head 8 is not the size .* 1024"),
        ({"mamba_n_heads": 2048}, "mamba_n_heads 2048 times mamba_d_head 0 is not the size"),
        ({"mamba_n_groups": 3}, "mamba_n_heads 4 is not a multiple of mamba_n_groups 3"),
        ({"ssm_multipliers": [1.0]}, "ssm_multipliers is .*, expected a list of 5 numbers"),
        ({"mlp_multipliers": 2.0}, "mlp_multipliers is 2.0, expected a list of 2 numbers"),
        ({"mlp_multipliers": [1.0, "x"]}, "mlp_multipliers is .*, expected numbers other than 0"),
        ({"key_multiplier": 0}, "key_multiplier is 0, expected numbers other than 0"),
        ({"key_multiplier": float("nan")}, "key_multiplier is nan, expected numbers other than"),
        ({"lm_head_multiplier": None}, "lm_head_multiplier is None, expected a number"),
        ({"time_step_limit": [0.1, 1.0]}, "limited time steps are not supported"),
        ({"hidden_act": "relu2"}, "hidden_act is 'relu2', expected silu"),
    ],
)
def test_wrong_values_of_falcon(over: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        DecoderSpec.from_hf(FALCON | over)


def test_falcon_attends_beside_mamba() -> None:
    spec = DecoderSpec.from_hf(FALCON | {"mamba_d_ssm": None})
    assert spec.attention_layers == spec.cache_layers == (0, 1)
    assert [(one.layer, one.kind) for one in spec.states] == [
        *((0, "conv"), (0, "matrix"), (1, "conv"), (1, "matrix"))
    ]
    assert spec.is_hybrid
    assert spec.executed_layers == 2


def test_every_layer_of_nemotron_is_half_a_layer() -> None:
    spec = DecoderSpec.from_hf(NEMOTRON | {"hybrid_override_pattern": "M-M*-"})
    assert spec.num_hidden_layers == 5
    assert spec.executed_layers == 2.5
    assert spec.attention_layers == (3,)
    assert [spec.mlp_size(layer) for layer in spec.layers] == [0, 16, 0, 0, 16]
    assert [one.layer for one in spec.states] == [0, 0, 2, 2]
    assert not spec.has_own_sizes


def test_older_names_of_nemotron_s_tensors(tmp_path: Path) -> None:
    """Its published checkpoints have `backbone.` in place of `model.`."""
    model = save_tiny("nemotron-h", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    older = {name.replace("model.", "backbone.", 1): one for name, one in stored.items()}
    save_file(older, tmp_path / "model.safetensors", {"format": "pt"})
    reference = Reference(open_checkpoint(tmp_path))
    ours = reference.logits(reference.hidden_states(TOKENS)[0], reference.head())
    with torch.inference_mode():
        expected = model(input_ids=TOKENS).logits[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_granite_has_eight_experts_where_the_field_is_missing() -> None:
    config = {name: value for name, value in GRANITE.items() if name != "num_local_experts"}
    assert [one.experts for one in DecoderSpec.from_hf(config).mixtures] == [8, 8]
    assert DecoderSpec.from_hf(GRANITE).mixtures == ()


def test_value_heads_are_shared_evenly() -> None:
    config = CONFIG | {"model_type": "qwen3_5_text", "head_dim": 8, "linear_num_key_heads": 3}
    with pytest.raises(BadCheckpoint, match="linear_num_value_heads 32 is not a multiple of"):
        DecoderSpec.from_hf(config)
