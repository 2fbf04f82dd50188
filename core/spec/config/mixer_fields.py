"""Mixers other than attention, and the sizes of a family's own rules, from its configuration."""

import math
from collections.abc import Callable
from typing import Any

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import MAX_LAYERS, Fields
from edgelm.spec.families.family import Family
from edgelm.spec.layers.mixers import GatedDelta, Mamba2, Mixer, ShortConv

_MAX_KERNEL = 64
# What older checkpoints call these layers.
_OLDER_KINDS = {"mamba": "linear_attention", "attention": "full_attention"}


def layer_mixers(fields: Fields, family: Family, count: int) -> list[Mixer | None]:
    """For each layer its mixer; None for attention.

    Raises:
        BadCheckpoint: a list of the wrong length or with unknown types, or no layer with attention.
    """
    if family.mixer is None:
        return [None] * count
    read, kind, default = _READERS[family.mixer]
    mixer = read(fields)
    # Granite's class reads both.
    older = family.mixer == "mamba2" and "layer_types" not in fields
    kinds = fields.each_layer("layers_block_type" if older else "layer_types", count)
    attends = default(fields, count) if kinds is None else _attending(fields, kinds, kind)
    if not any(attends):
        raise BadCheckpoint(
            f"{fields.where}: no layer has attention; at least one is needed to know positions"
        )
    return [None if one else mixer for one in attends]


def _attending(fields: Fields, kinds: list[Any], other: str) -> list[bool]:
    current = [_OLDER_KINDS.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]
    for kind, name in zip(kinds, current, strict=True):
        if name not in ("full_attention", other):
            raise BadCheckpoint(
                f"{fields.where}: layer_types has the kind {shown(kind)}, expected "
                f"full_attention or {other}; other kinds of layers are not supported"
            )
    return [name == "full_attention" for name in current]


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


def _no_attention(fields: Fields, count: int) -> list[bool]:
    return [False] * count


def _short_conv(fields: Fields) -> ShortConv:
    return ShortConv(conv_kernel(fields, "conv_L_cache"), fields.flag("conv_bias"))


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
        conv_kernel(fields, "linear_conv_kernel_dim"),
    )


def _mamba2(fields: Fields) -> Mamba2:
    hidden, heads = fields.required("hidden_size"), fields.required("mamba_n_heads")
    size = fields.required("mamba_expand") * hidden
    if fields.values.get("mamba_d_head") in (None, "auto"):
        fields = Fields({**fields.values, "mamba_d_head": size // heads}, where=fields.where)
    head_dim, n_groups = fields.required("mamba_d_head"), fields.required("mamba_n_groups")
    if heads * head_dim != size:
        raise BadCheckpoint(
            f"{fields.where}: mamba_n_heads {heads} times mamba_d_head {head_dim} is not "
            f"mamba_expand times hidden_size, {size}"
        )
    if heads % n_groups:
        raise BadCheckpoint(
            f"{fields.where}: mamba_n_heads {heads} is not a multiple of mamba_n_groups {n_groups}"
        )
    check_steps_and_activation(fields)
    return Mamba2(
        heads,
        head_dim,
        n_groups,
        fields.required("mamba_d_state"),
        conv_kernel(fields, "mamba_d_conv"),
        fields.flag("mamba_conv_bias"),
        fields.flag("mamba_proj_bias"),
        fields.flag("mamba_proj_bias"),
    )


def check_steps_and_activation(fields: Fields) -> None:
    """Refuse limits of dt, which Transformers applies to prompts and not to single tokens.

    And another activation than SiLU, which the gate has whatever the configuration says.
    """
    activation = fields.values.get("hidden_act")
    if activation not in ("silu", "swish"):
        raise fields.wrong("hidden_act", "silu: layers of Mamba-2 have no other activation")
    limits = fields.values.get("time_step_limit")
    if limits is None:
        return
    lower, upper = limits if isinstance(limits, list | tuple) and len(limits) == 2 else (None, None)
    if isinstance(upper, dict):  # how Transformers writes what JSON lacks
        upper = upper.get("__float__")
    if lower != 0 or upper not in (math.inf, "Infinity", "inf"):
        raise BadCheckpoint(
            f"{fields.where}: time_step_limit is {shown(limits)}, expected 0 and infinity: limited "
            "time steps are not supported"
        )


def conv_kernel(fields: Fields, name: str) -> int:
    """The length of a causal convolution's kernel."""
    kernel = fields.integer(name, least=2, most=_MAX_KERNEL)
    if kernel is None:
        raise fields.wrong(name, "an integer of at least 2")
    return kernel


def feed_forward_size(fields: Fields, family: Family) -> int:
    """The intermediate size of MLPs, as LFM2's class derives it from its fields.

    Raises:
        BadCheckpoint: the size is below 1.
    """
    name = "block_ff_dim" if family.adjusted_ffn and "block_ff_dim" in fields else family.ffn_field
    if family.experts is not None and name not in fields:
        name = family.experts.size_field  # every layer has experts, and no field a dense size
    if family.listed_ffn and isinstance(fields.values.get(name), list | tuple):
        return max(listed_sizes(fields, name))
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


def listed_sizes(fields: Fields, name: str) -> list[int]:
    """The entries of a list of sizes, one for every layer.

    Raises:
        BadCheckpoint: a list of the wrong length, or an entry that is not a size.
    """
    sizes = fields.each_layer(name, fields.required("num_hidden_layers", most=MAX_LAYERS))
    named = {str(at): size for at, size in enumerate(sizes or [])}
    inner = Fields(named, where=f"{fields.where}: {name}")
    return [inner.required(at) for at in named]


# By `Family.mixer`: its reader, its name in `layer_types`, and which layers attend without those.
_READERS: dict[str, tuple[Callable[[Fields], Mixer], str, Callable[[Fields, int], list[bool]]]] = {
    "short_conv": (_short_conv, "conv", _listed_attention),
    "gated_delta": (_gated_delta, "linear_attention", _every_interval),
    "mamba2": (_mamba2, "linear_attention", _no_attention),
}
