"""How llama.cpp writes the models of each architecture (its `conversion/*.py`, llama-model.cpp).

An architecture is a row. Everything else is written alike: the sizes, the norms' epsilon, RoPE, the
special tokens.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GLM_4 = {
    "ffn_up": "mlp.gate_up_proj",
    "post_attention_norm": "post_self_attn_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
_LFM_2 = {
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.conv": "conv.conv",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}
_HUNYUAN = {
    "attn_q_norm": "self_attn.query_layernorm",
    "attn_k_norm": "self_attn.key_layernorm",
}
_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_LLAMA_BIASES = {"attention_bias": "self_attn.q_proj.bias", "mlp_bias": "mlp.down_proj.bias"}


class Architecture(NamedTuple):
    """One architecture.

    model_type: Hugging Face's name of it.
    names: parts of a layer with another name in Hugging Face's checkpoints than elsewhere.
    permuted: the rows of queries and keys are in the order of a rotation of neighbors.
    norm_plus_one: norms are stored as 1 + weight.
    partial_rotation: RoPE may rotate a part of each head.
    windows: which layers have windows: `all`, those of a `pattern`, or those that `flags` mark;
        `none` if llama.cpp computes without them.
    scales: keys of scaling factors, and their fields in config.json.
    biases: fields of config.json that say whether a bias exists, and that bias in a layer.
    fields: fields of config.json that have this value in all files.
    by_transformers: whether transformers itself reads such files.
    """

    model_type: str
    names: Mapping[str, str] = {}
    permuted: bool = False
    norm_plus_one: bool = False
    partial_rotation: bool = False
    windows: Literal["none", "all", "pattern", "flags"] = "none"
    scales: Mapping[str, str] = {}
    biases: Mapping[str, str] = {}
    fields: Mapping[str, Any] = {}
    by_transformers: bool = False


# Mistral files carry the architecture `llama`.
ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True, biases=_LLAMA_BIASES, by_transformers=True),
    "qwen2": Architecture("qwen2", by_transformers=True),
    "qwen3": Architecture("qwen3", by_transformers=True),
    "gemma": Architecture("gemma", norm_plus_one=True),
    "gemma2": Architecture(
        "gemma2", _SANDWICH, norm_plus_one=True, windows="pattern", by_transformers=True
    ),
    "gemma3": Architecture(
        "gemma3_text", _SANDWICH, norm_plus_one=True, windows="pattern", by_transformers=True
    ),
    "phi3": Architecture(
        "phi3",
        {"ffn_up": "mlp.gate_up_proj"},
        partial_rotation=True,
        windows="all",
        by_transformers=True,
    ),
    # SmolLM3 rotates three layers of four, as transformers does unless told otherwise.
    "smollm3": Architecture("smollm3", permuted=True, biases=_LLAMA_BIASES),
    "granite": Architecture("granite", permuted=True, scales=_GRANITE, biases=_LLAMA_BIASES),
    "arcee": Architecture("arcee", permuted=True, biases=_LLAMA_BIASES),
    "mistral3": Architecture(
        "ministral3",
        permuted=True,
        scales={"attention.temperature_scale": "llama_4_scaling_beta"},
        fields={"sliding_window": None},
    ),
    "olmo2": Architecture("olmo2", _POST_NORMS, windows="flags"),
    "exaone4": Architecture("exaone4", _POST_NORMS, windows="flags"),
    "seed_oss": Architecture(
        "seed_oss",
        {"post_attention_norm": "post_attention_layernorm"},
        biases=_LLAMA_BIASES | {"attention_out_bias": "self_attn.o_proj.bias"},
    ),
    "hunyuan-dense": Architecture(
        "hunyuan_v1_dense", _HUNYUAN, biases={"attention_bias": "self_attn.q_proj.bias"}
    ),
    "ernie4_5": Architecture("ernie4_5", biases={"use_bias": "self_attn.q_proj.bias"}),
    "glm4": Architecture(
        "glm4", _GLM_4, partial_rotation=True, biases={"attention_bias": "self_attn.q_proj.bias"}
    ),
    "lfm2": Architecture(
        "lfm2",
        _LFM_2,
        biases={"conv_bias": "conv.conv.bias"},
        fields={"block_auto_adjust_ff_dim": False},
        # transformers 5.23 takes the epsilon of its norms from elsewhere.
    ),
}
