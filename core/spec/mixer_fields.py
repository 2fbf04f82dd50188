"""Mixers other than attention, and the sizes of a family's own rules, from its configuration."""

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.config_fields import Fields
from edgelm.spec.decoder import ShortConv
from edgelm.spec.family import Family

_MAX_KERNEL = 64


def layer_mixers(fields: Fields, family: Family, count: int) -> list[ShortConv | None]:
    """For each layer its mixer; None for attention.

    Raises:
        BadCheckpoint: a list of the wrong length or with unknown types, or no layer with attention.
    """
    if not family.short_conv:
        return [None] * count
    kernel = fields.integer("conv_L_cache", least=2, most=_MAX_KERNEL)
    if kernel is None:
        raise fields.wrong("conv_L_cache", "an integer of at least 2")
    conv = ShortConv(kernel, fields.flag("conv_bias"))
    attends = _attention_layers(fields, count)
    if not any(attends):
        raise BadCheckpoint(
            f"{fields.where}: no layer has attention; at least one is needed to know positions"
        )
    return [None if one else conv for one in attends]


def _attention_layers(fields: Fields, count: int) -> list[bool]:
    kinds = fields.each_layer("layer_types", count)
    if kinds is not None:
        for kind in kinds:
            if kind not in ("full_attention", "conv"):
                raise BadCheckpoint(
                    f"{fields.where}: layer_types has the kind {shown(kind)}, expected "
                    "full_attention or conv; other kinds of layers are not supported"
                )
        return [kind == "full_attention" for kind in kinds]
    chosen = fields.values.get("full_attn_idxs")
    if chosen is None:
        return [True] * count
    valid = isinstance(chosen, list | tuple) and all(
        isinstance(index, int) and not isinstance(index, bool) for index in chosen
    )
    if not valid:
        raise fields.wrong("full_attn_idxs", "a list of the indices of layers")
    return [index in chosen for index in range(count)]


def feed_forward_size(fields: Fields, family: Family) -> int:
    """The intermediate size of MLPs, as LFM2's class derives it from its fields."""
    older = family.adjusted_ffn and "block_ff_dim" in fields
    size = fields.required("block_ff_dim" if older else "intermediate_size")
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
