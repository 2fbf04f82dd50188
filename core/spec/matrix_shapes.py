"""The matrices of a decoder as they are executed: outputs and inputs of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgelm.spec.layers.layer import LayerSpec
from edgelm.spec.layers.mixers import Mixer

if TYPE_CHECKING:
    from edgelm.spec.decoder import DecoderSpec

Matrix = tuple[int, int]


def shared_matrices(spec: DecoderSpec) -> list[Matrix]:
    """Those outside the layers: from the embedding to every layer's inputs, and of streams."""
    hidden = spec.hidden_size
    streams = [(hidden, hidden)] * 2 * (spec.altup.streams - 1) if spec.altup else []
    inputs = [(spec.per_layer_width, hidden)] if spec.per_layer_inputs else []
    fusion = [(hidden, 2 * hidden)] if spec.draft_head else []
    if spec.assistant is not None:
        size = spec.assistant.model_size
        fusion = [(hidden, 2 * size), (size, hidden)]
    return [*fusion, *inputs, *streams]


def layer_matrices(spec: DecoderSpec, layer: LayerSpec) -> list[Matrix]:
    """Those of one layer."""
    hidden, ffn = spec.hidden_size, spec.mlp_size(layer)
    if layer.mlp is not None:
        mlp = layer.mlp.matrices(hidden)
    else:
        mlp = ((spec.mlp_inputs * ffn, hidden), (hidden, ffn)) if ffn else ()
    inputs, rank = spec.per_layer_inputs, spec.laurel_rank
    own = ((inputs.size, hidden), (hidden, inputs.size)) if inputs else ()
    laurel = ((rank, hidden), (hidden, rank)) if rank else ()
    return [*mixer_matrices(spec, layer), *laurel, *mlp, *own]


def mixer_matrices(spec: DecoderSpec, layer: LayerSpec) -> list[Matrix]:
    """Those of a layer's attention or of what it has instead, and of what is beside it."""
    hidden, mixer = spec.hidden_size, layer.mixer
    if mixer is not None:
        return _groups_of(spec, mixer)
    heads = spec.heads(layer)
    width = sum(spec.projected_sizes(layer)) + heads.q_size * spec.attention_gate
    own = [(width, hidden), (hidden, heads.q_size)]
    return own + _groups_of(spec, layer.beside) if layer.beside else own


def _groups_of(spec: DecoderSpec, mixer: Mixer) -> list[Matrix]:
    sizes = mixer.modules(spec.hidden_size)
    return [
        (sum(sizes[name][0] for name in names), sizes[names[0]][1])
        for names in mixer.groups.values()
    ]
