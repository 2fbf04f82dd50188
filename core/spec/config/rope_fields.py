"""RoPE parameters of a configuration, in all spellings that Hugging Face has used.

They are `rope_theta` and `rope_scaling` at the top level, `type` or `rope_type`, and today
`rope_parameters` with everything inside. The precedence is that of
`RotaryEmbeddingConfigMixin.convert_rope_params_to_dict`.
"""

import math
from collections.abc import Callable
from typing import Any

from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import MAX_POSITIONS, Fields
from edgelm.spec.families.family import Family

_KINDS = ("full_attention", "sliding_attention")
_ORIGINAL = "original_max_position_embeddings"

RopeValues = tuple[float, int, dict[str, Any]]


def read_rope(fields: Fields, family: Family, head_dim: int, *, local: bool) -> RopeValues:
    """Base, number of rotated channels and scaling of the layers with (local) or without a window.

    Raises:
        UnknownName: edgelm does not know the scaling.
        BadCheckpoint: a parameter is missing, of the wrong type or out of range.
    """
    inner = _parameters(fields, family, local)
    kind = inner.values.get("rope_type", inner.values.get("type", "default"))
    if not isinstance(kind, str) or kind not in family.rope_types:
        raise UnknownName(
            f"unknown RoPE scaling {shown(kind)} in {inner.where}; known: "
            f"{', '.join(family.rope_types)}"
        )
    theta = inner.number("rope_theta", above=1.0)
    if theta is None:
        raise inner.wrong("rope_theta", "a number above 1")
    dim = _rotated_channels(inner, family, kind, head_dim)
    if family.ntk_alpha and kind == "dynamic" and (alpha := inner.number("alpha", zero=True)):
        return _stretched(inner, theta, alpha, dim), dim, {}
    if kind == "default":
        return theta, dim, {}
    if kind == "yarn" and "factor" in inner.values and "factor" not in inner:
        inner = _with_ratio_as_factor(inner, fields)
    read = _SCALINGS[kind](inner, dim)
    given = {name: inner.values[name] for name in read if name in inner}
    if family.local_rope:
        given.pop(
            "truncate", None
        )  # transformers reads it at the top level, where it does not occur
    return theta, dim, {"rope_type": kind, **given}


def _stretched(inner: Fields, theta: float, alpha: float, dim: int) -> float:
    """The base of NTK-aware scaling (Hunyuan), which a head of one rotated pair does not have."""
    if dim == 2:
        raise inner.wrong("alpha", "none: this scaling needs more than 2 rotated channels")
    return theta * math.pow(alpha, dim / (dim - 2))


def read_query_growth(fields: Fields) -> tuple[float, int]:
    """Beta and period of the factor by which queries grow with their position (Ministral 3).

    Raises:
        BadCheckpoint: one of the two is missing or out of range.
    """
    name = "rope_scaling" if fields.nested("rope_scaling") else "rope_parameters"
    inner = Fields(fields.nested(name), where=f"{fields.where}: {name}")
    beta = inner.number("llama_4_scaling_beta", zero=True)
    if beta is None:
        raise inner.wrong("llama_4_scaling_beta", "a number of at least 0")
    period = inner.integer(_ORIGINAL, most=MAX_POSITIONS)
    if period is None:
        raise inner.wrong(_ORIGINAL, "a positive integer")
    return beta, period


def _parameters(fields: Fields, family: Family, local: bool) -> Fields:
    """The parameters of one layer type, with top-level fields as defaults."""
    scaling, given = fields.nested("rope_scaling"), fields.nested("rope_parameters")
    if not given and family.local_rope:  # null too means the class's default
        given = family.defaults.get("rope_parameters", given)
    nested = any(kind in {**scaling, **given} for kind in _KINDS)
    positions = fields.required("max_position_embeddings", most=MAX_POSITIONS)
    base_field, share_field = family.rope_fields
    defaults = {"partial_rotary_factor": fields.values.get(share_field, 1.0)}
    if not family.local_rope:
        if nested:
            raise BadCheckpoint(
                f"{fields.where}: RoPE parameters for each kind of layer ({', '.join(_KINDS)}) are "
                "not supported in this architecture; give one set for all layers"
            )
        name = "rope_scaling" if scaling else "rope_parameters"
        values = scaling or given
        # The top-level field overrides the nested one.
        original = fields.values.get(_ORIGINAL, values.get(_ORIGINAL, positions))
        values = values | {_ORIGINAL: original}
        defaults["rope_theta"] = fields.values.get(base_field, 10_000.0)
        return Fields(values, defaults, where=f"{fields.where}: {name}")
    if given and not nested:
        raise fields.wrong("rope_parameters", f"parameters for {' and '.join(_KINDS)}")
    kind = _KINDS[1] if local else _KINDS[0]
    where = f"{fields.where}: rope_parameters"
    values = {"rope_type": "default"} if given.get(kind) is None else {}
    values |= Fields(given, where=where).nested(kind)
    if not local:
        values |= scaling
    values = {_ORIGINAL: positions} | values
    base = "rope_local_base_freq" if local else "rope_theta"
    defaults["rope_theta"] = fields.values.get(base)
    if local and family.local_theta is not None:
        defaults["rope_theta"] = family.local_theta  # the class has no field for it
    return Fields(values, defaults, where=f"{where}: {kind}")


