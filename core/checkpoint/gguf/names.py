"""Hugging Face's names for the tensors of a GGUF file."""

# GGUF architecture -> model_type. Mistral files carry the architecture `llama`.
MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}

ROPE_FREQS = "rope_freqs.weight"
ROPE_SHORT, ROPE_LONG = "rope_factors_short.weight", "rope_factors_long.weight"

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_GEMMA_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3_NAMES = {"ffn_up": "mlp.gate_up_proj"}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def hf_name(architecture: str, name: str) -> str:
    """The name in a Hugging Face checkpoint; unknown names are unchanged."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    if not name.startswith("blk.") or name.count(".") != 3:
        return name
    _, layer, part, kind = name.split(".")
    names = dict(_LAYER_NAMES)
    if architecture.startswith("gemma"):
        names |= _GEMMA_NAMES
    if architecture == "phi3":
        names |= _PHI3_NAMES
    if part not in names:
        return name
    return f"model.layers.{layer}.{names[part]}.{kind}"
