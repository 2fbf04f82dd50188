"""Prune a decoder to a smaller shape: depth, width, or both at once.

`prune` is pure: it slices the teacher's tensors into a new model and leaves the teacher unchanged.
Importance decides what is kept (`select_indices`): whole layers, and the most important neurons
and heads of each kept layer; channels of the residual stream are one choice for all layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from edgelm.compress.model import Model, build_model, spec_of
from edgelm.compress.pruning.axes import (
    FFN,
    GATED_QUERY,
    HEAD_QKV,
    HEADS,
    HIDDEN,
    KV,
    LAYERS,
    QUERY,
    is_hidden_norm,
    layer_of,
    tensor_axes,
)
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.pruning.refit import refitted
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.pruning.sparse_activations import keep_cutoffs
from edgelm.compress.pruning.student_config import pruned_config
from edgelm.errors import BadInput
from edgelm.quantize.hessians import Hessians
from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.prunable import lasting_layers, pruned_mlp_size
from edgelm.spec.tensor_names import canonical_name

_REFITTED = {"down_proj": "mlp.down", "o_proj": "attention.o"}
REFITTED = tuple(_REFITTED.values())
"""Parts of a layer whose inputs are pruned: `moments` are needed for these."""


@dataclass(frozen=True)
class PruneIndices:
    """The parts that a student keeps, as ascending indices.

    layers: of the teacher. channels: of the residual stream, for all layers.
    neurons, groups: per kept layer. heads: query heads per kept layer, group by group.
    merged: per kept layer, pairs (kept head, pruned head) to merge (residual heads in NeMo).
    """

    layers: tuple[int, ...]
    channels: torch.Tensor
    neurons: tuple[torch.Tensor, ...]
    groups: tuple[torch.Tensor, ...]
    heads: tuple[torch.Tensor, ...]
    merged: tuple[tuple[tuple[int, int], ...], ...]


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
        moments: second moments of the inputs of `REFITTED` parts on calibration text: what remains
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


def select_indices(
    spec: DecoderSpec,
    shape: Shape,
    importance: Importance,
    *,
    layers: Sequence[int] | None = None,
    merge_pruned_heads: bool = False,
) -> PruneIndices:
    """The parts of a decoder to keep for a shape, by importance.

    Raises:
        BadInput: as `prune`.
    """
    shape.check_within(spec)
    importance.check(spec)
    if layers is None:
        layers = most_influential(spec, importance.layers, shape.num_hidden_layers)
    _check_layers(layers, spec, shape)
    groups, heads, merged = [], [], []
    for layer in layers:
        scores = importance.heads[layer].unflatten(0, (spec.heads(spec.layers[layer]).keys, -1))
        keys = spec.layers[layer].num_key_value_heads or shape.num_key_value_heads
        group = top_k_indices(scores.sum(-1), keys)
        groups.append(group)
        per_group = shape.num_attention_heads // keys
        each = [_heads_of_group(scores[g], int(g), per_group) for g in group]
        heads.append(torch.cat([kept for kept, _ in each]))
        merged.append(
            tuple(pair for _, pairs in each for pair in pairs) if merge_pruned_heads else ()
        )
    return PruneIndices(
        layers=tuple(layers),
        channels=top_k_indices(importance.channels, shape.hidden_size),
        neurons=tuple(
            _strongest_neurons(spec, spec.layers[layer], shape, importance.neurons[layer])
            for layer in layers
        ),
        groups=tuple(groups),
        heads=tuple(heads),
        merged=tuple(merged),
    )


def _strongest_neurons(
    spec: DecoderSpec, layer: LayerSpec, shape: Shape, scores: torch.Tensor
) -> torch.Tensor:
    own = scores[: spec.mlp_size(layer)]
    return top_k_indices(own, pruned_mlp_size(spec, layer, shape.intermediate_size))


def most_influential(spec: DecoderSpec, scores: torch.Tensor, count: int) -> list[int]:
    """The layers of highest block influence, at least one of them with attention."""
    if lasting := lasting_layers(spec):  # which attend
        scores = scores.index_fill(0, torch.tensor(lasting), float("inf"))
    layers: list[int] = top_k_indices(scores, count).tolist()
    if any(spec.layers[layer].attends for layer in layers):
        return layers
    best = max(spec.attention_layers, key=lambda layer: float(scores[layer]))
    weakest = min(layers, key=lambda layer: float(scores[layer]))
    return sorted([best, *(layer for layer in layers if layer != weakest)])


def _heads_of_group(
    scores: torch.Tensor, group: int, count: int
) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Kept query heads of one group, and the pairs (kept, pruned) to merge.

    Minitron, section 2.2: with K of L heads kept, in order of importance and counted from one,
    head i becomes head_i + (head_i - head_(2K-i+1)) for i from 2K-L+1 to K.
    """
    total = len(scores)
    order = (scores.argsort(descending=True, stable=True) + group * total).tolist()
    pairs = [
        (order[i - 1], order[2 * count - i])
        for i in range(max(1, 2 * count - total + 1), count + 1)
    ]
    return torch.tensor(sorted(order[:count])), pairs


