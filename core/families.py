"""The decoder families that edgelm knows, as data.

A family is a row: which norms it has and where, what its projections are called, and the
defaults that its Hugging Face configuration class adds when `config.json` leaves a field out.
Everything else is read from the configuration by `DecoderSpec.from_hf`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

NormPlacement = Literal["pre", "post", "sandwich"]
QKNorm = Literal["none", "head", "full"]


@dataclass(frozen=True, slots=True)
class Family:
    """What distinguishes one `model_type` from a plain Llama."""

    norms: NormPlacement = "pre"
    """pre: norm before each sublayer; post: after it (OLMo 2); sandwich: both (Gemma 2, 3)."""
    norm_plus_one: bool = False
    """The stored norm weight is an offset from one (Gemma)."""
    qk_norm: QKNorm = "none"
    """RMS norm on queries and keys: per head (Qwen 3, Gemma 3) or over all heads (OLMo 2)."""
    fused_projections: bool = False
    """The checkpoint stores `qkv_proj` and `gate_up_proj` (Phi-3)."""
    qkv_bias: bool = False
    """q, k and v have biases whatever the configuration says (Qwen 2)."""
    opts_into_windows: bool = False
    """Sliding windows need `use_sliding_window` (Qwen 2 and 3, SmolLM3)."""
    scales_embedding: bool = False
    """The embedding is multiplied by sqrt(hidden_size) (Gemma)."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """What the Hugging Face configuration class assumes for fields left out."""


_GEMMA = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(defaults={"sliding_window": 4096, "num_key_value_heads": 8}),
    "qwen2": Family(qkv_bias=True, opts_into_windows=True),
    "qwen3": Family(qk_norm="head", opts_into_windows=True, defaults={"head_dim": 128}),
    "smollm3": Family(
        opts_into_windows=True,
        defaults={
            "tie_word_embeddings": True,
            "no_rope_layer_interval": 4,
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
        },
    ),
    "granite": Family(defaults={"attention_multiplier": 1.0}),
    "olmo2": Family(norms="post", qk_norm="full", defaults={"rms_norm_eps": 1e-5}),
    "phi3": Family(fused_projections=True, defaults={"rms_norm_eps": 1e-5}),
    "gemma2": Family(
        norms="sandwich",
        norm_plus_one=True,
        scales_embedding=True,
        defaults=_GEMMA
        | {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window_pattern": 2,
        },
    ),
    "gemma3_text": Family(
        norms="sandwich",
        norm_plus_one=True,
        qk_norm="head",
        scales_embedding=True,
        defaults=_GEMMA
        | {"sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 10_000.0},
    ),
}
