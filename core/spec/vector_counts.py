"""Parameters outside matrices: norm weights, biases and routers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgelm.spec.layers.layer import LayerSpec

if TYPE_CHECKING:
    from edgelm.spec.decoder import DecoderSpec


def layer_vectors(spec: DecoderSpec, layer: LayerSpec) -> int:
    """Those of one layer, but for the scalar that multiplies its output (Gemma 4)."""
    h, heads, projected = spec.hidden_size, spec.heads(layer), spec.projected_sizes(layer)
    mixer, ffn = layer.mixer, spec.mlp_size(layer)
    total = len(spec.norm_names) * h * (1 + spec.norms_have_bias)
    total += h * (spec.per_layer_inputs is not None) + h * (spec.laurel_rank > 0)
    if spec.altup is not None:
        total += sum(math.prod(shape) for shape in spec.altup.vectors(h).values())
    if layer.mlp is not None:
        total += layer.mlp.vector_parameters(h)
    else:
        total += (spec.mlp_inputs * ffn + h) * (spec.mlp_bias and ffn > 0)
        total += 2 * (spec.hidden_act == "xielu" and ffn > 0)
    if layer.recurrent is not None:
        total += sum(math.prod(shape) for shape in layer.recurrent.vectors(h).values())
    if mixer is not None:
        return total
    normed = len(projected[:2])  # queries, and keys where the layer has its own
    total += {"none": 0, "head": normed * heads.dim, "full": sum(projected[:2])}[spec.qk_norm]
    width = sum(projected) + heads.q_size * spec.attention_gate
    total += width * spec.qkv_bias + h * spec.o_bias
    return total + heads.queries * spec.attention_sinks


def shared_vectors(spec: DecoderSpec) -> int:
    """Those outside the layers: of norms there, of the head, and an assistant's centroids."""
    inputs = spec.per_layer_inputs
    norms = spec.hidden_size * (1 + spec.norms_have_bias) + (inputs.size if inputs else 0)
    norms += 2 * spec.hidden_size * spec.draft_head
    bias = spec.head_bias and spec.has_head and not spec.draft_head
    centroids = spec.assistant.centroids * spec.hidden_size if spec.assistant else 0
    return norms + centroids + spec.vocab_size * bias
