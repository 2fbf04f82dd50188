"""What pruning can change of a decoder, and what stays."""

import msgspec

from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.layers.mixers import ShortConv


def fixed_sizes(spec: DecoderSpec) -> dict[str, str]:
    """The sizes that pruning cannot change, by their names, and why."""
    reasons = {}
    if any(isinstance(layer.mixer, ShortConv) for layer in spec.layers):
        reasons["hidden_size"] = "its convolutions are as wide as the residual stream"
    if FAMILIES[spec.family].mixer == "mamba2":
        reasons["hidden_size"] = "its class derives the width of Mamba-2 layers from it"
    if any(layer.shares_kv_of is not None for layer in spec.layers):
        reasons["num_key_value_heads"] = "layers share the keys and values of others"
    elif any(layer.num_key_value_heads is not None for layer in spec.layers):
        reasons["num_key_value_heads"] = "its layers have different numbers of key heads"
    return reasons


def lasting_layers(spec: DecoderSpec) -> tuple[int, ...]:
    """The layers that every student keeps, ascending.

    Others read their keys and values, or the class makes the last layer one without a window
    (Gemma 4).
    """
    sources = {layer.shares_kv_of for layer in spec.layers if layer.shares_kv_of is not None}
    if FAMILIES[spec.family].global_heads:
        sources.add(spec.num_hidden_layers - 1)
    return tuple(sorted(sources))


def pruned_mlp_size(spec: DecoderSpec, layer: LayerSpec, intermediate_size: int) -> int:
    """Neurons of a layer's MLP in a decoder that is pruned to an `intermediate_size`.

    Double-wide MLPs (Gemma 4) keep twice as many; an MLP that is already narrower keeps all.
    """
    return min(spec.mlp_size(layer), intermediate_size * (2 if layer.double_mlp else 1))


def with_intermediate_size(spec: DecoderSpec, size: int) -> DecoderSpec:
    """The decoder with MLPs of at most this size (see `pruned_mlp_size`)."""
    layers = tuple(
        layer
        if layer.intermediate_size is None or layer.intermediate_size < size
        else msgspec.structs.replace(layer, intermediate_size=None)
        for layer in spec.layers
    )
    return msgspec.structs.replace(spec, intermediate_size=size, layers=layers)
