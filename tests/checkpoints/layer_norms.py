"""What sets the tiny models with LayerNorms apart (tests/checkpoints/models.py)."""

from typing import Any

_PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
_PARTIAL: dict[str, Any] = {
    "head_dim": None,
    "rope_parameters": _PLAIN | {"partial_rotary_factor": 0.25},
}
# name -> (model_type, what differs from the base of all tiny models)
LAYER_NORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "starcoder2": ("starcoder2", {"sliding_window": 8, "head_dim": None}),
    "stablelm": ("stablelm", {"use_qkv_bias": True} | _PARTIAL),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True} | _PARTIAL),
    "cohere": ("cohere", {"logit_scale": 0.3}),
    "cohere2": ("cohere2", {"sliding_window": 8, "logit_scale": 0.3, "attention_bias": True}),
    "gpt-neox": ("gpt_neox", _PARTIAL | {"num_key_value_heads": None}),
    "gpt-neox-sequential": (
        "gpt_neox",
        _PARTIAL
        | {
            "num_key_value_heads": None,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "phi": ("phi", {"rope_parameters": _PLAIN | {"partial_rotary_factor": 0.5}}),
}
