"""The supported decoder families, as data.

A family is a row: its norms, its projections, and the fields that its Hugging Face classes read
from `config.json`. A field that a class does not read (a Llama's `sliding_window`, a Mistral's
`attention_bias`) has no effect there, and must have none here. The defaults are those of the
configuration class for missing fields. `DecoderSpec.from_hf` reads everything else.
"""

from typing import Any

from edgelm.spec.families.family import Family
from edgelm.spec.families.layer_norms import LAYER_NORMS
from edgelm.spec.families.mixtures import MIXTURES
from edgelm.spec.families.shared_rows import (
    FALCON_H1,
    GEMMA_3N,
    GEMMA_4,
    LFM2_NAMES,
    NEMOTRON_H,
    NEMOTRON_H_NAMES,
    QWEN_3_5,
)

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

_UNBIASED: Any = {"qkv_bias": False, "o_bias": False}
_NO_LONGROPE = ("default", "dynamic", "linear", "llama3", "yarn")
_GLM: Any = {
    "o_bias": False,
    "fused_gate_up": True,
    "partial_rotation": True,
    "interleaved_rope": True,
    "defaults": {
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1.5625e-7,
    },
}

_GEMMA_4: Any = {
    "norms": "sandwich",
    "qk_norm": "head",
    "windows": "sixth",
    "local_rope": True,
    "rope_types": ("default", "linear", "proportional"),
    "attention_scale": 1.0,
    "value_norm": True,
    "layer_scalars": True,
    "global_heads": True,
    "shares_kv": True,
    "logits_softcap": True,
    "scales_embedding": True,
    "activation_field": "hidden_activation",
}

