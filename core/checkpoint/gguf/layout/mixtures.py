"""The architectures with mixtures of experts; a part of `ARCHITECTURES`.

llama.cpp stacks the experts of a layer, their gates apart from their ups.
"""

from edgelm.checkpoint.gguf.layout.architecture import Architecture
from edgelm.checkpoint.gguf.layout.shared_names import (
    DOWN,
    EXPERTS,
    GRANITE,
    LFM_2,
    LFM_2_TOP,
    LLAMA_BIASES,
)

_ROUTER = {"ffn_gate_inp": "mlp.gate"}
_GPT_OSS = DOWN | {
    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
    "ffn_gate_inp": "mlp.router",
    "attn_sinks.weight": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
}
_GPT_OSS_BIASES = {
    "ffn_gate_exps.bias": ("mlp.experts.gate_up_proj_bias", 0),
    "ffn_up_exps.bias": ("mlp.experts.gate_up_proj_bias", 1),
}
_LFM_2_EXPERTS = {
    "ffn_gate_inp": "feed_forward.gate",
    "exp_probs_b.bias": "feed_forward.expert_bias",
    "ffn_down_exps.weight": "feed_forward.experts.down_proj",
}
_LFM_2_STACK = "feed_forward.experts.gate_up_proj"
_GRANITE_STACK = "block_sparse_moe.experts.gate_up_proj"

GRANITE_EXPERTS = {
    "ffn_gate_inp": "block_sparse_moe.router",
    "ffn_down_exps.weight": "block_sparse_moe.experts.down_proj",
}
GRANITE_STACKS = {
    "ffn_gate_exps.weight": (_GRANITE_STACK, 0),
    "ffn_up_exps.weight": (_GRANITE_STACK, 1),
}

MIXTURES = {
    # The files do not say whether scores are normalized: llama.cpp does for some architectures.
    "qwen3moe": Architecture(
        "qwen3_moe", _ROUTER | DOWN, joined=EXPERTS, fields={"norm_topk_prob": True}
    ),
    "olmoe": Architecture(
        "olmoe", _ROUTER | DOWN, joined=EXPERTS, fields={"norm_topk_prob": False}
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        _GPT_OSS,
        joined=EXPERTS | _GPT_OSS_BIASES,
        experts_by_input=True,
        windows="pattern",
        fields={"attention_bias": True, "swiglu_limit": 7.0},
    ),
    "lfm2moe": Architecture(
        "lfm2_moe",
        LFM_2 | _LFM_2_EXPERTS,
        LFM_2_TOP,
        {"ffn_gate_exps.weight": (_LFM_2_STACK, 0), "ffn_up_exps.weight": (_LFM_2_STACK, 1)},
        biases={"conv_bias": "conv.conv.bias", "use_expert_bias": "feed_forward.expert_bias"},
        fields={"norm_topk_prob": True, "routed_scaling_factor": 1.0},
    ),
    "granitemoe": Architecture(
        "granitemoe",
        GRANITE_EXPERTS,
        joined=GRANITE_STACKS,
        permuted=True,
        scales=GRANITE,
        biases={"attention_bias": LLAMA_BIASES["attention_bias"]},
    ),
}
