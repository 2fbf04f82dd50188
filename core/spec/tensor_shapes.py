"""The tensors of a checkpoint, under Hugging Face's names, from the decoder's spec."""

from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.experts import DOWN, GATE_UP, MixtureOfExperts
from edgelm.spec.families import FAMILIES
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
    kinds = {(layer.mixer, layer.intermediate_size, layer.mlp): layer for layer in spec.layers}
    layers = {kind: _layer_shapes(spec, layer) for kind, layer in kinds.items()}
    for index, layer in enumerate(spec.layers):
        own = layers[layer.mixer, layer.intermediate_size, layer.mlp].items()
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in own}
    return {stored_name(spec.family, name): shape for name, shape in shapes.items()}


def weight_name(module: str) -> str:
    """The tensor of a module's weight; stacked matrices of experts are tensors themselves."""
    return module if module in (GATE_UP, DOWN) else f"{module}.weight"


def stacked_by_input(family: str) -> bool:
    """Whether experts are stored [experts, inputs, outputs], rows of gate and up alternating."""
    experts = FAMILIES[family].experts
    return experts is not None and experts.by_input


def has_bias(spec: DecoderSpec, name: str) -> bool:
    """Whether the matrix of this name, e.g. `model.layers.0.mlp.up_proj.weight`, has a bias."""
    parts = canonical_name(spec.family, name).split(".")
    if parts[1] != "layers":
        return False
    return _biased(spec, spec.layers[int(parts[2])], ".".join(parts[3:5]))


def _biased(spec: DecoderSpec, layer: LayerSpec, module: str) -> bool:
    kind, name = module.split(".")[:2]
    if layer.mlp is not None and kind == "mlp":
        return name == "experts" and layer.mlp.biases
    if layer.mixer is not None and kind != "mlp":
        return f"{module}.bias" in layer.mixer.vectors(spec.hidden_size)
    if name in ("q_proj", "k_proj", "v_proj"):
        return spec.qkv_bias
    if name == "o_proj":
        return spec.o_bias
    return spec.mlp_bias and name in ("gate_proj", "up_proj", "down_proj")


def _layer_shapes(spec: DecoderSpec, layer: LayerSpec) -> Shapes:
    """Under canonical names."""
    shapes: Shapes = {}
    mixer = layer.mixer
    matrices = _attention_matrices(spec) if mixer is None else mixer.modules(spec.hidden_size)
    ffn = spec.mlp_size(layer)
    mlp = _mlp_matrices(spec, ffn) if layer.mlp is None else layer.mlp.modules(spec.hidden_size)
    for name, shape in (matrices | mlp).items():
        shapes[f"{name}.weight"] = shape
        if _biased(spec, layer, name):
            shapes[f"{name}.bias"] = shape[:1]
    shapes |= {f"{norm}.weight": (spec.hidden_size,) for norm in _NORMS[spec.norms]}
    shapes |= _attention_vectors(spec) if mixer is None else mixer.vectors(spec.hidden_size)
    if layer.mlp is not None:
        return shapes | _stacks(spec, layer.mlp) | layer.mlp.vectors(spec.hidden_size)
    if spec.hidden_act == "xielu" and ffn:
        shapes |= dict.fromkeys(("mlp.act_fn.alpha_p", "mlp.act_fn.alpha_n"), (1,))
        shapes |= dict.fromkeys(("mlp.act_fn.beta", "mlp.act_fn.eps"), ())
    return shapes


def _stacks(spec: DecoderSpec, mixture: MixtureOfExperts) -> Shapes:
    stacks = mixture.stacks(spec.hidden_size)
    if not stacked_by_input(spec.family):
        return stacks
    return {name: (shape[0], shape[2], shape[1]) for name, shape in stacks.items()}


def _attention_matrices(spec: DecoderSpec) -> Shapes:
    hidden, q, kv = spec.hidden_size, spec.q_size, spec.kv_size
    output: Shapes = {"self_attn.o_proj": (hidden, q)}
    if spec.fused_projections:
        return {"self_attn.qkv_proj": (q + 2 * kv, hidden)} | output
    sizes = {"q_proj": q * (1 + spec.attention_gate), "k_proj": kv, "v_proj": kv}
    return {f"self_attn.{name}": (rows, hidden) for name, rows in sizes.items()} | output


def _attention_vectors(spec: DecoderSpec) -> Shapes:
    shapes: Shapes = {}
    if spec.qk_norm != "none":
        full = spec.qk_norm == "full"
        shapes["self_attn.q_norm.weight"] = (spec.q_size if full else spec.head_dim,)
        shapes["self_attn.k_norm.weight"] = (spec.kv_size if full else spec.head_dim,)
    if spec.attention_sinks:
        shapes["self_attn.sinks"] = (spec.num_attention_heads,)
    return shapes


def _mlp_matrices(spec: DecoderSpec, ffn: int) -> Shapes:
    if not ffn:
        return {}
    hidden = spec.hidden_size
    output: Shapes = {"mlp.down_proj": (hidden, ffn)}
    if spec.gated_mlp and spec.fuses_gate_up:
        return {"mlp.gate_up_proj": (2 * ffn, hidden)} | output
    names = ("gate_proj", "up_proj") if spec.gated_mlp else ("up_proj",)
    return {f"mlp.{name}": (ffn, hidden) for name in names} | output


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
