"""Mixers other than attention, and the sizes of a family's own rules, from its configuration."""

from collections.abc import Callable
from typing import Any

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import Fields
from edgelm.spec.family import Family
from edgelm.spec.mixers import GatedDelta, Mixer, ShortConv

_MAX_KERNEL = 64
_FFN = "intermediate_size"


def layer_mixers(fields: Fields, family: Family, count: int) -> list[Mixer | None]:
    """For each layer its mixer; None for attention.

    Raises:
        BadCheckpoint: a list of the wrong length or with unknown types, or no layer with attention.
    """
    if family.mixer is None:
        return [None] * count
    read, kind, default = _READERS[family.mixer]
    mixer = read(fields)
    kinds = fields.each_layer("layer_types", count)
    attends = default(fields, count) if kinds is None else _attending(fields, kinds, kind)
    if not any(attends):
        raise BadCheckpoint(
            f"{fields.where}: no layer has attention; at least one is needed to know positions"
        )
    return [None if one else mixer for one in attends]


def _attending(fields: Fields, kinds: list[Any], other: str) -> list[bool]:
    for kind in kinds:
        if kind not in ("full_attention", other):
            raise BadCheckpoint(
                f"{fields.where}: layer_types has the kind {shown(kind)}, expected "
                f"full_attention or {other}; other kinds of layers are not supported"
            )
    return [kind == "full_attention" for kind in kinds]


def _listed_attention(fields: Fields, count: int) -> list[bool]:
    chosen = fields.values.get("full_attn_idxs")
    if chosen is None:
        return [True] * count
    valid = isinstance(chosen, list | tuple) and all(
        isinstance(index, int) and not isinstance(index, bool) for index in chosen
    )
    if not valid:
        raise fields.wrong("full_attn_idxs", "a list of the indices of layers")
    return [index in chosen for index in range(count)]


def _every_interval(fields: Fields, count: int) -> list[bool]:
    interval = fields.required("full_attention_interval")
    return [(layer + 1) % interval == 0 for layer in range(count)]


def _short_conv(fields: Fields) -> ShortConv:
    return ShortConv(_kernel(fields, "conv_L_cache"), fields.flag("conv_bias"))


def _gated_delta(fields: Fields) -> GatedDelta:
    keys, values = (fields.required(f"linear_num_{kind}_heads") for kind in ("key", "value"))
    if values % keys:
        raise BadCheckpoint(
            f"{fields.where}: linear_num_value_heads {values} is not a multiple of "
            f"linear_num_key_heads {keys}"
        )
    return GatedDelta(
        keys,
        values,
        fields.required("linear_key_head_dim"),
        fields.required("linear_value_head_dim"),
        _kernel(fields, "linear_conv_kernel_dim"),
    )


def _kernel(fields: Fields, name: str) -> int:
    kernel = fields.integer(name, least=2, most=_MAX_KERNEL)
    if kernel is None:
        raise fields.wrong(name, "an integer of at least 2")
    return kernel


def feed_forward_size(fields: Fields, family: Family) -> int:
    """The intermediate size of MLPs, as LFM2's class derives it from its fields.

    Raises:
        BadCheckpoint: the size is below 1.
    """
    name = "block_ff_dim" if family.adjusted_ffn and "block_ff_dim" in fields else _FFN
    if family.experts is not None and name not in fields:
        name = family.experts.size_field  # every layer has experts, and no field a dense size
    size = fields.required(name)
    if not family.adjusted_ffn or not fields.flag("block_auto_adjust_ff_dim"):
        return size
    size = int(2 * size / 3)
    multiplier = fields.number("block_ffn_dim_multiplier")
    if multiplier is not None:
        multiple = fields.required("block_multiple_of")
        size = -(-int(multiplier * size) // multiple) * multiple
    if size < 1:
        raise BadCheckpoint(f"{fields.where}: the size of the MLP is {size}, expected at least 1")
    return size


# By `Family.mixer`: its reader, its name in `layer_types`, and which layers attend without those.
_READERS: dict[str, tuple[Callable[[Fields], Mixer], str, Callable[[Fields, int], list[bool]]]] = {
    "short_conv": (_short_conv, "conv", _listed_attention),
    "gated_delta": (_gated_delta, "linear_attention", _every_interval),
}
