"""Prune a decoder to a smaller shape: depth, width, or both at once.

`prune` is pure: it slices the teacher's tensors into a new model and leaves the teacher unchanged.
Importance decides what is kept (edgelm.compress.pruning.indices).
"""

import math
from collections.abc import Sequence

import torch

from edgelm.compress.model import Model, build_model, spec_of
from edgelm.compress.pruning.axes import (
    CONV,
    EXPERTS,
    FFN,
    GATED_QUERY,
    HEAD_QKV,
    HEADS,
    HIDDEN,
    KV,
    LAYERS,
    MAMBA,
    MAMBA_HEADS,
    MAMBA_STATES,
    QUERY,
    is_hidden_norm,
    layer_of,
    tensor_axes,
)
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.pruning.indices import PruneIndices, select_indices
from edgelm.compress.pruning.refit import refitted, refitted_group
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.pruning.sparse_activations import keep_cutoffs
from edgelm.compress.pruning.student_config import pruned_config
from edgelm.quantize.hessians import Hessians
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.layers.mixers import Mamba2
from edgelm.spec.prunable import mamba_of, mlp_neurons


def prune(
    model: Model,
    shape: Shape,
    importance: Importance,
    *,
    layers: Sequence[int] | None = None,
    merge_pruned_heads: bool = False,
    moments: Hessians | None = None,
) -> Model:
    """Prune a model to a shape; with its own shape, a copy that is equal bit for bit.

    Args:
        model: the teacher; not changed.
        shape: of the student.
        importance: scores of the teacher (`importance.score`).
        layers: which layers to keep, e.g. all but a contiguous block; None keeps those with the
            highest block influence.
        merge_pruned_heads: add the difference to a pruned query head to a kept one, as Minitron
            does; off by default, because it hurt in every measurement (docs/decisions/pruning.md).
        moments: second moments of the inputs of `refitted_parts` on calibration text: what remains
            of these matrices is refitted by least squares (see `refit`). None only cuts.

    Raises:
        BadInput: the shape does not fit within the model, or the scores are another model's.
    """
    spec = spec_of(model)
    indices = select_indices(
        spec, shape, importance, layers=layers, merge_pruned_heads=merge_pruned_heads
    )
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and spec.tie_word_embeddings:
            continue
        if (new := _student_name(name, indices)) is not None:
            state[new] = _slice(spec, shape, name, tensor.detach(), indices, moments)
    config = pruned_config(model.config, shape, indices.layers)
    if importance.gates is not None:
        gates = [
            importance.gates[layer, :, : spec.mlp_size(spec.layers[layer])]
            for layer in indices.layers
        ]
        keep_cutoffs(config, gates, indices.neurons)
    return build_model(config, state)


def _student_name(name: str, indices: PruneIndices) -> str | None:
    """The tensor's name in the student; None if its layer is removed."""
    layer = layer_of(name)
    if layer is None:
        return name
    if layer not in indices.layers:
        return None
    return name.replace(f".layers.{layer}.", f".layers.{indices.layers.index(layer)}.", 1)


def _slice(
    spec: DecoderSpec,
    shape: Shape,
    name: str,
    tensor: torch.Tensor,
    indices: PruneIndices,
    moments: Hessians | None,
) -> torch.Tensor:
    layer = layer_of(name)
    position = 0 if layer is None else indices.layers.index(layer)
    if _is_query(name):
        head_dim = spec.heads(spec.layers[layer or 0]).dim
        tensor = _with_merged_heads(tensor, indices.merged[position], head_dim)
    axes, experts = tensor_axes(spec, name), indices.experts[position]
    if experts is not None and axes[0] == (EXPERTS,) and "experts" in name:
        return experts.of(tensor, axes, indices.channels).clone()
    for dimension, axis in enumerate(axes):
        if axis:
            index = axis_index(spec, axis, indices, position, layer or 0).to(tensor.device)
            group = refitted_group(spec, name) if moments is not None and dimension == 1 else None
            if moments is not None and group is not None:
                tensor = refitted(tensor, moments[group], index)
            else:
                tensor = tensor.index_select(dimension, index)
    if (factor := _width_correction(spec, shape, name)) != 1.0:
        offset = 1.0 if spec.norm_plus_one and is_hidden_norm(spec, name) else 0.0
        tensor = (tensor + offset) * factor - offset
    return tensor.clone()


def _is_query(name: str) -> bool:
    return ".q_proj." in name or ".qkv_proj." in name


