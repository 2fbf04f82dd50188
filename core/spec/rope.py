"""Rotary frequencies for every scaling that the known families use.

Formulas follow Hugging Face `modeling_rope_utils` and its sources: linear (position
interpolation, arXiv 2306.15595), llama3 (Llama 3.1 release), yarn (arXiv 2309.00071), longrope
(arXiv 2402.13753), proportional (Gemma 4). `dynamic` is plain RoPE up to the original context.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.spec.decoder import Rope

Frequencies = npt.NDArray[np.float64]


def rotary_tables(
    rope: Rope, positions: int, max_position_embeddings: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosine and sine tables, each [positions, rope.dim / 2], attention factor included.

    `padded_tables` has them as wide as a graph needs them.
    """
    frequencies, factor = _scaled(rope, positions, max_position_embeddings)
    # Hugging Face rounds frequencies and angles to fp32 before the cosine; at position 8,000 the
    # rounding of the angle is 5e-4, so parity needs the same rounding here.
    angles = np.outer(
        np.arange(positions, dtype=np.float32), frequencies.astype(np.float32)
    ).astype(np.float32)
    cos = np.cos(angles.astype(np.float64)) * factor
    sin = np.sin(angles.astype(np.float64)) * factor
    return cos.astype(np.float32), sin.astype(np.float32)


def rotary_frequencies(rope: Rope, positions: int, max_position_embeddings: int) -> Frequencies:
    """Radians per position of each pair of channels, [rope.dim / 2]."""
    return _scaled(rope, positions, max_position_embeddings)[0]


def query_factors(
    growth: tuple[float, int] | None, positions: int
) -> npt.NDArray[np.float32] | None:
    """Factors on the queries of each position [positions]; None if all of them are one.

    Llama 4's and Ministral 3's: 1 + beta * log(1 + position // period), in fp32 as transformers.
    """
    if growth is None or positions <= growth[1]:
        return None
    beta, period = growth
    steps = (np.arange(positions) // period).astype(np.float32)
    return (1 + np.float32(beta) * np.log1p(steps)).astype(np.float32)


def padded_tables(
    tables: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], width: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The tables of `rotary_tables` with `width` columns, the last of which rotate nothing."""
    more = ((0, 0), (0, width - tables[0].shape[1]))
    return np.pad(tables[0], more, constant_values=1), np.pad(tables[1], more)


def rotated_order(rope: Rope, width: int, head_dim: int) -> npt.NDArray[np.int64] | None:
    """Channels of a head [head_dim] in an order in which i and i + width are rotated together.

    `width` is that of the tables (`DecoderSpec.rotary_width`). A checkpoint pairs i and i + dim / 2
    or, interleaved, 2i and 2i + 1. Scores are sums over channels, so reordering those of queries
    and keys alike changes nothing else. None for a checkpoint's own order.
    """
    channels, dim = np.arange(head_dim), rope.dim
    added = width - dim // 2
    if not rope.interleaved and not added:
        return None
    halves = channels[: dim // 2], channels[dim // 2 : dim]
    if rope.interleaved:
        halves = channels[0:dim:2], channels[1:dim:2]
    rest = channels[dim:]
    return np.concatenate(
        [halves[0], rest[:added], halves[1], rest[added : 2 * added], rest[2 * added :]]
    )


def _scaled(rope: Rope, positions: int, max_positions: int) -> tuple[Frequencies, float]:
    base = rope.theta ** (-np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    kind = rope.scaling.get("rope_type", "default")
    if kind not in _SCALINGS:
        raise UnknownName(f"unknown RoPE scaling {kind!r}; known: {', '.join(_SCALINGS)}")
    try:
        return _SCALINGS[kind](base, rope, positions, max_positions)
    except KeyError as error:
        raise BadCheckpoint(f"config.json: RoPE scaling {kind!r} needs the field {error}") from None


def _default(base: Frequencies, *_: Any) -> tuple[Frequencies, float]:
    return base, 1.0


def _linear(base: Frequencies, rope: Rope, *_: Any) -> tuple[Frequencies, float]:
    return base / float(rope.scaling["factor"]), 1.0


def _llama3(base: Frequencies, rope: Rope, *_: Any) -> tuple[Frequencies, float]:
    scaling = rope.scaling
    factor, low, high = (
        float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    turns = float(scaling["original_max_position_embeddings"]) * base / (2 * math.pi)
    # Fewer than `low` turns over the original context: stretched; more than `high`: untouched.
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * base / factor + smooth * base, 1.0


def _yarn(
    base: Frequencies, rope: Rope, positions: int, max_positions: int
) -> tuple[Frequencies, float]:
    scaling = rope.scaling
    original = float(scaling.get("original_max_position_embeddings") or max_positions)
    factor = float(scaling["factor"])

    def mscale(scale: float, weight: Any = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    attention = scaling.get("attention_factor")
    if attention is None:
        ours, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
        both = bool(ours and all_dims)
        attention = mscale(factor, ours) / mscale(factor, all_dims) if both else mscale(factor)

    def dimension(rotations: float) -> float:
        return (rope.dim * math.log(original / (rotations * 2 * math.pi))) / (
            2 * math.log(rope.theta)
        )

    low = dimension(float(scaling.get("beta_fast") or 32))
    high = dimension(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    ramp = np.clip((np.arange(rope.dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return base / factor * ramp + base * (1 - ramp), float(attention)


def _longrope(
    base: Frequencies, rope: Rope, positions: int, max_positions: int
) -> tuple[Frequencies, float]:
    scaling = rope.scaling
    original = int(scaling["original_max_position_embeddings"] or max_positions)
    # Beyond the original context the long factors change the angles of all positions, but cached
    # keys are already rotated: the table is chosen by the cache's capacity.
    factors = scaling["short_factor"] if positions <= original else scaling["long_factor"]
    factor = float(scaling.get("factor") or max_positions / original)
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return base / np.asarray(factors, dtype=np.float64), float(attention)


def _proportional(base: Frequencies, rope: Rope, *_: Any) -> tuple[Frequencies, float]:
    """The first share of the pairs rotates, at the frequencies of the whole head (Gemma 4)."""
    scaling = rope.scaling
    pairs = int(float(scaling.get("partial_rotary_factor", 1.0)) * rope.dim // 2)
    turning = np.arange(rope.dim // 2) < pairs
    return np.where(turning, base, 0.0) / float(scaling.get("factor", 1.0)), 1.0


_SCALINGS: dict[str, Callable[..., tuple[Frequencies, float]]] = {
    "default": _default,
    "dynamic": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}
