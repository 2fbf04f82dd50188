"""The tensors of a checkpoint, under Hugging Face's names, from the decoder's spec."""

import msgspec

from edgelm.spec.assistant import Assistant
from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.layers.experts import DOWN, GATE_UP, MixtureOfExperts
from edgelm.spec.tensor_names import canonical_name, stored_name

Shapes = dict[str, tuple[int, ...]]
EMBEDDING_WEIGHT = "model.embed_tokens.weight"
HEAD_WEIGHT = "lm_head.weight"
HEAD_BIAS = "lm_head.bias"
PER_LAYER_EMBEDDING_WEIGHT = "model.embed_tokens_per_layer.weight"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
PER_LAYER_MODEL_WEIGHT = "model.per_layer_model_projection.weight"
FUSION_WEIGHT = "model.fc.weight"
FUSION_NORMS = ("pre_fc_norm_embedding", "pre_fc_norm_hidden")
ASSISTANT_INPUT_WEIGHT = "pre_projection.weight"
ASSISTANT_OUTPUT_WEIGHT = "post_projection.weight"
CENTROIDS = "masked_embedding.centroids.weight"
TOKEN_ORDER = "masked_embedding.token_ordering"


def tensor_shapes(spec: DecoderSpec) -> Shapes:
    """Name and shape of every tensor that a checkpoint of this decoder must have."""
    hidden = spec.hidden_size
    shapes = _norm(spec, "model.norm")
    if spec.draft_head:
        shapes[FUSION_WEIGHT] = (hidden, 2 * hidden)
        shapes |= {f"model.{name}.weight": (hidden,) for name in FUSION_NORMS}
    elif spec.assistant is not None:
        shapes |= _assistant_shapes(spec, spec.assistant)
    else:
        shapes |= _table_shapes(spec)
    if (inputs := spec.per_layer_inputs) is not None:
        shapes[PER_LAYER_EMBEDDING_WEIGHT] = (inputs.vocab_size, spec.per_layer_width)
        shapes[PER_LAYER_MODEL_WEIGHT] = (spec.per_layer_width, hidden)
        shapes["model.per_layer_projection_norm.weight"] = (inputs.size,)
    if spec.altup is not None:
        modules = spec.altup.modules(hidden).items()
        shapes |= {f"model.{name}.weight": shape for name, shape in modules}
    kinds = [msgspec.structs.replace(layer, rope=None, window=None) for layer in spec.layers]
    layers = {kind: _layer_shapes(spec, kind) for kind in dict.fromkeys(kinds)}
    for index, kind in enumerate(kinds):
        own = layers[kind].items()
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in own}
    return {stored_name(spec.family, name): shape for name, shape in shapes.items()}


def _table_shapes(spec: DecoderSpec) -> Shapes:
    """The embedding, and what a head has of its own."""
    shapes: Shapes = {EMBEDDING_WEIGHT: (spec.vocab_size, spec.hidden_size)}
    if not spec.tie_word_embeddings:
        shapes[HEAD_WEIGHT] = (spec.vocab_size, spec.hidden_size)
    if spec.head_bias and spec.has_head:
        shapes[HEAD_BIAS] = (spec.vocab_size,)
    return shapes


def _assistant_shapes(spec: DecoderSpec, own: Assistant) -> Shapes:
    """What is around an assistant's layers; its model's embedding is not its own."""
    table = EMBEDDING_WEIGHT if spec.tie_word_embeddings else HEAD_WEIGHT
    shapes: Shapes = {
        ASSISTANT_INPUT_WEIGHT: (spec.hidden_size, 2 * own.model_size),
        ASSISTANT_OUTPUT_WEIGHT: (own.model_size, spec.hidden_size),
        table: (spec.vocab_size, spec.hidden_size),
    }
    if own.centroids:
        shapes[CENTROIDS] = (own.centroids, spec.hidden_size)
        shapes[TOKEN_ORDER] = (spec.vocab_size,)
    return shapes


def weight_name(module: str) -> str:
    """The tensor of a module's weight; stacked matrices of experts are tensors themselves."""
    return module if module in (GATE_UP, DOWN) else f"{module}.weight"


def bias_name(weight: str) -> str:
    """The tensor of a matrix's bias, from that of the matrix."""
    if weight.endswith(".weight"):
        return weight.removesuffix("weight") + "bias"
    return f"{weight}_bias"  # of stacked experts


def stacked_by_input(family: str) -> bool:
    """Whether experts are stored [experts, inputs, outputs], rows of gate and up alternating."""
    experts = FAMILIES[family].experts
    return experts is not None and experts.by_input


def has_bias(spec: DecoderSpec, name: str) -> bool:
    """Whether the matrix of this name, e.g. `model.layers.0.mlp.up_proj.weight`, has a bias."""
    parts = canonical_name(spec.family, name).split(".")
    if name == HEAD_WEIGHT:
        return spec.head_bias
    if parts[1] != "layers":
        return False
    return _biased(spec, spec.layers[int(parts[2])], ".".join(parts[3:5]))


