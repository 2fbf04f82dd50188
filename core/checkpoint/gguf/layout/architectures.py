"""How llama.cpp writes the models of each architecture (its `conversion/*.py`, llama-model.cpp).

An architecture is a row. Everything else is written alike: the sizes, the norms' epsilon, RoPE, the
special tokens.
"""

from edgelm.checkpoint.gguf.layout.architecture import Architecture
from edgelm.checkpoint.gguf.layout.mixtures import MIXTURES
from edgelm.checkpoint.gguf.layout.recurrent import RECURRENT
from edgelm.checkpoint.gguf.layout.shared_names import (
    GRANITE,
    LFM_2,
    LFM_2_TOP,
    LLAMA_BIASES,
    SANDWICH,
)

_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GLM_4 = {
    "ffn_up": "mlp.gate_up_proj",
    "post_attention_norm": "post_self_attn_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
_HUNYUAN = {
    "attn_q_norm": "self_attn.query_layernorm",
    "attn_k_norm": "self_attn.key_layernorm",
}
_PER_LAYER = {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
_GEMMA_4 = SANDWICH | _PER_LAYER | {"layer_output_scale.weight": "layer_scalar"}
_GEMMA_3N = {
    **SANDWICH,
    **_PER_LAYER,
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
    "altup_correct_coef": "altup.correction_coefs",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
}
_STREAMS = {
    "altup_proj.weight": "model.altup_projections.{}.weight",
    "altup_unembd_proj.weight": "model.altup_unembed_projections.{}.weight",
}
_PER_LAYER_TOP = {
    "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
}
_LAYER_NORM_TOP = {"output_norm.bias": "model.norm.bias"}
_LOGIT_SCALE = {"logit_scale": "logit_scale"}
_ATTENTION_BIAS = {"attention_bias": "self_attn.q_proj.bias"}
_PHI_2 = {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
_PHI_2_TOP = {
    "output_norm.weight": "model.final_layernorm.weight",
    "output_norm.bias": "model.final_layernorm.bias",
    "output.bias": "lm_head.bias",
}
_GPT_NEOX = {
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_GPT_NEOX_TOP = {
    "token_embd.weight": "gpt_neox.embed_in.weight",
    "output_norm.weight": "gpt_neox.final_layer_norm.weight",
    "output_norm.bias": "gpt_neox.final_layer_norm.bias",
}
_APERTUS = {"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"}
_XIELU: dict[str, tuple[str, tuple[int, ...]]] = {
    "xielu.alpha_p": ("mlp.act_fn.alpha_p", (1,)),
    "xielu.alpha_n": ("mlp.act_fn.alpha_n", (1,)),
    "xielu.beta": ("mlp.act_fn.beta", ()),
    "xielu.eps": ("mlp.act_fn.eps", ()),
}

# Mistral files carry the architecture `llama`.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", permuted=True, biases=LLAMA_BIASES, by_transformers=True),
    "qwen2": Architecture("qwen2", by_transformers=True),
    "qwen3": Architecture("qwen3", by_transformers=True),
    "gemma": Architecture("gemma", norm_plus_one=True),
    "gemma2": Architecture(
        "gemma2", SANDWICH, norm_plus_one=True, windows="pattern", by_transformers=True
    ),
    "gemma3": Architecture(
        "gemma3_text", SANDWICH, norm_plus_one=True, windows="pattern", by_transformers=True
    ),
    "gemma3n": Architecture(
        "gemma3n_text", _GEMMA_3N, _PER_LAYER_TOP, stacks=_STREAMS, windows="pattern"
    ),
    # Its rotation is that of its kinds of layers.
    "gemma4": Architecture("gemma4_text", _GEMMA_4, _PER_LAYER_TOP, rotates=False),
    "phi3": Architecture(
        "phi3",
        {"ffn_up": "mlp.gate_up_proj"},
        partial_rotation=True,
        windows="all",
        by_transformers=True,
    ),
    # SmolLM3 rotates three layers of four, which is the default of transformers, too.
    "smollm3": Architecture("smollm3", permuted=True, biases=LLAMA_BIASES),
    "granite": Architecture("granite", permuted=True, scales=GRANITE, biases=LLAMA_BIASES),
    "arcee": Architecture("arcee", permuted=True, biases=LLAMA_BIASES),
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
        biases=LLAMA_BIASES | {"attention_out_bias": "self_attn.o_proj.bias"},
    ),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", _HUNYUAN, biases=_ATTENTION_BIAS),
    "ernie4_5": Architecture("ernie4_5", biases={"use_bias": "self_attn.q_proj.bias"}),
    "glm4": Architecture("glm4", _GLM_4, partial_rotation=True, biases=_ATTENTION_BIAS),
    "lfm2": Architecture(
        "lfm2",
        LFM_2,
        LFM_2_TOP,
        biases={"conv_bias": "conv.conv.bias"},
        fields={"block_auto_adjust_ff_dim": False},
        # transformers 5.23 takes the epsilon of its norms from elsewhere.
    ),
    # transformers 5.23 reads neither the biases nor the rotation of these two.
    "starcoder2": Architecture(
        "starcoder2",
        {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        _LAYER_NORM_TOP,
        biases={"use_bias": "self_attn.q_proj.bias"},
    ),
    "stablelm": Architecture(
        "stablelm",
        top=_LAYER_NORM_TOP,
        partial_rotation=True,
        biases={"use_qkv_bias": "self_attn.q_proj.bias"},
    ),
    "command-r": Architecture("cohere", scales=_LOGIT_SCALE, biases=_ATTENTION_BIAS),
    "cohere2": Architecture(
        "cohere2", scales=_LOGIT_SCALE, biases=_ATTENTION_BIAS, windows="pattern"
    ),
    "phi2": Architecture("phi", _PHI_2, _PHI_2_TOP, partial_rotation=True),
    "gptneox": Architecture(
        "gpt_neox",
        _GPT_NEOX,
        _GPT_NEOX_TOP,
        qkv_by_head=True,
        partial_rotation=True,
        biases={"attention_bias": "attention.query_key_value.bias"},
    ),
    "apertus": Architecture(
        "apertus",
        _APERTUS,
        biases=_ATTENTION_BIAS,
        fields={"hidden_act": "xielu"},
        constants=_XIELU,
    ),
    **MIXTURES,
    **RECURRENT,
}
