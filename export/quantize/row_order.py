"""The rows of a checkpoint's matrices in the order in which the graph computes them."""

import torch

from edgelm.spec.decoder import DecoderSpec
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
    if spec.attention_gate:
        return _behind_queries(spec)
    rope = spec.layers[layer].rope
    channels = rope and rotated_order(rope, spec.rotary_width(rope), spec.head_dim)
    if channels is None:
        return _stacked(spec) if spec.qkv_by_head else None
    head = torch.from_numpy(channels)
    heads = torch.arange(spec.num_attention_heads + spec.num_key_value_heads)
    rotated = (heads[:, None] * spec.head_dim + head).flatten()
    values = torch.arange(spec.kv_size) + spec.q_size + spec.kv_size
    order = torch.cat([rotated, values])
    return _stacked(spec)[order] if spec.qkv_by_head else order


def _behind_queries(spec: DecoderSpec) -> torch.Tensor:
    """Queries, keys, values, gates, of a checkpoint with each head's gate behind its query."""
    heads = torch.arange(2 * spec.q_size).view(spec.num_attention_heads, 2, spec.head_dim)
    keys_values = torch.arange(2 * spec.kv_size) + 2 * spec.q_size
    return torch.cat([heads[:, 0].flatten(), keys_values, heads[:, 1].flatten()])


def _stacked(spec: DecoderSpec) -> torch.Tensor:
    """Queries, keys, values, of a checkpoint with all three of a head side by side."""
    rows = torch.arange(3 * spec.q_size).view(spec.num_attention_heads, 3, spec.head_dim)
    return rows.transpose(0, 1).flatten()
