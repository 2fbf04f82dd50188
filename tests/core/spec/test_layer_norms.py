"""Families with LayerNorms: published configurations give the published numbers of parameters."""

from typing import Any

import pytest

from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.tensor_names import canonical_name, stored_name
from edgelm.spec.tensor_shapes import has_bias, tensor_shapes


def pythia(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": 50304,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "max_position_embeddings": 2048,
    }


PHI_2: dict[str, Any] = {
    "model_type": "phi",
    "num_hidden_layers": 32,
    "hidden_size": 2560,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 10240,
    "vocab_size": 51200,
    "partial_rotary_factor": 0.4,
}
COMMAND_R7B: dict[str, Any] = {
    "model_type": "cohere2",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 256_000,
    "logit_scale": 0.25,
    "rope_theta": 50_000,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (pythia(6, 512, 8), 70_426_624),
        (pythia(12, 768, 12), 162_322_944),
        (pythia(24, 1024, 16), 405_334_016),
        (pythia(32, 2560, 32), 2_775_208_960),
        (PHI_2, 2_779_683_840),
        (COMMAND_R7B, 8_028_033_024),
    ],
    ids=["pythia-70m", "pythia-160m", "pythia-410m", "pythia-2.8b", "phi-2", "command-r7b"],
)
def test_published_parameters(config: dict[str, Any], parameters: int) -> None:
    assert DecoderSpec.from_hf(config).parameters == parameters


def test_only_windowed_layers_of_cohere_2_rotate() -> None:
    spec = DecoderSpec.from_hf(COMMAND_R7B)
    for layer, one in enumerate(spec.layers):
        slides = layer % 4 != 3
        assert (one.window, one.rope is not None) == (4096 if slides else None, slides)


def test_names_of_gpt_neox_and_back() -> None:
    spec = DecoderSpec.from_hf(pythia(2, 64, 4))
    assert stored_name("gpt_neox", "model.embed_tokens.weight") == "gpt_neox.embed_in.weight"
    stored = stored_name("gpt_neox", "model.layers.1.self_attn.qkv_proj.bias")
    assert stored == "gpt_neox.layers.1.attention.query_key_value.bias"
    names = list(tensor_shapes(spec))
    assert [stored_name("gpt_neox", canonical_name("gpt_neox", name)) for name in names] == names
    assert has_bias(spec, "gpt_neox.layers.1.attention.query_key_value.weight")
    assert not has_bias(spec, "lm_head.weight")
    assert has_bias(DecoderSpec.from_hf(PHI_2), "lm_head.weight")
