"""Fields of Gemma 4, whose layers with a window have other heads than those without."""

from collections.abc import Mapping
from typing import Any

from edgelm.checkpoint.gguf.config.keys import Keys
from edgelm.checkpoint.gguf.config.rope import Factors
from edgelm.checkpoint.gguf.layout.names import ROPE_FREQS
from edgelm.errors import BadCheckpoint

_UNROTATED = 1e20  # factors above it stop a rotation; the converter writes 1e30


def gemma4(keys: Keys, factors: Mapping[str, Factors]) -> dict[str, Any]:
    """The fields that differ from other architectures' or come besides.

    Args:
        keys: the file's.
        factors: tensors that scale RoPE; Gemma 4's says which channels are rotated.

    Raises:
        BadCheckpoint: a key or the factors are missing, or layers differ in an unsupported way.
    """
    slides = keys.flags("attention.sliding_window_pattern")
    if slides is None:
        raise keys.missing("attention.sliding_window_pattern")
    shared = keys.count("attention.shared_kv_layers")
    cap = keys.metadata.number(keys.key("final_logit_softcapping"))
    return {
        "layer_types": ["sliding_attention" if one else "full_attention" for one in slides],
        "sliding_window": keys.size("attention.sliding_window"),
        "head_dim": _window_head(keys),
        "global_head_dim": keys.size("attention.key_length"),
        "rope_parameters": _rope(keys, factors),
        "num_kv_shared_layers": shared,
        "final_logit_softcapping": cap,
        **_feed_forward(keys, shared),
        **_key_value_heads(keys, slides, shared),
        **_per_layer_inputs(keys),
    }


def _window_head(keys: Keys) -> int:
    size = keys.size("attention.key_length_swa")
    for name in ("attention.value_length_swa", "rope.dimension_count_swa"):
        if keys.size(name, size) != size:
            raise BadCheckpoint(
                f"{keys.path}: {keys.key(name)} is {keys.size(name)}, expected the size of the "
                f"heads with a window, {size}"
            )
    return size


def _rope(keys: Keys, factors: Mapping[str, Factors]) -> dict[str, Any]:
    half = keys.size("attention.key_length") // 2
    found = factors.get(ROPE_FREQS)
    rotated = 0 if found is None else int((found == 1).sum())
    if found is None or len(found) != half or not rotated or (found[rotated:] < _UNROTATED).any():
        raise BadCheckpoint(
            f"{keys.path}: {ROPE_FREQS} must hold {half} numbers, 1 for rotated channels and 1e30 "
            "for those after them; convert the model again"
        )
    thetas = {
        name: keys.metadata.number(keys.key(f"rope.{name}"), 10_000.0)
        for name in ("freq_base", "freq_base_swa")
    }
    return {
        "sliding_attention": {"rope_type": "default", "rope_theta": thetas["freq_base_swa"]},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": rotated / half,
            "rope_theta": thetas["freq_base"],
        },
    }


def _feed_forward(keys: Keys, shared: int) -> dict[str, Any]:
    """One size, or twice that in the layers that share keys and values."""
    sizes = keys.each_layer("feed_forward_length")
    own = len(sizes) - shared
    double = 0 < own < len(sizes) and sizes[-1] != sizes[0]
    expected = [sizes[0] * (1 + (double and layer >= own)) for layer in range(len(sizes))]
    if sizes != expected or not sizes[0]:
        raise BadCheckpoint(
            f"{keys.path}: {keys.key('feed_forward_length')} must be one size, or twice that in "
            f"the last {shared} layers, which share keys and values"
        )
    return {"intermediate_size": sizes[0], "use_double_wide_mlp": double}


def _key_value_heads(keys: Keys, slides: list[bool], shared: int) -> dict[str, Any]:
    counts = keys.each_layer("attention.head_count_kv")
    windowed = {count for count, one in zip(counts, slides, strict=True) if one}
    whole = {count for count, one in zip(counts, slides, strict=True) if not one}
    if len(windowed) != 1 or len(whole) != 1 or 0 in windowed | whole:
        raise BadCheckpoint(
            f"{keys.path}: {keys.key('attention.head_count_kv')} must be one number for all layers "
            "with a window, and one for the others"
        )
    own = [layer for layer, one in enumerate(slides[: len(slides) - shared]) if not one]
    values = [f"model.layers.{layer}.self_attn.v_proj.weight" in keys.shapes for layer in own]
    return {
        "num_key_value_heads": windowed.pop(),
        "num_global_key_value_heads": whole.pop(),
        "attention_k_eq_v": bool(own) and not any(values),
    }


def _per_layer_inputs(keys: Keys) -> dict[str, Any]:
    size = keys.count("embedding_length_per_layer_input")
    shape = keys.shapes.get("model.embed_tokens_per_layer.weight", (0,))
    return {
        "hidden_size_per_layer_input": size,
        "vocab_size_per_layer_input": shape[0] if size else None,
    }