def _with_merged_heads(
    tensor: torch.Tensor, pairs: Sequence[tuple[int, int]], head_dim: int
) -> torch.Tensor:
    if not pairs:
        return tensor
    rows = tensor.clone()
    for heads in pairs:
        kept, pruned = (slice(head * head_dim, (head + 1) * head_dim) for head in heads)
        rows[kept] = 2 * tensor[kept] - tensor[pruned]
    return rows


def axis_index(
    spec: DecoderSpec, axis: tuple[str, ...], indices: PruneIndices, position: int, layer: int
) -> torch.Tensor:
    """Indices along a dimension on which the parts of an axis are stacked.

    Args:
        spec: the teacher.
        axis: of the dimension (`tensor_axes`).
        indices: what is kept.
        position: of the layer in the student.
        layer: the same in the teacher.
    """
    sizes, own = spec.heads(spec.layers[layer]), spec.layers[layer]
    heads, groups = indices.heads[position], indices.groups[position]
    inputs = spec.per_layer_inputs
    parts = {
        HIDDEN: (indices.channels, 1, spec.hidden_size),
        FFN: (indices.neurons[position], 1, mlp_neurons(spec, own)),
        QUERY: (heads, sizes.dim, sizes.q_size),
        KV: (groups, sizes.dim, sizes.kv_size),
        GATED_QUERY: (heads, 2 * sizes.dim, 2 * sizes.q_size),
        HEAD_QKV: (heads, 3 * sizes.dim, 3 * sizes.q_size),
        HEADS: (heads, 1, sizes.queries),
        LAYERS: (torch.tensor(indices.layers), inputs.size if inputs else 0, spec.per_layer_width),
    }
    if (experts := indices.experts[position]) is not None and own.mlp is not None:
        parts[EXPERTS] = (experts.experts, 1, own.mlp.experts)  # the router's
    mamba, mamba_heads = own.recurrent, indices.mamba_heads[position]
    if isinstance(mamba, Mamba2) and mamba_heads is not None:
        states = 2 * mamba.group_size
        parts[MAMBA] = (mamba_heads, mamba.head_dim, mamba.size)
        parts[MAMBA_HEADS] = (mamba_heads, 1, mamba.heads)
        parts[MAMBA_STATES] = (torch.arange(states), 1, states)
    if (conv_channels := indices.conv_channels[position]) is not None:
        parts[CONV] = (conv_channels, 1, spec.hidden_size)
    found, start = [], 0
    for part in axis:
        blocks, width, total = parts[part]
        within = (blocks[:, None] * width + torch.arange(width)).flatten()
        found.append(start + within)
        start += total
    return torch.cat(found)


def _is_mamba_norm(spec: DecoderSpec, name: str) -> bool:
    return tensor_axes(spec, name) == ((MAMBA,),) and "norm" in name


def _width_correction(spec: DecoderSpec, shape: Shape, name: str) -> float:
    """The factor on a tensor that corrects scales which a decoder derives from its width.

    A norm divides by the mean square over all channels. Pruned channels have almost no energy
    (that is why they are pruned), so over the others the mean is larger by the ratio of the widths,
    and the norm's weight compensates. Gemma multiplies embeddings by sqrt(hidden_size): the table
    compensates for the narrower model's smaller factor and, where the head is the same table, the
    final norm takes that back.
    """
    narrower = math.sqrt(spec.hidden_size / shape.hidden_size)
    factor = narrower if is_hidden_norm(spec, name) else 1.0
    if spec.qk_norm == "full" and ".q_norm." in name:
        factor = math.sqrt(spec.num_attention_heads / shape.num_attention_heads)
    if spec.qk_norm == "full" and ".k_norm." in name:
        factor = math.sqrt(spec.num_key_value_heads / shape.num_key_value_heads)
    if (mamba := mamba_of(spec)) and shape.mamba_num_heads and _is_mamba_norm(spec, name):
        factor = math.sqrt(mamba.heads / shape.mamba_num_heads)
    # Gemma 3n and 4 divide by powers of the width: before a norm, which has an epsilon, and before
    # the tanh that gives the coefficients of streams.
    if ".per_layer_model_projection." in name:
        factor = 1 / narrower
    if ".altup.modality_router." in name:
        factor = 1 / narrower**2
    if FAMILIES[spec.family].scales_embedding:
        if name == "model.embed_tokens.weight":
            factor = narrower
        if name == "model.norm.weight" and spec.tie_word_embeddings:
            factor = 1.0
    return factor
