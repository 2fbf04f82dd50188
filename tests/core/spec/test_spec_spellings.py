"""Old and short configurations mean what Hugging Face's own classes read out of them."""

from copy import deepcopy
from typing import Any

import msgspec
import pytest
from transformers import AutoConfig

from edgelm.spec.decoder import DecoderSpec, LayerSpec, Rope
from edgelm.spec.families.table import FAMILIES

_SIZES: dict[str, Any] = {
    "num_hidden_layers": 8,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 8192,
}
# Where a class has defaults that edgelm refuses.
_NEEDED: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 4,
        "num_local_experts": 0,
        "mamba_n_heads": 8,
    },
    "gemma3n_text": {"num_hidden_layers": 20},
    "nemotron_h": {"hybrid_override_pattern": "M-M*-M*-"},
}
_LINEAR = {"type": "linear", "factor": 2.0}
_LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def assert_reads_alike(model_type: str, values: dict[str, Any]) -> None:
    """The same values, as they are and as transformers would save them today, are one spec."""
    today = AutoConfig.for_model(model_type, **deepcopy(values)).to_dict()  # which changes them
    ours = DecoderSpec.from_hf(values | {"model_type": model_type})
    assert msgspec.to_builtins(ours) == msgspec.to_builtins(DecoderSpec.from_hf(today))


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_fields_left_out(model_type: str) -> None:
    assert_reads_alike(model_type, _SIZES | _NEEDED.get(model_type, {}))


def test_numbers_of_layers_that_are_padded_with_zeros() -> None:
    """Transformers writes them so from ten layers on."""
    values = _SIZES | {"num_hidden_layers": 12, "num_kv_shared_layers": 5}
    today = AutoConfig.for_model("gemma4_text", **deepcopy(values)).to_dict()
    assert "05" in today["per_layer_config"]
    assert_reads_alike("gemma4_text", values)


@pytest.mark.parametrize(
    ("model_type", "over"),
    [
        ("llama", {"rope_theta": 5e5}),
        ("llama", {"rope_theta": 5e5, "rope_scaling": _LINEAR}),
        ("qwen3", {"rope_theta": 5e5, "rope_scaling": None}),
        ("mistral", {"sliding_window": 8, "head_dim": None}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 3}),
        ("qwen2", {"sliding_window": 8, "max_window_layers": 3}),
        ("gemma2", {"sliding_window": 8}),
        (
            "gemma3_text",
            {"sliding_window_pattern": 3, "rope_theta": 1e6, "rope_local_base_freq": 5000.0},
        ),
        (
            "gemma3_text",
            {
                "sliding_window_pattern": 3,
                "rope_theta": 1e6,
                "rope_local_base_freq": 5000.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
        ("smollm3", {"no_rope_layer_interval": 2}),
        ("smollm3", {"no_rope_layers": [1, 0] * 4}),
        ("smollm3", {"sliding_window": 8}),
        ("phi3", {"partial_rotary_factor": 0.5}),
        (
            "phi3",
            {"rope_scaling": _LONGROPE, "original_max_position_embeddings": 4096},
        ),
        ("granite", {"attention_multiplier": 0.1, "logits_scaling": 8.0}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 5000.0, "rope_theta": 2e4}),
        ("gpt_neox", {"rope_scaling": _LINEAR, "use_parallel_residual": False}),
        ("phi", {"partial_rotary_factor": 0.25, "rope_theta": 5e5}),
        ("cohere", {"logit_scale": 0.5, "head_dim": 32}),
        ("cohere2", {"sliding_window_pattern": 3, "head_dim": 32}),
        ("cohere2", {"sliding_window": None, "layer_types": ["full_attention"] * 8}),
    ],
    ids=[
        "rope-theta-at-the-top",
        "rope-scaling-with-type",
        "no-scaling",
        "mistral-window",
        "mistral-no-window",
        "qwen2-window",
        "qwen2-window-off",
        "qwen2-window-not-asked-for",
        "gemma2-alternates",
        "gemma3-pattern",
        "gemma3-scales-global-only",
        "smollm3-interval",
        "smollm3-list",
        "smollm3-window-not-asked-for",
        "phi3-partial",
        "phi3-longrope",
        "granite-multipliers",
        "gpt-neox-rope-at-the-top",
        "gpt-neox-scaling",
        "phi-rope-at-the-top",
        "cohere-heads",
        "cohere2-pattern",
        "cohere2-no-window",
    ],
)
def test_old_spelling(model_type: str, over: dict[str, Any]) -> None:
    assert_reads_alike(model_type, _SIZES | over)


def test_old_rope_scaling_by_hand() -> None:
    raw = _SIZES | {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": _LINEAR}
    scaling = {"rope_type": "linear", "factor": 2.0}
    expected = LayerSpec(Rope(theta=5e5, dim=16, scaling=scaling))
    assert DecoderSpec.from_hf(raw).layers == (expected,) * 8


def test_sliding_window_pattern_by_hand() -> None:
    raw = _SIZES | {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    }
    local = LayerSpec(Rope(1e4, 16), window=8)
    everything = LayerSpec(Rope(1e6, 16))
    expected = (local, local, everything, local, local, everything, local, local)
    assert DecoderSpec.from_hf(raw).layers == expected


def test_layer_types_are_followed() -> None:
    kinds = ["full_attention", "sliding_attention"] * 4
    raw = _SIZES | {"model_type": "mistral", "sliding_window": 8, "layer_types": kinds}
    assert [layer.window for layer in DecoderSpec.from_hf(raw).layers] == [None, 8] * 4


def test_soft_cap_switched_off_stays_off() -> None:
    # Fine-tunes of Gemma 2 write null, since fast attention kernels have no cap.
    raw = _SIZES | {"attn_logit_softcapping": None}
    assert AutoConfig.for_model("gemma2", **raw).attn_logit_softcapping is None
    spec = DecoderSpec.from_hf(raw | {"model_type": "gemma2"})
    assert spec.attention_softcap is None
    assert spec.logits_softcap == 30.0
