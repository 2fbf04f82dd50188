"""Hugging Face's names for the tensors of a GGUF file."""

from edgelm.checkpoint.gguf.architectures import ARCHITECTURES

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
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# LFM2's last norm; older files call it the embedding's, as its class in Hugging Face does.
_LFM_2_TOP_NAMES = dict.fromkeys(
    ("token_embd_norm.weight", "output_norm.weight"), "model.embedding_norm.weight"
)


def hf_name(architecture: str, name: str) -> str:
    """The name in a Hugging Face checkpoint; unknown names are unchanged."""
    top = _TOP_NAMES | (_LFM_2_TOP_NAMES if architecture == "lfm2" else {})
    if name in top:
        return top[name]
    if not name.startswith("blk.") or name.count(".") < 3:
        return name
    _, layer, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    names = {**_LAYER_NAMES, **ARCHITECTURES[architecture].names}
    if part not in names:
        return name
    return f"model.layers.{layer}.{names[part]}.{kind}"
