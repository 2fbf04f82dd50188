"""The architectures with gated delta or Mamba-2 layers; a part of `ARCHITECTURES`."""

from edgelm.checkpoint.gguf.layout.architecture import Architecture
from edgelm.checkpoint.gguf.layout.mixtures import GRANITE_EXPERTS, GRANITE_STACKS
from edgelm.checkpoint.gguf.layout.shared_names import DOWN, EXPERTS, GRANITE


def _mamba(module: str) -> dict[str, str]:
    return {
        "ssm_in": f"{module}.in_proj",
        "ssm_conv1d": f"{module}.conv1d",
        "ssm_dt.bias": f"{module}.dt_bias",
        "ssm_a": f"{module}.A_log",
        "ssm_d": f"{module}.D",
        "ssm_norm": f"{module}.norm",
        "ssm_out": f"{module}.out_proj",
    }


def _mamba_biases(module: str) -> dict[str, str]:
    return {
        "mamba_conv_bias": f"{module}.conv1d.bias",
        "mamba_proj_bias": f"{module}.in_proj.bias",
    }


_QWEN_3_5 = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_QWEN_3_5_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
# Without experts, the expert that always runs is the MLP.
_GRANITE_SHARED = "shared_mlp.input_linear"
_GRANITE_MLP = {
    f"ffn_{name}{end}": (_GRANITE_SHARED, index)
    for index, name in enumerate(("gate", "up"))
    for end in ("", "_shexp")
}
_GRANITE_DOWN = dict.fromkeys(("ffn_down", "ffn_down_shexp"), "shared_mlp.output_linear")
_NEMOTRON_H = {
    "attn_norm": "norm",
    "ffn_up": "mixer.up_proj",
    "ffn_down": "mixer.down_proj",
    "attn_q": "mixer.q_proj",
    "attn_k": "mixer.k_proj",
    "attn_v": "mixer.v_proj",
    "attn_output": "mixer.o_proj",
}
_FALCON_H1 = {
    # The converter writes this norm without the end of its name.
    **dict.fromkeys(("ffn_norm", "ffn_norm.weight"), "pre_ff_layernorm.weight"),
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
}
# Falcon-H1's constants are multiplied into its matrices.
_ONES = dict.fromkeys(
    (
        *("embedding_multiplier", "lm_head_multiplier", "key_multiplier", "ssm_in_multiplier"),
        *("attention_in_multiplier", "attention_out_multiplier", "ssm_out_multiplier"),
    ),
    1.0,
)

RECURRENT = {
    "qwen35": Architecture(
        "qwen3_5_text",
        _QWEN_3_5,
        tiled_values=True,
        norm_plus_one=True,
        plain_norms=("linear_attn.norm",),
        partial_rotation=True,
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text",
        _QWEN_3_5 | _QWEN_3_5_EXPERTS | DOWN,
        joined=EXPERTS,
        tiled_values=True,
        norm_plus_one=True,
        plain_norms=("linear_attn.norm",),
        partial_rotation=True,
    ),
    "granitehybrid": Architecture(
        "granitemoehybrid",
        _mamba("mamba") | GRANITE_EXPERTS | _GRANITE_DOWN,
        joined=GRANITE_STACKS | _GRANITE_MLP,
        permuted=True,
        scales=GRANITE,
        biases=_mamba_biases("mamba") | {"attention_bias": "self_attn.q_proj.bias"},
    ),
    "nemotron_h": Architecture(
        "nemotron_h",
        _mamba("mixer") | _NEMOTRON_H,
        {
            "token_embd.weight": "model.embeddings.weight",
            "output_norm.weight": "model.norm_f.weight",
        },
        permuted=True,  # without RoPE that changes nothing, and the converter does it
        rotates=False,
        biases={
            "use_conv_bias": "mixer.conv1d.bias",
            "use_bias": "mixer.in_proj.bias",
            "mlp_bias": "mixer.down_proj.bias",
        },
        # llama.cpp does not limit time steps; the class does, in prompts.
        fields={"time_step_min": 1e-30},
    ),
    "falcon-h1": Architecture(
        "falcon_h1",
        _mamba("mamba") | _FALCON_H1,
        {"output_norm.weight": "model.final_layernorm.weight"},
        biases=_mamba_biases("mamba")
        | {
            "attention_bias": "self_attn.q_proj.bias",
            "mlp_bias": "feed_forward.down_proj.bias",
            "projectors_bias": "mamba.out_proj.bias",
            "mamba_rms_norm": "mamba.norm.weight",
        },
        fields=_ONES
        | {
            "mlp_multipliers": [1.0, 1.0],
            "ssm_multipliers": [1.0] * 5,
            "mamba_norm_before_gate": False,
        },
    ),
}
