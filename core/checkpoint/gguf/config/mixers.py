"""Fields of layers without attention, from the keys `ssm.*`."""

from typing import Any

from edgelm.checkpoint.gguf.config.keys import Keys
from edgelm.errors import BadCheckpoint

_RECURRENT, _ATTENTION, _MLP = "linear_attention", "full_attention", "mlp"


def qwen35(keys: Keys) -> dict[str, Any]:
    """Gated delta layers, where `attention.recurrent_layers` or the interval says so."""
    recurrent = keys.flags("attention.recurrent_layers")
    if recurrent is None:
        interval = keys.size("full_attention_interval", 4)
        recurrent = [(layer + 1) % interval != 0 for layer in range(keys.layers)]
    return {
        "layer_types": [_RECURRENT if one else _ATTENTION for one in recurrent],
        "linear_conv_kernel_dim": keys.size("ssm.conv_kernel"),
        "linear_num_key_heads": keys.size("ssm.group_count"),
        "linear_key_head_dim": keys.size("ssm.state_size"),
        "linear_num_value_heads": keys.size("ssm.time_step_rank"),
        "linear_value_head_dim": _head_dim(keys),
    }


def granite_hybrid(keys: Keys) -> dict[str, Any]:
    """Granite 4 H: layers without key heads are Mamba-2; without experts, the MLP is shared."""
    rotates = keys.metadata.flag(keys.key("rope.scaling.finetuned"), True)
    hidden, inner = keys.size("embedding_length"), keys.size("ssm.inner_size")
    if inner % hidden:
        raise BadCheckpoint(
            f"{keys.path}: {keys.key('ssm.inner_size')} is {inner}, expected a multiple of the "
            f"hidden size, {hidden}"
        )
    ffn = keys.size("feed_forward_length")
    return {
        **key_value_heads(keys),
        **_mamba(keys),
        "mamba_expand": inner // hidden,
        "position_embedding_type": "rope" if rotates else "nope",
        "shared_intermediate_size": keys.size("expert_shared_feed_forward_length", ffn),
        "num_local_experts": keys.count("expert_count"),
    }


def falcon_h1(keys: Keys) -> dict[str, Any]:
    """Mamba-2 beside attention, in every layer."""
    return {**_mamba(keys), "mamba_d_ssm": keys.size("ssm.inner_size")}


def nemotron_h(keys: Keys) -> dict[str, Any]:
    """A layer is attention if it has key heads, an MLP if it has a size, and Mamba-2 otherwise."""
    sizes = keys.each_layer("feed_forward_length")
    heads = keys.each_layer("attention.head_count_kv")
    kinds = [
        _ATTENTION if count else _MLP if size else _RECURRENT
        for count, size in zip(heads, sizes, strict=True)
    ]
    both = next((at for at, kind in enumerate(kinds) if sizes[at] and kind == _ATTENTION), None)
    if both is not None or len({*sizes} - {0}) != 1 or len({*heads} - {0}) != 1:
        raise BadCheckpoint(
            f"{keys.path}: {keys.key('feed_forward_length')} and "
            f"{keys.key('attention.head_count_kv')} must have one size and one number of heads, "
            "and 0 for the layers that are something else"
        )
    return {
        "num_hidden_layers": None,
        "layers_block_type": kinds,
        "intermediate_size": max(sizes),
        "num_key_value_heads": max(heads),
        "mamba_num_heads": keys.size("ssm.time_step_rank"),
        "mamba_head_dim": _head_dim(keys),
        "n_groups": keys.size("ssm.group_count"),
        "ssm_state_size": keys.size("ssm.state_size"),
        "conv_kernel": keys.size("ssm.conv_kernel"),
    }


def lfm2(keys: Keys) -> dict[str, Any]:
    """Layers without key heads are short convolutions."""
    return {
        **key_value_heads(keys, other="conv"),
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "conv_L_cache": keys.size("shortconv.l_cache"),
    }


def key_value_heads(keys: Keys, other: str = _RECURRENT) -> dict[str, Any]:
    """One number of key heads for each layer: 0 for those without attention."""
    counts = keys.each_layer("attention.head_count_kv")
    attention = set(counts) - {0}
    if len(attention) != 1:
        key = keys.key("attention.head_count_kv")
        raise keys.metadata.wrong(
            key, f"one number for each of {keys.layers} layers, of two: 0 and that of key heads"
        )
    return {
        "num_key_value_heads": attention.pop(),
        "layer_types": [_ATTENTION if count else other for count in counts],
    }


def _mamba(keys: Keys) -> dict[str, Any]:
    return {
        "mamba_n_heads": keys.size("ssm.time_step_rank"),
        "mamba_d_head": _head_dim(keys),
        "mamba_n_groups": keys.size("ssm.group_count"),
        "mamba_d_state": keys.size("ssm.state_size"),
        "mamba_d_conv": keys.size("ssm.conv_kernel"),
    }


def _head_dim(keys: Keys) -> int:
    size, heads = keys.size("ssm.inner_size"), keys.size("ssm.time_step_rank")
    if size % heads:
        raise BadCheckpoint(
            f"{keys.path}: {keys.key('ssm.inner_size')} is {size}, expected a multiple of the "
            f"{heads} heads of {keys.key('ssm.time_step_rank')}"
        )
    return size // heads
