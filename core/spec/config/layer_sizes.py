"""Heads, shared keys and values, and MLPs that differ between layers: Gemma 3n's and 4's fields.

Published checkpoints have `global_head_dim` and `num_global_key_value_heads`; transformers saves
`per_layer_config` instead, an object for each layer that differs.
"""

from typing import Any

import msgspec

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import Fields
from edgelm.spec.config.mixer_fields import listed_sizes
from edgelm.spec.decoder import LayerSpec
from edgelm.spec.families.family import Family
from edgelm.spec.layers.altup import MAX_STREAMS, AltUp
from edgelm.spec.layers.per_layer_inputs import PerLayerInputs

_SIZES = ("head_dim", "num_key_value_heads")
_SPARSE_LAYERS, _SPARSITY = 10, 0.95
Sizes = dict[str, int | None]


def layer_heads(fields: Fields, family: Family, windows: list[int | None]) -> list[Sizes]:
    """For each layer the sizes of its heads that are not the decoder's.

    Raises:
        BadCheckpoint: a size is out of range, or `per_layer_config` has other fields.
    """
    if not family.global_heads:
        return [{} for _ in windows]
    if "per_layer_config" in fields:
        listed = _by_layer(fields, fields.nested("per_layer_config"))
        return [_listed(fields, listed, index) for index in range(len(windows))]
    heads = None
    if fields.flag("attention_k_eq_v"):
        heads = fields.integer("num_global_key_value_heads")
    whole: Sizes = {"head_dim": fields.required("global_head_dim"), "num_key_value_heads": heads}
    own: list[Sizes] = [{} if window else whole for window in windows]
    return [_checked(fields, sizes, index) for index, sizes in enumerate(own)]


def listed_heads(layers: tuple[LayerSpec, ...]) -> dict[str, dict[str, int]]:
    """The value of `per_layer_config` for a decoder: `layer_heads` the other way."""
    found = {
        str(index): {name: size for name in _SIZES if (size := getattr(layer, name)) is not None}
        for index, layer in enumerate(layers)
    }
    return {index: sizes for index, sizes in found.items() if sizes}


def _by_layer(fields: Fields, listed: dict[str, Any]) -> dict[int, Any]:
    """The objects by the layer; of ten layers and more, transformers pads their names with zeros.

    Raises:
        BadCheckpoint: a name that is not a number.
    """
    for name in listed:
        if not (name.isascii() and name.isdigit()):
            raise BadCheckpoint(
                f"{fields.where}: per_layer_config has the name {shown(name)}, expected the number "
                "of a layer"
            )
    return {int(name): own for name, own in listed.items()}


def _listed(fields: Fields, listed: dict[int, Any], index: int) -> Sizes:
    where = f"{fields.where}: per_layer_config[{index}]"
    own = listed.get(index, {})
    if not isinstance(own, dict) or not own.keys() <= set(_SIZES):
        raise BadCheckpoint(
            f"{where} is {shown(own)}, expected an object of {' and '.join(_SIZES)}: other fields "
            "of single layers are not supported"
        )
    inner = Fields(own, where=where)
    return _checked(fields, {name: inner.integer(name) for name in own}, index)


def _checked(fields: Fields, own: Sizes, index: int) -> Sizes:
    """The sizes that differ from the decoder's."""
    heads = fields.required("num_attention_heads")
    dim, keys = own.get("head_dim"), own.get("num_key_value_heads")
    if dim is not None and dim % 2:
        raise BadCheckpoint(
            f"{fields.where}: head_dim of layer {index} is {dim}, expected an even number"
        )
    if keys is not None and heads % keys:
        raise BadCheckpoint(
            f"{fields.where}: num_attention_heads {heads} is not a multiple of the "
            f"{keys} key heads of layer {index}"
        )
    return {name: size for name, size in own.items() if size != fields.values.get(name)}


def with_keys_as_values(
    fields: Fields, family: Family, layers: tuple[LayerSpec, ...]
) -> tuple[LayerSpec, ...]:
    """The layers, of which those without a window take keys for values (`attention_k_eq_v`)."""
    if not family.global_heads or not fields.flag("attention_k_eq_v"):
        return layers
    return tuple(
        layer if layer.window else msgspec.structs.replace(layer, values_are_keys=True)
        for layer in layers
    )


