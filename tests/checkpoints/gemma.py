"""What sets the tiny models of the Gemma families apart (tests/checkpoints/models.py)."""

from typing import Any

_GEMMA_4 = {
    "num_hidden_layers": 7,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2
    + ["full_attention"],
    "sliding_window": 8,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": 128,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
# name -> (model_type, what differs from the base of all tiny models)
GEMMA: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 24}),
    "gemma3": ("gemma3_text", {"sliding_window": 8, "num_hidden_layers": 7}),
    # Layers 4 to 6 share keys and values; tokens from 120 on have no per-layer inputs of their own.
    "gemma3n": (
        "gemma3n_text",
        {
            "num_hidden_layers": 7,
            "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL],
            "sliding_window": 8,
            "num_kv_shared_layers": 3,
            "intermediate_size": [96, 64, 96, 96, 128, 96, 64],
            "activation_sparsity_pattern": [0.9, 0.6, 0.0, 0.3, 0.0, 0.95, 0.0],
            "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": 120,
            "laurel_rank": 32,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma4": ("gemma4_text", _GEMMA_4 | {"num_kv_shared_layers": 4, "use_double_wide_mlp": True}),
    "gemma4-dense": (
        "gemma4_text",
        _GEMMA_4
        | {
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma": ("gemma", {"hidden_act": "gelu"}),
}
