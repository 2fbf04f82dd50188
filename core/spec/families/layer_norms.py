"""The families whose norms are LayerNorms; a part of `FAMILIES` (edgelm.spec.families.table)."""

from typing import Any

from edgelm.spec.families.family import Family

_COHERE: Any = {
    "refused": {"use_qk_norm": "norms with a weight for each head (Command R+)"},
    "layer_norm": True,
    "norm_bias": False,
    "parallel_mlp": True,
    "interleaved_rope": True,
    "logits_factor": "logit_scale",
    "eps_field": "layer_norm_eps",
}

_GPT_NEOX_NAMES = {
    "embed_tokens": "embed_in",
    "norm": "final_layer_norm",
    "self_attn.qkv_proj": "attention.query_key_value",
    "self_attn.o_proj": "attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}

_COHERE_DEFAULTS: dict[str, Any] = {
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}

LAYER_NORMS: dict[str, Family] = {
    "starcoder2": Family(
        layer_norm=True,
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        gated_mlp=False,
        windows="all",
        eps_field="norm_epsilon",
        names={"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"},
        defaults={
            "use_bias": True,
            "num_key_value_heads": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
        },
    ),
    "stablelm": Family(
        layer_norm=True,
        qkv_bias="use_qkv_bias",
        o_bias=False,
        parallel_mlp="use_parallel_residual",
        partial_rotation=True,
        derived_heads=True,
        even_heads=True,
        eps_field="layer_norm_eps",
        defaults={
            "layer_norm_eps": 1e-5,
            "num_key_value_heads": 32,
            "partial_rotary_factor": 0.25,
        },
    ),
    "cohere": Family(**_COHERE, defaults=_COHERE_DEFAULTS | {"rope_theta": 5e5}),
    "cohere2": Family(
        windows="pattern",
        rotation="sliding",
        derived_heads=True,
        **_COHERE,
        defaults=_COHERE_DEFAULTS | {"sliding_window": 4096, "sliding_window_pattern": 4},
    ),
    "phi": Family(
        layer_norm=True,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        head_bias=True,
        gated_mlp=False,
        parallel_mlp=True,
        partial_rotation=True,
        eps_field="layer_norm_eps",
        names={
            "norm": "final_layernorm",
            "self_attn.o_proj": "self_attn.dense",
            "mlp.up_proj": "mlp.fc1",
            "mlp.down_proj": "mlp.fc2",
        },
        defaults={
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "max_position_embeddings": 2048,
        },
    ),
    "gpt_neox": Family(
        layer_norm=True,
        fused_qkv=True,
        qkv_by_head=True,
        mlp_bias=True,
        gated_mlp=False,
        parallel_mlp="use_parallel_residual",
        parallel_norm=True,
        partial_rotation=True,
        rope_fields=("rotary_emb_base", "rotary_pct"),
        derived_heads=True,
        even_heads=True,
        eps_field="layer_norm_eps",
        prefix="gpt_neox",
        names=_GPT_NEOX_NAMES,
        defaults={
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "attention_bias": True,
            "use_parallel_residual": True,
            "rotary_emb_base": 10_000.0,
            "rotary_pct": 0.25,
        },
    ),
}
