"""RoPE scaling of a GGUF file, from metadata or from factors in a tensor."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelm.checkpoint.gguf.layout.names import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from edgelm.checkpoint.gguf.metadata import GgufMetadata
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.decoder import Rope
from edgelm.spec.rope import rotary_frequencies

Factors = npt.NDArray[np.float32]

_TYPES = ("none", "linear", "yarn", "longrope")
# Parameters of Llama 3.1 to 3.3 besides the factor; the stored tensor is compared with them.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope_scaling(
    metadata: GgufMetadata,
    architecture: str,
    factors: Mapping[str, Factors],
    *,
    theta: float,
    dim: int,
    context: int,
) -> dict[str, Any] | None:
    """Hugging Face's `rope_scaling`; None if there is none.

    Args:
        metadata: the file's.
        architecture: the prefix of the keys.
        factors: the file's factor tensors, each [dim / 2], which divide the frequencies.
        theta: base of the frequencies.
        dim: channels of a head that are rotated.
        context: positions that the model is made for.

    Raises:
        BadCheckpoint: an unknown kind of scaling, or factors that do not fit the heads.
    """
    for name, values in factors.items():
        if values.shape != (dim // 2,) or not (np.isfinite(values) & (values > 0)).all():
            raise BadCheckpoint(
                f"{metadata.path}: {name} must hold {dim // 2} numbers above 0, one for each pair "
                "of rotated channels"
            )
    scaling = _from_metadata(metadata, f"{architecture}.rope.", context)
    if ROPE_FREQS in factors:
        if scaling is not None or len(factors) > 1:
            raise BadCheckpoint(
                f"{metadata.path} scales RoPE by the tensor {ROPE_FREQS} and in another way, "
                "which is not supported; use the model's safetensors folder"
            )
        _check_unscaled(metadata, f"{architecture}.rope.")
        return _from_frequencies(factors[ROPE_FREQS], theta, dim, context)
    if factors or (scaling and scaling["rope_type"] == "longrope"):
        return _longrope(metadata, f"{architecture}.rope.", factors, scaling, context)
    if scaling is None or scaling["rope_type"] == "linear":
        _check_unscaled(metadata, f"{architecture}.rope.")
    return scaling


def _check_unscaled(metadata: GgufMetadata, prefix: str) -> None:
    """Raise BadCheckpoint for a factor of attention, which llama.cpp applies to any scaling."""
    key = f"{prefix}scaling.attn_factor"
    if (factor := metadata.number(key, 1.0)) != 1.0:
        raise BadCheckpoint(
            f"{metadata.path}: {key} is {factor}, which is supported only with "
            f"{prefix}scaling.type yarn or longrope; use the model's safetensors folder"
        )


def _from_metadata(metadata: GgufMetadata, prefix: str, context: int) -> dict[str, Any] | None:
    factor = metadata.number(f"{prefix}scaling.factor") or metadata.number(f"{prefix}scale_linear")
    # As in llama.cpp, a factor without a type is linear.
    kind = metadata.text(f"{prefix}scaling.type") or ("linear" if factor else "none")
    if kind not in _TYPES:
        raise BadCheckpoint(
            f"{metadata.path}: {prefix}scaling.type is {shown(kind)}, known: "
            f"{', '.join(_TYPES)}; use the model's safetensors folder"
        )
    if kind == "none" or (kind != "longrope" and factor in (None, 1.0)):
        return None
    scaling: dict[str, Any] = {"rope_type": kind}
    if factor is not None:
        scaling["factor"] = factor
    if kind == "yarn":
        scaling |= _yarn(metadata, prefix, float(factor or 1.0), context)
    return scaling


def _yarn(
    metadata: GgufMetadata, prefix: str, factor: float, context: int
) -> dict[str, float | int | None]:
    extrapolation = metadata.number(f"{prefix}scaling.yarn_ext_factor", 1.0)
    if extrapolation != 1.0:
        raise BadCheckpoint(
            f"{metadata.path}: {prefix}scaling.yarn_ext_factor is {extrapolation}, but only 1 is "
            "supported; use the model's safetensors folder"
        )
    if log := metadata.number(f"{prefix}scaling.yarn_log_multiplier"):
        return _yarn_by_log(metadata, prefix, log, context)
    # llama.cpp multiplies YaRN's own factor by the stored one; Hugging Face replaces it.
    stored = metadata.number(f"{prefix}scaling.attn_factor", 1.0) or 1.0
    own = 1.0 if factor <= 1 else 0.1 * float(np.log(factor)) + 1.0
    values = {
        "original_max_position_embeddings": metadata.integer(
            f"{prefix}scaling.original_context_length", context, least=1
        ),
        "attention_factor": None if stored == 1.0 else stored * own,
        "beta_fast": metadata.number(f"{prefix}scaling.yarn_beta_fast"),
        "beta_slow": metadata.number(f"{prefix}scaling.yarn_beta_slow"),
    }
    return {key: value for key, value in values.items() if value is not None}


def _yarn_by_log(
    metadata: GgufMetadata, prefix: str, log: float, context: int
) -> dict[str, float | int | None]:
    """Files with DeepSeek's factors of the logarithm, of which llama.cpp stores one for both."""
    if metadata.number(f"{prefix}scaling.attn_factor", 1.0) != 1.0:
        raise BadCheckpoint(
            f"{metadata.path} scales attention by {prefix}scaling.attn_factor and by "
            "yarn_log_multiplier, which is not supported; use the model's safetensors folder"
        )
    values = {
        "original_max_position_embeddings": metadata.integer(
            f"{prefix}scaling.original_context_length", context, least=1
        ),
        "mscale": log,
        "mscale_all_dim": log,
        "beta_fast": metadata.number(f"{prefix}scaling.yarn_beta_fast"),
        "beta_slow": metadata.number(f"{prefix}scaling.yarn_beta_slow"),
    }
    return {key: value for key, value in values.items() if value is not None}


def _longrope(
    metadata: GgufMetadata,
    prefix: str,
    factors: Mapping[str, Factors],
    scaling: dict[str, Any] | None,
    context: int,
) -> dict[str, Any]:
    missing = [name for name in (ROPE_SHORT, ROPE_LONG) if name not in factors]
    if missing or (scaling is not None and scaling["rope_type"] != "longrope"):
        found = f"lacks the tensor {missing[0]}" if missing else f"also scales by {scaling}"
        raise BadCheckpoint(
            f"{metadata.path}: RoPE scaling by long and short factors, but the file {found}; use "
            "the model's safetensors folder"
        )
    original = metadata.integer(f"{prefix}scaling.original_context_length", context, least=1)
    return {
        "rope_type": "longrope",
        "short_factor": [float(value) for value in factors[ROPE_SHORT]],
        "long_factor": [float(value) for value in factors[ROPE_LONG]],
        "attention_factor": metadata.number(f"{prefix}scaling.attn_factor", 1.0),
        "original_max_position_embeddings": original,
    }


def _from_frequencies(
    factors: Factors, theta: float, dim: int, context: int
) -> dict[str, Any] | None:
    if (factors == 1).all():
        return None
    llama3 = {"rope_type": "llama3", "factor": round(float(factors.max()), 3), **_LLAMA3}
    plain = rotary_frequencies(Rope(theta, dim), context, context)
    scaled = rotary_frequencies(Rope(theta, dim, llama3), context, context)
    if np.allclose(plain / scaled, factors, rtol=1e-5, atol=0):
        return llama3
    # Other factors are expressed as longrope with two equal lists.
    values = [float(value) for value in factors]
    return {
        "rope_type": "longrope",
        "short_factor": values,
        "long_factor": values,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }
