"""Which parts a student keeps: whole layers, and the best parts of each kept layer by importance.

Channels of the residual stream are one choice for all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from edgelm.compress.pruning.experts import ExpertIndices
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.pruning.shape import Shape
from edgelm.errors import BadInput
from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.layers.mixers import Mamba2, ShortConv
from edgelm.spec.prunable import lasting_layers, mlp_neurons, pruned_mlp_size


@dataclass(frozen=True)
class PruneIndices:
    """The parts that a student keeps, as ascending indices.

    layers: of the teacher. channels: of the residual stream, for all layers.
    neurons, groups: per kept layer. heads: query heads per kept layer, group by group.
    experts: per kept layer; None where it has no mixture. mamba_heads: likewise, of Mamba-2.
    conv_channels: likewise, of short convolutions.
    merged: per kept layer, pairs (kept head, pruned head) to merge (residual heads in NeMo).
    """

    layers: tuple[int, ...]
    channels: torch.Tensor
    neurons: tuple[torch.Tensor, ...]
    groups: tuple[torch.Tensor, ...]
    heads: tuple[torch.Tensor, ...]
    merged: tuple[tuple[tuple[int, int], ...], ...]
    experts: tuple[ExpertIndices | None, ...]
    mamba_heads: tuple[torch.Tensor | None, ...]
    conv_channels: tuple[torch.Tensor | None, ...]


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
        experts=tuple(_strongest_experts(spec, layer, shape, importance) for layer in layers),
        mamba_heads=tuple(
            _strongest_mamba_heads(spec, layer, shape, importance) for layer in layers
        ),
        conv_channels=tuple(
            _strongest_conv_channels(spec, layer, shape, importance) for layer in layers
        ),
    )


def _strongest_neurons(
    spec: DecoderSpec, layer: LayerSpec, shape: Shape, scores: torch.Tensor
) -> torch.Tensor:
    own = scores[: mlp_neurons(spec, layer)]
    return top_k_indices(own, pruned_mlp_size(spec, layer, shape.intermediate_size))


def _strongest_experts(
    spec: DecoderSpec, layer: int, shape: Shape, importance: Importance
) -> ExpertIndices | None:
    """The best experts of a layer, and the best neurons of each of them."""
    if (mixture := spec.layers[layer].mlp) is None:
        return None
    count, size = shape.num_experts or mixture.experts, shape.moe_intermediate_size or mixture.size
    kept = torch.arange(mixture.experts)
    neurons = torch.arange(mixture.size).expand(mixture.experts, -1)
    if count < mixture.experts:
        kept = top_k_indices(_scores(importance.experts, "num_experts")[layer], count)
    if size < mixture.size:
        scores = _scores(importance.expert_neurons, "moe_intermediate_size")[layer]
        neurons = torch.stack([top_k_indices(own, size) for own in scores])
    return ExpertIndices(kept, neurons[kept])


def _strongest_mamba_heads(
    spec: DecoderSpec, layer: int, shape: Shape, importance: Importance
) -> torch.Tensor | None:
    """The best heads of each group, which share B and C: as many in each (arXiv 2504.11409)."""
    mamba = spec.layers[layer].recurrent
    if not isinstance(mamba, Mamba2):
        return None
    count = shape.mamba_num_heads or mamba.heads
    if count == mamba.heads:
        return torch.arange(count)
    scores = _scores(importance.mamba_heads, "mamba_num_heads")[layer]
    per_group = mamba.heads // mamba.n_groups
    return torch.cat(
        [
            group * per_group + top_k_indices(own, count // mamba.n_groups)
            for group, own in enumerate(scores.unflatten(0, (mamba.n_groups, -1)))
        ]
    )


def _strongest_conv_channels(
    spec: DecoderSpec, layer: int, shape: Shape, importance: Importance
) -> torch.Tensor | None:
    """The best channels of a layer's own convolution: as many as the residual stream keeps."""
    if not isinstance(spec.layers[layer].mixer, ShortConv):
        return None
    if shape.hidden_size == spec.hidden_size:
        return torch.arange(spec.hidden_size)
    scores = _scores(importance.conv_channels, "hidden_size")[layer]
    return top_k_indices(scores, shape.hidden_size)


def _scores(scores: torch.Tensor | None, size: str) -> torch.Tensor:
    if scores is None:
        raise BadInput(
            f"cannot prune {size}: these importance scores are of an earlier version, which did "
            "not score such parts; score the model again"
        )
    return scores


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