def _biased(spec: DecoderSpec, layer: LayerSpec, module: str) -> bool:
    kind, name = [*module.split("."), ""][:2]
    if layer.mlp is not None and kind == "mlp":
        return name == "experts" and layer.mlp.biases
    own = layer.mixer or (layer.beside if kind == "mamba" else None)
    if own is not None and kind != "mlp":
        return f"{module}.bias" in own.vectors(spec.hidden_size)
    if name in ("q_proj", "k_proj", "v_proj", "qkv_proj"):
        return spec.qkv_bias
    if name == "o_proj":
        return spec.o_bias
    return spec.mlp_bias and name in ("gate_proj", "up_proj", "down_proj")


def _layer_shapes(spec: DecoderSpec, layer: LayerSpec) -> Shapes:
    """Under canonical names."""
    shapes: Shapes = {}
    mixer = layer.mixer
    if mixer is None:
        matrices, vectors = _attention_matrices(spec, layer), _attention_vectors(spec, layer)
    else:
        matrices, vectors = mixer.modules(spec.hidden_size), mixer.vectors(spec.hidden_size)
    if layer.beside is not None:
        matrices |= layer.beside.modules(spec.hidden_size)
        vectors |= layer.beside.vectors(spec.hidden_size)
    ffn = spec.mlp_size(layer)
    mlp = _mlp_matrices(spec, ffn) if layer.mlp is None else layer.mlp.modules(spec.hidden_size)
    others = _laurel_matrices(spec) | _per_layer_matrices(spec)
    for name, shape in (matrices | mlp | others).items():
        shapes[f"{name}.weight"] = shape
        if _biased(spec, layer, name):
            shapes[f"{name}.bias"] = shape[:1]
    for norm in spec.norm_names:
        shapes |= _norm(spec, norm)
    shapes |= vectors
    if spec.layer_scalars:
        shapes["layer_scalar"] = (1,)
    if spec.per_layer_inputs is not None:
        shapes["post_per_layer_input_norm.weight"] = (spec.hidden_size,)
    if spec.laurel_rank:
        shapes["laurel.post_laurel_norm.weight"] = (spec.hidden_size,)
    if spec.altup is not None:
        shapes |= spec.altup.vectors(spec.hidden_size)
    if layer.mlp is not None:
        return shapes | _stacks(spec, layer.mlp) | layer.mlp.vectors(spec.hidden_size)
    if spec.hidden_act == "xielu" and ffn:
        shapes |= dict.fromkeys(("mlp.act_fn.alpha_p", "mlp.act_fn.alpha_n"), (1,))
        shapes |= dict.fromkeys(("mlp.act_fn.beta", "mlp.act_fn.eps"), ())
    return shapes


def _norm(spec: DecoderSpec, name: str) -> Shapes:
    """The tensors of a norm over the residual stream."""
    kinds = ("weight", "bias") if spec.norms_have_bias else ("weight",)
    return {f"{name}.{kind}": (spec.hidden_size,) for kind in kinds}


def _stacks(spec: DecoderSpec, mixture: MixtureOfExperts) -> Shapes:
    stacks = mixture.stacks(spec.hidden_size)
    if not stacked_by_input(spec.family):
        return stacks
    return {name: (shape[0], shape[2], shape[1]) for name, shape in stacks.items()}


def _attention_matrices(spec: DecoderSpec, layer: LayerSpec) -> Shapes:
    hidden, projected = spec.hidden_size, spec.projected_sizes(layer)
    q = projected[0]
    output: Shapes = {"self_attn.o_proj": (hidden, q)}
    if spec.fused_projections:
        return {"self_attn.qkv_proj": (sum(projected), hidden)} | output
    rows = (q * (1 + spec.attention_gate), *projected[1:])
    names = zip(QKV, rows, strict=False)  # a layer may lack values, or keys and values
    return {name: (size, hidden) for name, size in names} | output


def _per_layer_matrices(spec: DecoderSpec) -> Shapes:
    if (inputs := spec.per_layer_inputs) is None:
        return {}
    return {
        "per_layer_input_gate": (inputs.size, spec.hidden_size),
        "per_layer_projection": (spec.hidden_size, inputs.size),
    }


def _laurel_matrices(spec: DecoderSpec) -> Shapes:
    if not spec.laurel_rank:
        return {}
    return {
        "laurel.linear_left": (spec.laurel_rank, spec.hidden_size),
        "laurel.linear_right": (spec.hidden_size, spec.laurel_rank),
    }


def _attention_vectors(spec: DecoderSpec, layer: LayerSpec) -> Shapes:
    shapes: Shapes = {}
    if spec.qk_norm != "none":
        heads = spec.heads(layer)
        widths = zip(("q_norm", "k_norm"), spec.projected_sizes(layer), strict=False)
        shapes |= {
            f"self_attn.{name}.weight": (size if spec.qk_norm == "full" else heads.dim,)
            for name, size in widths
        }
    if spec.attention_sinks:
        shapes["self_attn.sinks"] = (spec.heads(layer).queries,)
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
