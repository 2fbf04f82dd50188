"""Rotary tables are those of transformers' own rotary modules, attention scaling included."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.spec.decoder import DecoderSpec, Rope
from edgelm.spec.rope import rotary_tables
from tests.checkpoints.models import tiny_config

MOST = 512  # max_position_embeddings
ORIGINAL = 128
_FACTORS = {
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn-betas": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn-attention": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "attention_factor": 1.7,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
    },
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": ORIGINAL,
        **_FACTORS,
    },
    "longrope-attention": {
        "rope_type": "longrope",
        "original_max_position_embeddings": ORIGINAL,
        "attention_factor": 1.3,
        **_FACTORS,
    },
    "longrope-factor": {
        "rope_type": "longrope",
        "original_max_position_embeddings": ORIGINAL,
        "factor": 2.0,
        **_FACTORS,
    },
}


def config_of(scaling: dict[str, Any], model_type: str = "llama", **over: Any) -> Any:
    return AutoConfig.for_model(
        model_type,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=MOST,
        pad_token_id=0,
        rope_parameters={"rope_theta": 10_000.0, **scaling},
        **over,
    )


def assert_tables(config: Any, module: Any, positions: int) -> None:
    rope = DecoderSpec.from_hf(config.to_dict()).layers[0].rope
    assert rope is not None
    tables = rotary_tables(rope, positions, MOST)
    expected = module(torch.zeros(1), torch.arange(positions)[None])
    for ours, hf in zip(tables, expected, strict=True):
        half = hf[0, :, : hf.shape[-1] // 2].numpy()
        assert ours.shape == half.shape
        # transformers rounds the frequency once more: half a unit in the last place of the angle.
        assert np.abs(ours - half).max() <= 2.0**-23 * positions


@pytest.mark.parametrize("positions", [ORIGINAL, MOST], ids="{}-positions".format)
@pytest.mark.parametrize("name", sorted(SCALINGS))
def test_tables_are_transformers(name: str, positions: int) -> None:
    config = config_of(SCALINGS[name])
    assert_tables(config, LlamaRotaryEmbedding(config), positions)


@pytest.mark.parametrize("positions", [ORIGINAL, MOST], ids="{}-positions".format)
def test_phi3_rotates_part_of_a_head(positions: int) -> None:
    # Half of a head of 16: four angles a position.
    factors = {name: values[:4] for name, values in _FACTORS.items()}
    scaling = SCALINGS["longrope"] | factors | {"partial_rotary_factor": 0.5}
    config = config_of(scaling, "phi3", original_max_position_embeddings=ORIGINAL)
    assert_tables(config, Phi3RotaryEmbedding(config), positions)


def test_gemma3_has_two_bases() -> None:
    config = tiny_config("gemma3")
    module = Gemma3RotaryEmbedding(config)
    layers = DecoderSpec.from_hf(config.to_dict()).layers
    for layer, kind in zip(layers, config.layer_types, strict=True):
        assert layer.rope is not None
        cos, _ = rotary_tables(layer.rope, 64, 128)
        expected = module(torch.zeros(1), torch.arange(64)[None], kind)[0]
        assert np.abs(cos - expected[0, :, :8].numpy()).max() <= 2.0**-23 * 64


def test_unscaled_table_by_hand() -> None:
    cos, sin = rotary_tables(Rope(theta=100.0, dim=4), 3, 3)
    # Frequencies 100^0 and 100^(-1/2).
    expected = [[0.0, 0.0], [1.0, 0.1], [2.0, 0.2]]
    np.testing.assert_allclose(cos, np.cos(expected), rtol=1e-6)
    np.testing.assert_allclose(sin, np.sin(expected), rtol=1e-6)
    assert cos.dtype == sin.dtype == np.float32


def test_longrope_table_is_chosen_by_the_capacity() -> None:
    rope = Rope(10_000.0, 16, SCALINGS["longrope"])
    short, _ = rotary_tables(rope, ORIGINAL, MOST)
    long, _ = rotary_tables(rope, ORIGINAL + 1, MOST)
    assert not np.allclose(short, long[:ORIGINAL])
    # Attention is scaled alike in both: sqrt(1 + ln(512 / 128) / ln(128)).
    factor = math.sqrt(1 + math.log(4) / math.log(128))
    np.testing.assert_allclose([short[0, 0], long[0, 0]], factor, rtol=1e-6)


def test_unknown_scaling_lists_the_known() -> None:
    message = "unknown RoPE scaling 'spiral'; known: default, dynamic, linear, llama3, yarn"
    with pytest.raises(UnknownName, match=message):
        rotary_tables(Rope(10_000.0, 16, {"rope_type": "spiral"}), 8, 8)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("linear", "factor"),
        ("llama3", "low_freq_factor"),
        ("llama3", "original_max_position_embeddings"),
        ("yarn", "factor"),
        ("longrope", "long_factor"),
    ],
)
def test_missing_field_is_named(kind: str, field: str) -> None:
    scaling = {key: value for key, value in SCALINGS[kind].items() if key != field}
    with pytest.raises(BadCheckpoint, match=f"RoPE scaling '{kind}' needs the field '{field}'"):
        rotary_tables(Rope(10_000.0, 16, scaling), MOST, MOST)
