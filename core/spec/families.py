"""The supported decoder families, as data.

A family is a row: its norms, its projections, and the fields that its Hugging Face classes read
from `config.json`. A field that a class does not read (a Llama's `sliding_window`, a Mistral's
`attention_bias`) has no effect there, and must have none here. The defaults are those of the
configuration class for missing fields. `DecoderSpec.from_hf` reads everything else.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

NormPlacement = Literal["pre", "post", "sandwich"]
QKNorm = Literal["none", "head", "full"]
Windows = Literal["none", "all", "listed", "alternating", "pattern", "upper", "unrotated"]
"""Which layers see only `sliding_window` keys (edgelm.spec.layer_fields):

none         no layer: the class does not read the field (Llama, Granite, OLMo 2)
all          every layer, if there is a window (Mistral, Phi-3)
listed       those of `layer_types`, by default all (Ministral)
alternating  those of `layer_types`, by default every other one (Gemma 2)
pattern      those of `layer_types`, by default all but every sixth (Gemma 3)
upper        with `use_sliding_window` those of `layer_types`, by default from
             `max_window_layers` on (Qwen 2 and 3)
unrotated    those of `layer_types`, by default with `use_sliding_window` those without RoPE
             (SmolLM3)
"""


@dataclass(frozen=True, slots=True)
class Family:
    """The differences of one `model_type` from a plain Llama."""

    norms: NormPlacement = "pre"
    """pre: norm before each sublayer; post: after it (OLMo 2); sandwich: both (Gemma 2, 3)."""
    norm_plus_one: bool = False
    """The stored norm weight is an offset from one (Gemma)."""
    qk_norm: QKNorm = "none"
    """RMS norm on queries and keys: per head (Qwen 3, Gemma 3) or over all heads (OLMo 2)."""
    fused_projections: bool = False
    """The checkpoint stores `qkv_proj` and `gate_up_proj` (Phi-3)."""
    qkv_bias: bool = False
    """q, k and v always have biases (Qwen 2)."""
    attention_bias: bool = True
    """`attention_bias` gives q, k, v and o biases."""
    mlp_bias: bool = False
    """`mlp_bias` gives gate, up and down biases."""
    windows: Windows = "none"
    partial_rotation: bool = False
    """`partial_rotary_factor` excludes channels of a head from rotation (Phi-3)."""
    rope_types: tuple[str, ...] = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")
    """RoPE scalings that the class supports."""
    skips_rotation: bool = False
    """`no_rope_layers` or every `no_rope_layer_interval`th layer has no RoPE (SmolLM3)."""
    local_rope: bool = False
    """Layers with a window have separate RoPE parameters (Gemma 3)."""
    multipliers: bool = False
    """Reads the four multipliers of Granite."""
    query_scalar: bool = False
    """The attention scale comes from `query_pre_attn_scalar` (Gemma)."""
    attention_softcap: bool = False
    """Reads `attn_logit_softcapping` (Gemma 2; Gemma 3 has the field, and does not apply it)."""
    logits_softcap: bool = False
    """Reads `final_logit_softcapping` (Gemma)."""
    scales_embedding: bool = False
    """The embedding is multiplied by sqrt(hidden_size) (Gemma)."""
    even_heads: bool = False
    """The configuration class requires hidden_size to be a multiple of num_attention_heads."""
    activation_field: str = "hidden_act"
    defaults: dict[str, Any] = field(default_factory=dict)
    """Defaults of the Hugging Face configuration class for missing fields."""


_GEMMA = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_MISTRAL = {"sliding_window": 4096, "num_key_value_heads": 8}
_QWEN = {"sliding_window": 4096, "max_window_layers": 28, "num_key_value_heads": 32}

FAMILIES: dict[str, Family] = {
    "llama": Family(mlp_bias=True, even_heads=True),
    "mistral": Family(windows="all", attention_bias=False, defaults=_MISTRAL),
    # How transformers loads a `mistral` whose configuration has `layer_types`.
    "ministral": Family(windows="listed", attention_bias=False, defaults=_MISTRAL),
    "qwen2": Family(qkv_bias=True, attention_bias=False, windows="upper", defaults=_QWEN),
    "qwen3": Family(qk_norm="head", windows="upper", defaults=_QWEN | {"head_dim": 128}),
    "smollm3": Family(
        mlp_bias=True,
        windows="unrotated",
        skips_rotation=True,
        defaults={
            "tie_word_embeddings": True,
            "no_rope_layer_interval": 4,
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
        },
    ),
    "granite": Family(mlp_bias=True, multipliers=True, defaults={"attention_multiplier": 1.0}),
    "olmo2": Family(norms="post", qk_norm="full", defaults={"rms_norm_eps": 1e-5}),
    "phi3": Family(
        fused_projections=True,
        attention_bias=False,
        windows="all",
        partial_rotation=True,
        rope_types=("default", "longrope"),
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    ),
    "gemma2": Family(
        norms="sandwich",
        norm_plus_one=True,
        windows="alternating",
        query_scalar=True,
        attention_softcap=True,
        logits_softcap=True,
        scales_embedding=True,
        even_heads=True,
        activation_field="hidden_activation",
        defaults=_GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": Family(
        norms="sandwich",
        norm_plus_one=True,
        qk_norm="head",
        windows="pattern",
        local_rope=True,
        rope_types=("default", "dynamic", "linear", "llama3", "yarn"),
        query_scalar=True,
        logits_softcap=True,
        scales_embedding=True,
        even_heads=True,
        activation_field="hidden_activation",
        defaults=_GEMMA
        | {"sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 10_000.0},
    ),
}
