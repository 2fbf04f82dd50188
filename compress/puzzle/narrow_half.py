"""A teacher's attention or MLP with some of its heads or neurons."""

import copy
from typing import Any

import torch
from torch import nn

from edgelm.checkpoint.own_modules import fit_attention, half_name
from edgelm.compress.model import Model
from edgelm.compress.pruning.axes import HIDDEN, tensor_axes
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.pruning.indices import PruneIndices, top_k_indices
from edgelm.compress.pruning.prune import axis_index
from edgelm.compress.pruning.refit import refitted
from edgelm.compress.puzzle.alternatives import Alternative
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.own_sizes import with_key_heads


def most_important(
    spec: DecoderSpec, alternative: Alternative, importance: Importance
) -> torch.Tensor:
    """Ascending indices of the neurons, or key heads with all of their queries, that remain."""
    layer, size = alternative.layer, alternative.size
    if alternative.half == "mlp":
        return top_k_indices(importance.neurons[layer], size)
    scores = importance.heads[layer].unflatten(0, (spec.num_key_value_heads, -1))
    return top_k_indices(scores.sum(-1), size)


def narrow_half(
    model: Model,
    spec: DecoderSpec,
    alternative: Alternative,
    kept: torch.Tensor | None = None,
    moments: torch.Tensor | None = None,
) -> nn.Module:
    """A copy of a layer's attention or MLP with some of its parts, in fp32; the rest is refitted.

    Args:
        model: of transformers; not changed.
        spec: of the model.
        alternative: which half of which layer, and its size.
        kept: ascending indices of the neurons or key heads that remain; None for the first ones.
        moments: second moments of the output projection's inputs (see `refitted`).
    """
    name = half_name(spec, alternative.layer, alternative.half)
    half: Any = copy.deepcopy(model.get_submodule(name)).float()
    indices = _indices(spec, alternative, torch.arange(alternative.size) if kept is None else kept)
    for module, linear in list(half.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        rows, columns = tensor_axes(spec, f"{name}.{module}.weight")
        weight = linear.weight.detach()
        if columns != (HIDDEN,):
            index = axis_index(spec, columns, indices, 0, alternative.layer).to(weight.device)
            if moments is None:
                weight = weight.index_select(1, index)
            else:
                weight = refitted(weight, moments, index)
        index = torch.arange(len(weight))
        if rows != (HIDDEN,):
            index = axis_index(spec, rows, indices, 0, alternative.layer)
        index = index.to(weight.device)
        narrow = nn.Linear(weight.shape[1], len(index), bias=linear.bias is not None)
        narrow.weight = nn.Parameter(weight.index_select(0, index))
        if linear.bias is not None:
            narrow.bias = nn.Parameter(linear.bias.detach()[index])
        parent, _, own = module.rpartition(".")
        setattr(half.get_submodule(parent), own, narrow)
    if alternative.half == "attention":
        layer, heads = spec.layers[alternative.layer], spec.heads(spec.layers[alternative.layer])
        fit_attention(half, spec, with_key_heads(layer, alternative.size, heads))
        if spec.attention_sinks:
            half.sinks = nn.Parameter(half.sinks.detach()[indices.heads[0].to(half.sinks.device)])
    return half.requires_grad_(True)  # type: ignore[no-any-return]


def _indices(spec: DecoderSpec, alternative: Alternative, kept: torch.Tensor) -> PruneIndices:
    neurons, groups = torch.arange(spec.intermediate_size), torch.arange(spec.num_key_value_heads)
    if alternative.half == "mlp":
        neurons = kept
    else:
        groups = kept
    of_group = spec.num_attention_heads // spec.num_key_value_heads
    heads = (groups[:, None] * of_group + torch.arange(of_group)).flatten()
    return PruneIndices(
        layers=(alternative.layer,),
        channels=torch.arange(spec.hidden_size),
        neurons=(neurons,),
        groups=(groups,),
        heads=(heads,),
        merged=((),),
        experts=(None,),
        mamba_heads=(None,),
        conv_channels=(None,),
    )
