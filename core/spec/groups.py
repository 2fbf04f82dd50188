"""The groups of `edgelm.quantize.precision`: executed matrices and the tensors they consist of."""

from collections.abc import Mapping

from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import (
    ASSISTANT_INPUT_WEIGHT,
    ASSISTANT_OUTPUT_WEIGHT,
    EMBEDDING_WEIGHT,
    FUSION_WEIGHT,
    HEAD_WEIGHT,
    PER_LAYER_EMBEDDING_WEIGHT,
    PER_LAYER_MODEL_WEIGHT,
    QKV,
    stacked_by_input,
    tensor_shapes,
    weight_name,
)

HEAD = "lm_head"
EMBEDDING = "embedding"
PER_LAYER_EMBEDDING = "per_layer_embedding"
PER_LAYER_MODEL = "per_layer_model"
FUSION = "fusion"
ASSISTANT_INPUT, ASSISTANT_OUTPUT = "assistant.input", "assistant.output"
TABLES = (EMBEDDING, PER_LAYER_EMBEDDING)
"""Groups of which each token reads a row, and that nothing is multiplied with."""


def groups(spec: DecoderSpec) -> list[str]:
    """Every group that can have its own precision, in order of execution."""
    layers = [
        f"layers.{index}.{part}"
        for index, layer in enumerate(spec.layers)
        for part in _parts(spec, layer)
    ]
    if spec.draft_head:
        return [FUSION, *layers]
    if spec.assistant is not None:
        return [ASSISTANT_INPUT, *layers, ASSISTANT_OUTPUT, HEAD]
    head = [HEAD] if spec.has_head else []
    tables = [] if spec.tie_word_embeddings and head else [EMBEDDING]
    if spec.per_layer_inputs is not None:
        tables += [PER_LAYER_EMBEDDING, PER_LAYER_MODEL]
    entry, ends = (spec.altup.entry, spec.altup.exit) if spec.altup else ({}, {})
    return [*tables, *entry, *layers, *ends, *head]


def tensor_names(spec: DecoderSpec, group: str) -> list[str]:
    """The checkpoint's tensors that make up a group's matrix, in order of rows."""
    if group == EMBEDDING or (group == HEAD and spec.tie_word_embeddings):
        return [stored_name(spec.family, EMBEDDING_WEIGHT)]
    if group in _OUTSIDE:
        return [_OUTSIDE[group]]
    if spec.altup is not None and group.startswith("altup."):
        modules = (spec.altup.entry | spec.altup.exit)[group]
        return [f"model.{name}.weight" for name in modules]
    layer, part = split_group(group)
    modules = _parts(spec, spec.layers[layer])[part]
    names = [f"model.layers.{layer}.{weight_name(name)}" for name in modules]
    return [stored_name(spec.family, name) for name in names]


def mixer_output(layer: LayerSpec) -> str:
    """The group, within its layer, of the projection that follows what mixes tokens."""
    return "attention.o" if layer.mixer is None else [*layer.mixer.groups][-1]


def _parts(spec: DecoderSpec, layer: LayerSpec) -> dict[str, tuple[str, ...]]:
    """The groups of a layer, and the modules that each consists of."""
    parts: dict[str, tuple[str, ...]] = {}
    if layer.mixer is not None:
        parts |= layer.mixer.groups
    elif spec.fused_projections:
        parts |= {"attention.qkv": ("self_attn.qkv_proj",), "attention.o": ("self_attn.o_proj",)}
    else:
        qkv = QKV[: len(spec.projected_sizes(layer))]
        parts |= {"attention.qkv": qkv, "attention.o": ("self_attn.o_proj",)}
    if layer.beside is not None:
        parts |= layer.beside.groups
    parts |= _LAUREL if spec.laurel_rank else {}
    return parts | _mlp_parts(spec, layer) | (_PER_LAYER if spec.per_layer_inputs else {})


def _mlp_parts(spec: DecoderSpec, layer: LayerSpec) -> dict[str, tuple[str, ...]]:
    if layer.mlp is not None:
        return layer.mlp.groups
    if not spec.mlp_size(layer):
        return {}
    parts: dict[str, tuple[str, ...]] = {}
    if not spec.gated_mlp:
        parts["mlp.up"] = ("mlp.up_proj",)
    elif spec.fuses_gate_up:
        parts["mlp.gate_up"] = ("mlp.gate_up_proj",)
    else:
        parts["mlp.gate_up"] = ("mlp.gate_proj", "mlp.up_proj")
    return parts | {"mlp.down": ("mlp.down_proj",)}


_LAUREL = {
    "laurel.left": ("laurel.linear_left",),
    "laurel.right": ("laurel.linear_right",),
}
_PER_LAYER = {
    "per_layer.gate": ("per_layer_input_gate",),
    "per_layer.projection": ("per_layer_projection",),
}
_OUTSIDE = {
    FUSION: FUSION_WEIGHT,
    ASSISTANT_INPUT: ASSISTANT_INPUT_WEIGHT,
    ASSISTANT_OUTPUT: ASSISTANT_OUTPUT_WEIGHT,
    HEAD: HEAD_WEIGHT,
    PER_LAYER_EMBEDDING: PER_LAYER_EMBEDDING_WEIGHT,
    PER_LAYER_MODEL: PER_LAYER_MODEL_WEIGHT,
}


def experts_in(spec: DecoderSpec, group: str) -> int:
    """How many experts' matrices are stacked in a group; 0 where it is one matrix."""
    if ".mlp.experts." not in group:
        return 0
    mixture = spec.layers[split_group(group)[0]].mlp
    assert mixture is not None
    return mixture.experts


def expert_pair(group: str) -> tuple[str, str]:
    """Both groups of a layer's experts, which kernels take in one precision."""
    layer = group.rpartition(".")[0]
    return f"{layer}.gate_up", f"{layer}.down"


def matrix_shape(spec: DecoderSpec, group: str) -> tuple[int, int]:
    """Outputs and inputs of a group's matrix; the outputs of all experts together."""
    return executed_shape(spec, group, tensor_shapes(spec))


def executed_shape(
    spec: DecoderSpec, group: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int]:
    """`matrix_shape`, from the shapes of the checkpoint's tensors."""
    parts = [shapes[name] for name in tensor_names(spec, group)]
    if not experts_in(spec, group):
        return sum(shape[0] for shape in parts), parts[0][1]
    [(experts, *sizes)] = parts
    outputs, inputs = reversed(sizes) if stacked_by_input(spec.family) else sizes
    return experts * outputs, inputs


def split_group(name: str) -> tuple[int, str]:
    """The layer of a group or a norm, and the rest of its name."""
    _, layer, part = name.split(".", 2)
    return int(layer), part
