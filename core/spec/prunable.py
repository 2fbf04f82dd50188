"""What pruning can change of a decoder, and what stays."""

import msgspec

from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.layers.experts import MixtureOfExperts
from edgelm.spec.layers.mixers import Mamba2, ShortConv


def fixed_sizes(spec: DecoderSpec) -> dict[str, str]:
    """The sizes that pruning cannot change, by their names, and why."""
    reasons = {}
    if not any(mlp_neurons(spec, layer) for layer in spec.layers):
        reasons["intermediate_size"] = (
            "its layers have no MLP but experts, whose size is moe_intermediate_size"
        )
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


def mixture_of(spec: DecoderSpec) -> MixtureOfExperts | None:
    """The experts of a decoder, the same ones in all layers that have some."""
    return next(iter(spec.mixtures), None)


def mamba_of(spec: DecoderSpec) -> Mamba2 | None:
    """The Mamba-2 mixer of a decoder, the same one in all layers that have it."""
    found = (layer.recurrent for layer in spec.layers if isinstance(layer.recurrent, Mamba2))
    return next(found, None)


def has_short_convs(spec: DecoderSpec) -> bool:
    """Whether layers have short convolutions, which are as wide as the residual stream (LFM2)."""
    return any(isinstance(layer.mixer, ShortConv) for layer in spec.layers)


def derives_mamba(spec: DecoderSpec) -> bool:
    """Whether the class has Mamba-2 layers whose width is an integer times the hidden size."""
    return FAMILIES[spec.family].mixer == "mamba2" and mamba_of(spec) is not None


def can_have_mamba_heads(spec: DecoderSpec, heads: int, hidden_size: int) -> bool:
    """Whether Mamba-2 layers can have a number of heads beside a hidden size."""
    mamba = mamba_of(spec)
    if mamba is None:
        return True
    wide = not derives_mamba(spec) or heads * mamba.head_dim % hidden_size == 0
    return wide and heads % mamba.n_groups == 0


def following_mamba_heads(spec: DecoderSpec, hidden_size: int) -> int | None:
    """Heads of Mamba-2 layers that lose the same share as the hidden size does.

    All of them where the class does not derive their width from the hidden size. None where this
    share is not a number of heads that the layers can have, and without such layers.
    """
    mamba = mamba_of(spec)
    if mamba is None or not derives_mamba(spec):
        return mamba.heads if mamba else None
    heads, rest = divmod(mamba.heads * hidden_size, spec.hidden_size)
    fits = heads > 0 and not rest and can_have_mamba_heads(spec, heads, hidden_size)
    return heads if fits else None


def mlp_neurons(spec: DecoderSpec, layer: LayerSpec) -> int:
    """Neurons of a layer that every token runs: of its MLP, or of its shared expert; 0 for none."""
    return spec.mlp_size(layer) if layer.mlp is None else layer.mlp.shared


def pruned_mlp_size(spec: DecoderSpec, layer: LayerSpec, intermediate_size: int) -> int:
    """Neurons of a layer's MLP or shared expert, pruned to an `intermediate_size`.

    Double-wide MLPs (Gemma 4) keep twice as many; an MLP that is already narrower keeps all.
    """
    return min(mlp_neurons(spec, layer), intermediate_size * (2 if layer.double_mlp else 1))


def with_intermediate_size(spec: DecoderSpec, size: int) -> DecoderSpec:
    """The decoder with MLPs of at most this size (see `pruned_mlp_size`)."""
    layers = tuple(
        layer
        if layer.intermediate_size is None or layer.intermediate_size < size
        else msgspec.structs.replace(layer, intermediate_size=None)
        for layer in spec.layers
    )
    return msgspec.structs.replace(spec, intermediate_size=size, layers=layers)


def with_experts(spec: DecoderSpec, experts: int, size: int, shared: int) -> DecoderSpec:
    """The decoder with mixtures of these sizes; a token runs no more experts than there are.

    Args:
        spec: the decoder.
        experts: routed experts of each layer that has some.
        size: intermediate size of each of them.
        shared: of the shared expert, at most; a decoder without one gets none.
    """

    def resized(layer: LayerSpec) -> LayerSpec:
        if (mixture := layer.mlp) is None:
            return layer
        sizes = {"size": size, "shared": min(shared, mixture.shared)}
        chosen = {"experts": experts, "top_k": min(experts, mixture.top_k)}
        return msgspec.structs.replace(
            layer, mlp=msgspec.structs.replace(mixture, **sizes, **chosen)
        )

    return msgspec.structs.replace(spec, layers=tuple(map(resized, spec.layers)))


def with_mamba_heads(spec: DecoderSpec, heads: int) -> DecoderSpec:
    """The decoder with this number of heads in its Mamba-2 layers."""

    def resized(layer: LayerSpec) -> LayerSpec:
        found = {
            field: msgspec.structs.replace(mixer, heads=heads)
            for field in ("mixer", "beside")
            if isinstance(mixer := getattr(layer, field), Mamba2)
        }
        return msgspec.structs.replace(layer, **found)

    return msgspec.structs.replace(spec, layers=tuple(map(resized, spec.layers)))
