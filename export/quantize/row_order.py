"""The rows of a checkpoint's matrices in the order in which the graph computes them."""

import torch

from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.layers.heads import HeadSizes
from edgelm.spec.rope import rotated_order


def alternating(rows: int, experts: int) -> torch.Tensor:
    """Alternating rows of gate and up, as the fused kernels of all experts read them.

    `rows` are those of all experts, each with all of gate before all of up.
    """
    return torch.arange(rows).view(experts, 2, -1).transpose(1, 2).flatten()


def qkv_order(spec: DecoderSpec, layer: int) -> torch.Tensor | None:
    """Queries, keys, values and gates of a layer, with channels as the kernels rotate them.

    None if that is the checkpoint's order.
    """
    sizes = spec.heads(spec.layers[layer])
    if spec.attention_gate:
        return _behind_queries(sizes)
    rope = spec.layers[layer].rope
    channels = rope and rotated_order(rope, spec.rotary_width(rope), sizes.dim)
    if channels is None:
        return _stacked(sizes) if spec.qkv_by_head else None
    head = torch.from_numpy(channels)
    heads = torch.arange(sizes.queries + sizes.keys)
    rotated = (heads[:, None] * sizes.dim + head).flatten()
    values = torch.arange(sizes.kv_size) + sizes.q_size + sizes.kv_size
    order = torch.cat([rotated, values])
    return _stacked(sizes)[order] if spec.qkv_by_head else order


def _behind_queries(sizes: HeadSizes) -> torch.Tensor:
    """Queries, keys, values, gates, of a checkpoint with each head's gate behind its query."""
    heads = torch.arange(2 * sizes.q_size).view(sizes.queries, 2, sizes.dim)
    keys_values = torch.arange(2 * sizes.kv_size) + 2 * sizes.q_size
    return torch.cat([heads[:, 0].flatten(), keys_values, heads[:, 1].flatten()])


def _stacked(sizes: HeadSizes) -> torch.Tensor:
    """Queries, keys, values, of a checkpoint with all three of a head side by side."""
    rows = torch.arange(3 * sizes.q_size).view(sizes.queries, 3, sizes.dim)
    return rows.transpose(0, 1).flatten()