FAMILIES: dict[str, Family] = {
    "llama": Family(mlp_bias="mlp_bias", even_heads=True),
    "mistral": Family(windows="all", **_UNBIASED, defaults=_MISTRAL),
    # How transformers loads a `mistral` whose configuration has `layer_types`.
    "ministral": Family(windows="listed", **_UNBIASED, defaults=_MISTRAL),
    "qwen2": Family(qkv_bias=True, o_bias=False, windows="upper", defaults=_QWEN),
    "qwen3": Family(qk_norm="head", windows="upper", defaults=_QWEN | {"head_dim": 128}),
    "smollm3": Family(
        mlp_bias="mlp_bias",
        windows="unrotated",
        rotation="listed",
        defaults={
            "tie_word_embeddings": True,
            "no_rope_layer_interval": 4,
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
        },
    ),
    "granite": Family(
        mlp_bias="mlp_bias", multipliers=True, defaults={"attention_multiplier": 1.0}
    ),
    "olmo2": Family(norms="post", qk_norm="full", defaults={"rms_norm_eps": 1e-5}),
    "phi3": Family(
        fused_qkv=True,
        fused_gate_up=True,
        **_UNBIASED,
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
        rope_types=_NO_LONGROPE,
        query_scalar=True,
        logits_softcap=True,
        scales_embedding=True,
        even_heads=True,
        activation_field="hidden_activation",
        defaults=_GEMMA
        | {"sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 10_000.0},
    ),
    "gemma3n_text": Family(
        norms="sandwich",
        qk_norm="head",
        windows="fifth",
        local_rope=True,
        rope_types=_NO_LONGROPE,
        attention_scale=1.0,
        value_norm=True,
        shares_kv=True,
        per_layer_inputs=True,
        short_per_layer_table=True,
        altup=True,
        laurel=True,
        sparse_activations=True,
        listed_ffn=True,
        logits_softcap=True,
        scales_embedding=True,
        even_heads=True,
        activation_field="hidden_activation",
        defaults=GEMMA_3N,
    ),
    "gemma4_text": Family(**_GEMMA_4, per_layer_inputs=True, defaults=GEMMA_4),
    # The decoder of Gemma 4 12B, which takes images and sound without towers.
    "gemma4_unified_text": Family(
        **_GEMMA_4,
        defaults=GEMMA_4 | {"sliding_window": 1024, "max_position_embeddings": 262_144},
    ),
    "gemma": Family(
        norm_plus_one=True,
        scales_embedding=True,
        gelu_is_tanh=True,
        defaults={
            "head_dim": 256,
            "num_key_value_heads": 16,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_pytorch_tanh",
        },
    ),
    "ministral3": Family(
        windows="all",
        scaled_queries=True,
        **_UNBIASED,
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale_all_dim": 1.0,
                "mscale": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    "olmo3": Family(
        norms="post",
        qk_norm="full",
        windows="fourth",
        local_rope=True,
        local_theta=5e5,
        rope_types=_NO_LONGROPE,
        defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "rope_theta": 5e5},
    ),
    "exaone4": Family(
        norms="post",
        qk_norm="head",
        windows="pattern",
        rotation="windowed",
        **_UNBIASED,
        defaults={
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 32,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
        },
    ),
    "hunyuan_v1_dense": Family(
        qk_norm="head",
        qk_norm_after_rope=True,
        ntk_alpha=True,
        names={"self_attn.q_norm": "self_attn.query_layernorm"}
        | {"self_attn.k_norm": "self_attn.key_layernorm"},
        defaults={"rms_norm_eps": 1e-5},
    ),
    "arcee": Family(
        gated_mlp=False,
        mlp_bias="mlp_bias",
        even_heads=True,
        defaults={"rms_norm_eps": 1e-5, "hidden_act": "relu2"},
    ),
    "seed_oss": Family(
        o_bias="attention_out_bias",
        mlp_bias="mlp_bias",
        defaults={"num_key_value_heads": 8, "head_dim": 128, "attention_bias": True},
    ),
    "ernie4_5": Family(
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        interleaved_rope=True,
        defaults={
            "num_key_value_heads": 2,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_theta": 5e5,
        },
    ),
    "glm": Family(**_GLM),
    "glm4": Family(
        norms="sandwich",
        names={
            "post_attention_layernorm": "post_self_attn_layernorm",
            "pre_feedforward_layernorm": "post_attention_layernorm",
            "post_feedforward_layernorm": "post_mlp_layernorm",
        },
        **_GLM,
    ),
    "apertus": Family(
        qk_norm="head",
        gated_mlp=False,
        names={
            "input_layernorm": "attention_layernorm",
            "post_attention_layernorm": "feedforward_layernorm",
        },
        defaults={
            "rms_norm_eps": 1e-5,
            "hidden_act": "xielu",
            "rope_theta": 12e6,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 12e6,
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        },
    ),
    "lfm2": Family(
        qk_norm="head",
        **_UNBIASED,
        mixer="short_conv",
        adjusted_ffn=True,
        eps_field="norm_eps",
        names=LFM2_NAMES,
        defaults={
            "norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
            "rope_theta": 1e6,
            "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": True,
            "block_multiple_of": 256,
            "block_ffn_dim_multiplier": 1.0,
        },
    ),
    "qwen3_5_text": Family(
        norm_plus_one=True,
        qk_norm="head",
        attention_gate=True,
        partial_rotation=True,
        mixer="gated_delta",
        defaults=QWEN_3_5,
    ),
    "granite_swa": Family(
        mlp_bias="mlp_bias",
        multipliers=True,
        attention_sinks=True,
        windows="first",
        rotation="theta",
        defaults={
            "attention_multiplier": 1.0,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "sliding_window": 128,
            "rms_norm_eps": 1e-5,
        },
    ),
    "falcon_h1": Family(
        parallel_mamba=True,
        logits_factor="lm_head_multiplier",
        mlp_bias="mlp_bias",
        names={
            "norm": "final_layernorm",
            "post_attention_layernorm": "pre_ff_layernorm",
            "mlp.gate_proj": "feed_forward.gate_proj",
            "mlp.up_proj": "feed_forward.up_proj",
            "mlp.down_proj": "feed_forward.down_proj",
        },
        defaults=FALCON_H1,
    ),
    "nemotron_h": Family(
        single_sublayers=True,
        qkv_bias=False,
        o_bias=False,
        mlp_bias="mlp_bias",
        gated_mlp=False,
        eps_field="layer_norm_epsilon",
        activation_field="mlp_hidden_act",
        names=NEMOTRON_H_NAMES,
        defaults=NEMOTRON_H,
    ),
    **LAYER_NORMS,
    **MIXTURES,
}
