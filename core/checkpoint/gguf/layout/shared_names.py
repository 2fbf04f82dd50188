"""Names that architectures share: parts of a layer, and keys of scaling factors."""

SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LFM_2 = {
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
GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
LLAMA_BIASES = {"attention_bias": "self_attn.q_proj.bias", "mlp_bias": "mlp.down_proj.bias"}
# LFM2's last norm; older files call it the embedding's, as its class in Hugging Face does.
LFM_2_TOP = dict.fromkeys(
    ("token_embd_norm.weight", "output_norm.weight"), "model.embedding_norm.weight"
)
_STACK = "mlp.experts.gate_up_proj"
EXPERTS = {"ffn_gate_exps.weight": (_STACK, 0), "ffn_up_exps.weight": (_STACK, 1)}
DOWN = {"ffn_down_exps.weight": "mlp.experts.down_proj"}
