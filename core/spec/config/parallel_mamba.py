"""Mamba-2 parallel to attention, and the constants around them, as Falcon-H1's class reads them."""

import math
from typing import Any, Literal

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import MAX_NUMBER, Fields
from edgelm.spec.config.mixer_fields import check_steps_and_activation, conv_kernel
from edgelm.spec.layers.mixers import Mamba2
from edgelm.spec.multipliers import Multipliers


def parallel_mamba(fields: Fields) -> Mamba2:
    """The Mamba-2 mixer of every layer.

    Raises:
        BadCheckpoint: sizes that do not divide each other, or another activation than SiLU.
    """
    heads, groups = fields.required("mamba_n_heads"), fields.required("mamba_n_groups")
    size = fields.integer("mamba_d_ssm")
    if size is None:
        size = fields.required("mamba_expand") * fields.required("hidden_size")
    head_dim: int | None = size // heads
    if fields.values.get("mamba_d_head") not in (None, "auto"):
        head_dim = fields.integer("mamba_d_head")
    if not head_dim or heads * head_dim != size:
        raise BadCheckpoint(
            f"{fields.where}: mamba_n_heads {heads} times mamba_d_head {head_dim} is not the size "
            f"of the Mamba layers, {size}"
        )
    if heads % groups:
        raise BadCheckpoint(
            f"{fields.where}: mamba_n_heads {heads} is not a multiple of mamba_n_groups {groups}"
        )
    check_steps_and_activation(fields)
    return Mamba2(
        heads,
        head_dim,
        groups,
        fields.required("mamba_d_state"),
        conv_kernel(fields, "mamba_d_conv"),
        fields.flag("mamba_conv_bias"),
        fields.flag("mamba_proj_bias"),
        fields.flag("projectors_bias"),
        _norm(fields),
    )


def _norm(fields: Fields) -> Literal["after_gate", "before_gate", "none"]:
    if not fields.flag("mamba_rms_norm"):
        return "none"
    return "before_gate" if fields.flag("mamba_norm_before_gate") else "after_gate"


def multipliers(fields: Fields) -> Multipliers:
    """The constants of every layer.

    Raises:
        BadCheckpoint: one is not a number, or there are too few or too many.
    """
    gate, down = _numbers(fields, "mlp_multipliers", 2)
    z, x, b, c, dt = _numbers(fields, "ssm_multipliers", 5)
    return Multipliers(
        attention_in=_number(fields, "attention_in_multiplier"),
        key=_number(fields, "key_multiplier"),
        attention_out=_number(fields, "attention_out_multiplier"),
        mamba_in=_number(fields, "ssm_in_multiplier"),
        mamba=(z, x, b, c, dt),
        mamba_out=_number(fields, "ssm_out_multiplier"),
        gate=gate,
        down=down,
    )


def _number(fields: Fields, name: str) -> float:
    return _checked(fields, name, fields.values.get(name, 1.0))


def _numbers(fields: Fields, name: str, count: int) -> list[float]:
    values = fields.values.get(name)
    if values is None:
        return [1.0] * count
    if not isinstance(values, list | tuple) or len(values) != count:
        raise BadCheckpoint(
            f"{fields.where}: {name} is {shown(values)}, expected a list of {count} numbers"
        )
    return [_checked(fields, name, value) for value in values]


def _checked(fields: Fields, name: str, value: Any) -> float:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if numeric and math.isfinite(value) and 0 < abs(value) < MAX_NUMBER:
        return float(value)
    raise fields.wrong(name, f"numbers other than 0, up to {MAX_NUMBER:g}")
