"""Hugging Face's names for the tensors of a GGUF file."""

from typing import NamedTuple

from edgelm.checkpoint.gguf.layout.architectures import ARCHITECTURES
from edgelm.spec.families.table import FAMILIES

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


class Place(NamedTuple):
    """A tensor of a Hugging Face checkpoint, and which part of it a stored one is.

    `parts` are 1, or 2 for one that is stored in two; `part` counts from 0.
    """

    name: str
    part: int = 0
    parts: int = 1


def hf_place(architecture: str, name: str) -> Place:
    """Where a tensor belongs; unknown names are unchanged."""
    row = ARCHITECTURES[architecture]
    top = {**_TOP_NAMES, **row.top}
    if name in top:
        return Place(top[name])
    blk, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    if blk != "blk" or not rest:
        return Place(name)
    prefix = f"{FAMILIES[row.model_type].prefix}.layers.{layer}"
    part, _, kind = rest.rpartition(".")
    for end, suffix in ((rest, ""), (part, f".{kind}")):
        if end in row.joined:
            ours, index = row.joined[end]
            return Place(f"{prefix}.{ours}{suffix}", index, 2)
        if (single := row.names.get(end) or _LAYER_NAMES.get(end)) is not None:
            return Place(f"{prefix}.{single}{suffix}")
    return Place(name)