def with_shared_keys(
    fields: Fields, family: Family, layers: tuple[LayerSpec, ...]
) -> tuple[LayerSpec, ...]:
    """The layers, of which the last `num_kv_shared_layers` read an earlier one's keys and values.

    Raises:
        BadCheckpoint: no earlier layer is of the same kind.
    """
    count = fields.integer("num_kv_shared_layers", least=0) if family.shares_kv else 0
    if not count:
        return layers
    first, double = len(layers) - count, fields.flag("use_double_wide_mlp")
    own = layers[: max(0, first)]
    shared = []
    for layer in layers[len(own) :]:
        source = max((at for at, one in enumerate(own) if _same_kind(one, layer)), default=None)
        if source is None:
            raise BadCheckpoint(
                f"{fields.where}: num_kv_shared_layers is {count}, and none of the first "
                f"{len(own)} layers is of the same kind as one that shares its keys and values"
            )
        shared.append(msgspec.structs.replace(layer, shares_kv_of=source, double_mlp=double))
    return (*own, *shared)


def with_mlp_sizes(
    fields: Fields, family: Family, layers: tuple[LayerSpec, ...]
) -> tuple[LayerSpec, ...]:
    """The layers with the sizes of their MLPs, of a family that may list them.

    Raises:
        BadCheckpoint: a list of the wrong length or with other values.
    """
    if not isinstance(fields.values.get(family.ffn_field), list | tuple):
        return layers
    sizes = listed_sizes(fields, family.ffn_field)
    return tuple(
        msgspec.structs.replace(layer, intermediate_size=None if size == max(sizes) else size)
        for layer, size in zip(layers, sizes, strict=True)
    )


def with_sparse_activations(
    fields: Fields, family: Family, layers: tuple[LayerSpec, ...]
) -> tuple[LayerSpec, ...]:
    """The layers with the shares of gates that they drop, if the family drops some.

    Raises:
        BadCheckpoint: a list of the wrong length or with other values.
    """
    if not family.sparse_activations:
        return layers
    shares = _sparsity(fields, len(layers))
    return tuple(
        msgspec.structs.replace(layer, activation_sparsity=share)
        for layer, share in zip(layers, shares, strict=True)
    )


def _sparsity(fields: Fields, count: int) -> list[float]:
    name = "activation_sparsity_pattern"
    shares = fields.each_layer(name, count)
    if shares is None:  # the class's default
        first = _SPARSE_LAYERS if count > _SPARSE_LAYERS else 0
        return [_SPARSITY] * first + [0.0] * (count - first)
    for share in shares:
        numeric = isinstance(share, int | float) and not isinstance(share, bool)
        if not numeric or not 0 <= share < 1:
            raise fields.wrong(name, "a list of numbers from 0 to below 1")
    return [float(share) for share in shares]


def _same_kind(one: LayerSpec, other: LayerSpec) -> bool:
    same = ("window", "head_dim", "num_key_value_heads")
    return all(getattr(one, name) == getattr(other, name) for name in same)


def per_layer_inputs(fields: Fields, family: Family) -> PerLayerInputs | None:
    """The embedding for every layer, if `hidden_size_per_layer_input` gives it a size.

    Raises:
        BadCheckpoint: its vocabulary is smaller than the decoder's.
    """
    if not family.per_layer_inputs:
        return None
    if family.altup:  # its class has no layers without
        fields.required("hidden_size_per_layer_input")
    size = fields.integer("hidden_size_per_layer_input", least=0)
    if not size:
        return None
    vocab = fields.required("vocab_size_per_layer_input")
    if not family.short_per_layer_table and vocab < fields.required("vocab_size"):
        raise fields.wrong("vocab_size_per_layer_input", "at least vocab_size")
    return PerLayerInputs(size, vocab)


def altup(fields: Fields, family: Family) -> AltUp | None:
    """The residual streams, if the family has several.

    Raises:
        BadCheckpoint: fewer than two streams, or the index of none of them.
    """
    if not family.altup:
        return None
    streams = fields.integer("altup_num_inputs", least=2, most=MAX_STREAMS)
    if streams is None:
        raise fields.wrong("altup_num_inputs", "an integer of at least 2")
    active = fields.integer("altup_active_idx", least=0, most=streams - 1)
    return AltUp(streams, active or 0, fields.flag("altup_correct_scale"))