def _with_ratio_as_factor(inner: Fields, fields: Fields) -> Fields:
    """Replace a null factor by the ratio of the contexts, as transformers does."""
    _needed_original(inner)
    positions = fields.required("max_position_embeddings", most=MAX_POSITIONS)
    return Fields(inner.values | {"factor": positions / inner.values[_ORIGINAL]}, where=inner.where)


def _rotated_channels(inner: Fields, family: Family, kind: str, head_dim: int) -> int:
    partial = inner.number("partial_rotary_factor", most=1.0)
    if partial is None:
        raise inner.wrong("partial_rotary_factor", "a number above 0, up to 1")
    if kind == "proportional" or (kind == "default" and not family.partial_rotation):
        partial = 1.0  # the table has the whole head, or the field is not read
    dim = int(head_dim * partial)
    if dim != head_dim and not family.partial_rotation:
        raise inner.wrong("partial_rotary_factor", "1: this architecture rotates whole heads")
    if dim < 2 or dim % 2:
        raise BadCheckpoint(
            f"{inner.where}: {dim} of {head_dim} channels of a head are rotated, expected an even "
            "number; check head_dim and partial_rotary_factor"
        )
    return dim


Names = tuple[str, ...]


def _linear(inner: Fields, dim: int) -> Names:
    _needed(inner, "factor")
    return ("factor",)


def _dynamic(inner: Fields, dim: int) -> Names:
    if dim <= 2:
        raise BadCheckpoint(f"{inner.where}: dynamic scaling needs more than 2 rotated channels")
    return _linear(inner, dim)


def _llama3(inner: Fields, dim: int) -> Names:
    _needed(inner, "factor")
    low, high = _needed(inner, "low_freq_factor"), _needed(inner, "high_freq_factor")
    if high <= low:
        raise inner.wrong("high_freq_factor", f"a number above low_freq_factor, {low:g}")
    _needed_original(inner)
    return ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)


def _yarn(inner: Fields, dim: int) -> Names:
    _needed(inner, "factor")
    _needed_original(inner)
    optional = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    fast, slow = (inner.number(name, zero=True) for name in ("beta_fast", "beta_slow"))
    if (fast or 32) < (slow or 1):
        raise inner.wrong("beta_fast", f"a number of at least beta_slow, {slow or 1:g}")
    for name in optional:
        inner.number(name, zero=True)
    if inner.values.get("truncate") is not None:
        inner.flag("truncate")
    return ("factor", _ORIGINAL, *optional, "truncate")


def _longrope(inner: Fields, dim: int) -> Names:
    for name in ("short_factor", "long_factor"):
        inner.numbers(name, dim // 2)
    inner.number("factor")
    inner.number("attention_factor", zero=True)
    _needed_original(inner)
    return ("short_factor", "long_factor", _ORIGINAL, "factor", "attention_factor")


def _proportional(inner: Fields, dim: int) -> Names:
    inner.number("factor")
    return ("partial_rotary_factor", "factor")


def _needed(inner: Fields, name: str) -> float:
    value = inner.number(name)
    if value is None:
        raise inner.wrong(name, "a number above 0")
    return value


def _needed_original(inner: Fields) -> None:
    if inner.integer(_ORIGINAL, least=2, most=MAX_POSITIONS) is None:
        raise inner.wrong(_ORIGINAL, "an integer of at least 2")


_SCALINGS: dict[str, Callable[[Fields, int], Names]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}