def top_k_indices(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending indices of the `count` highest scores; the first of equal ones."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _check_layers(layers: Sequence[int], spec: DecoderSpec, shape: Shape) -> None:
    ascending = all(a < b for a, b in pairwise(layers))
    inside = all(0 <= layer < spec.num_hidden_layers for layer in layers)
    if len(layers) != shape.num_hidden_layers or not ascending or not inside:
        raise BadInput(
            f"layers to keep {list(layers)}: expected {shape.num_hidden_layers} ascending indices "
            f"below {spec.num_hidden_layers}"
        )
    removed = [str(layer) for layer in lasting_layers(spec) if layer not in layers]
    if removed:
        raise BadInput(
            f"layers to keep {list(layers)}: expected layer {' and '.join(removed)} among them, "
            "because others read its keys and values or it is the last one"
        )


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
    for dimension, axis in enumerate(tensor_axes(spec, name)):
        if axis:
            index = axis_index(spec, axis, indices, position, layer or 0).to(tensor.device)
            group = _refitted_group(spec, name) if moments is not None and dimension == 1 else None
            if moments is not None and group is not None:
                tensor = refitted(tensor, moments[group], index)
            else:
                tensor = tensor.index_select(dimension, index)
    if (factor := _width_correction(spec, shape, name)) != 1.0:
        offset = 1.0 if spec.norm_plus_one and is_hidden_norm(spec, name) else 0.0
        tensor = (tensor + offset) * factor - offset
    return tensor.clone()


def _refitted_group(spec: DecoderSpec, name: str) -> str | None:
    """The group of a matrix whose inputs are pruned within one layer, as `Hessians` names it."""
    module = canonical_name(spec.family, name).rpartition(".")[0]
    part = _REFITTED.get(module.rpartition(".")[2])
    return f"layers.{layer_of(name)}.{part}" if part else None


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
    sizes = spec.heads(spec.layers[layer])
    heads, groups = indices.heads[position], indices.groups[position]
    inputs = spec.per_layer_inputs
    parts = {
        HIDDEN: (indices.channels, 1, spec.hidden_size),
        FFN: (indices.neurons[position], 1, spec.mlp_size(spec.layers[layer])),
        QUERY: (heads, sizes.dim, sizes.q_size),
        KV: (groups, sizes.dim, sizes.kv_size),
        GATED_QUERY: (heads, 2 * sizes.dim, 2 * sizes.q_size),
        HEAD_QKV: (heads, 3 * sizes.dim, 3 * sizes.q_size),
        HEADS: (heads, 1, sizes.queries),
        LAYERS: (torch.tensor(indices.layers), inputs.size if inputs else 0, spec.per_layer_width),
    }
    found, start = [], 0
    for part in axis:
        blocks, width, total = parts[part]
        within = (blocks[:, None] * width + torch.arange(width)).flatten()
        found.append(start + within)
        start += total
    return torch.cat(found)


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
