"""The groups of `edgelm.quantize.precision`: executed matrices and the tensors they consist of."""

from edgelm.spec.decoder import DecoderSpec

HEAD = "lm_head"
EMBEDDING = "embedding"

_PARTS = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.o": ("self_attn.o_proj",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
_FUSED = {"attention.qkv": ("self_attn.qkv_proj",), "mlp.gate_up": ("mlp.gate_up_proj",)}


def groups(spec: DecoderSpec) -> list[str]:
    """Every group that can have its own precision, in order of execution."""
    layers = [f"layers.{i}.{part}" for i in range(spec.num_hidden_layers) for part in _PARTS]
    return ([] if spec.tie_word_embeddings else [EMBEDDING]) + [*layers, HEAD]


def tensor_names(spec: DecoderSpec, group: str) -> list[str]:
    """The checkpoint's tensors that make up a group's matrix, in order of rows."""
    if group == EMBEDDING or (group == HEAD and spec.tie_word_embeddings):
        return ["model.embed_tokens.weight"]
    if group == HEAD:
        return ["lm_head.weight"]
    layer, part = split_group(group)
    parts = _FUSED.get(part, _PARTS[part]) if spec.fused_projections else _PARTS[part]
    return [f"model.layers.{layer}.{name}.weight" for name in parts]


def split_group(name: str) -> tuple[int, str]:
    """The layer of a group or a norm, and the rest of its name."""
    _, layer, part = name.split(".", 2)
    return int(layer), part
