"""The tensors of a checkpoint, under Hugging Face's names, from the decoder's spec."""

from edgelm.spec.decoder import DecoderSpec

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
    return shapes


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
    }.get(name.split(".")[-2], False)


def _layer_shapes(spec: DecoderSpec) -> Shapes:
    hidden, ffn, q, kv = spec.hidden_size, spec.intermediate_size, spec.q_size, spec.kv_size
    if spec.fused_projections:
        matrices = {
            "self_attn.qkv_proj": (q + 2 * kv, hidden),
            "mlp.gate_up_proj": (2 * ffn, hidden),
        }
    else:
        matrices = {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
        }
    matrices |= {"self_attn.o_proj": (hidden, q), "mlp.down_proj": (hidden, ffn)}
    shapes: Shapes = {}
    for name, shape in matrices.items():
        shapes[f"{name}.weight"] = shape
        if has_bias(spec, f"{name}.weight"):
            shapes[f"{name}.bias"] = shape[:1]
    norms = {
        "pre": ("input_layernorm", "post_attention_layernorm"),
        "post": ("post_attention_layernorm", "post_feedforward_layernorm"),
        "sandwich": (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
    }[spec.norms]
    shapes |= {f"{norm}.weight": (hidden,) for norm in norms}
    if spec.qk_norm != "none":
        full = spec.qk_norm == "full"
        shapes["self_attn.q_norm.weight"] = (q if full else spec.head_dim,)
        shapes["self_attn.k_norm.weight"] = (kv if full else spec.head_dim,)
    return shapes
