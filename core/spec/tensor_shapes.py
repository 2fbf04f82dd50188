"""The tensors of a checkpoint, under Hugging Face's names, from the decoder's spec."""

from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.family import NormPlacement
from edgelm.spec.tensor_names import canonical_name, stored_name

Shapes = dict[str, tuple[int, ...]]
EMBEDDING_WEIGHT = "model.embed_tokens.weight"
HEAD_WEIGHT = "lm_head.weight"


def tensor_shapes(spec: DecoderSpec) -> Shapes:
    """Name and shape of every tensor that a checkpoint of this decoder must have."""
    hidden = spec.hidden_size
    shapes: Shapes = {
        EMBEDDING_WEIGHT: (spec.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not spec.tie_word_embeddings:
        shapes[HEAD_WEIGHT] = (spec.vocab_size, hidden)
    layer = _layer_shapes(spec)
    for index in range(spec.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return {stored_name(spec.family, name): shape for name, shape in shapes.items()}


def has_bias(spec: DecoderSpec, name: str) -> bool:
    """Whether the matrix of this name, e.g. `model.layers.0.mlp.up_proj.weight`, has a bias."""
    return {
        "q_proj": spec.qkv_bias,
        "k_proj": spec.qkv_bias,
        "v_proj": spec.qkv_bias,
        "o_proj": spec.o_bias,
        "gate_proj": spec.mlp_bias,
        "up_proj": spec.mlp_bias,
        "down_proj": spec.mlp_bias,
    }.get(canonical_name(spec.family, name).split(".")[-2], False)


def _layer_shapes(spec: DecoderSpec) -> Shapes:
    """Under canonical names."""
    hidden, q, kv = spec.hidden_size, spec.q_size, spec.kv_size
    shapes: Shapes = {}
    for name, shape in _matrices(spec).items():
        shapes[f"{name}.weight"] = shape
        if has_bias(spec, f"model.layers.0.{name}.weight"):
            shapes[f"{name}.bias"] = shape[:1]
    shapes |= {f"{norm}.weight": (hidden,) for norm in _NORMS[spec.norms]}
    if spec.qk_norm != "none":
        full = spec.qk_norm == "full"
        shapes["self_attn.q_norm.weight"] = (q if full else spec.head_dim,)
        shapes["self_attn.k_norm.weight"] = (kv if full else spec.head_dim,)
    if spec.attention_sinks:
        shapes["self_attn.sinks"] = (spec.num_attention_heads,)
    if spec.hidden_act == "xielu":
        shapes |= dict.fromkeys(("mlp.act_fn.alpha_p", "mlp.act_fn.alpha_n"), (1,))
        shapes |= dict.fromkeys(("mlp.act_fn.beta", "mlp.act_fn.eps"), ())
    return shapes


def _matrices(spec: DecoderSpec) -> Shapes:
    hidden, ffn, q, kv = spec.hidden_size, spec.intermediate_size, spec.q_size, spec.kv_size
    matrices: Shapes = {}
    if spec.fused_projections:
        matrices["self_attn.qkv_proj"] = (q + 2 * kv, hidden)
    else:
        sizes = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        matrices |= {f"self_attn.{name}": (rows, hidden) for name, rows in sizes.items()}
    if spec.fuses_gate_up:
        matrices["mlp.gate_up_proj"] = (2 * ffn, hidden)
    else:
        names = ("gate_proj", "up_proj") if spec.gated_mlp else ("up_proj",)
        matrices |= {f"mlp.{name}": (ffn, hidden) for name in names}
    return matrices | {"self_attn.o_proj": (hidden, q), "mlp.down_proj": (hidden, ffn)}


_NORMS: dict[NormPlacement, tuple[str, ...]] = {
    "pre": ("input_layernorm", "post_attention_layernorm"),
    "post": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "sandwich": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}
